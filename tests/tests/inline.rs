//! Requests that the thread which reads them answers itself: a worker that has no other work for
//! threads has one. Handing a request over costs several system calls, more than most requests do.

#![expect(clippy::unwrap_used, reason = "a client that is not served is a failed test")]

use nbdkit_tests::Ask;
use nbdkit_tests::processes::threads;
use nbdkit_tests::server::ours;

/// Requests that are sent together.
const MANY: u64 = 16;
const SIZE: u64 = 4096;

/// Sends reads, and `writes` among them, many at a time, through `filters` on a disk in memory. How
/// many threads the worker has then: one that had anything to do stays for some seconds.
fn threads_for(filters: &[&str], parameters: &[&str], writes: bool) -> u64 {
    let filters: Vec<String> = filters.iter().map(|name| format!("--filter={name}")).collect();
    let server = ours(&[]).args(filters).args(["memory", "2M"]).args(parameters).start();
    let mut client = server.connected("");
    let [worker] = server.workers()[..] else { panic!("one client") };
    for round in 0..50 {
        for slot in 0..MANY {
            // In some rounds not at the boundaries of blocks.
            let offset = slot * 65_536 + round % 3 * 100;
            if writes && slot % 2 == 0 {
                client.send(&Ask::write(offset, vec![1; SIZE as usize])).unwrap();
            } else {
                client.send(&Ask::read(offset, SIZE)).unwrap();
            }
        }
        for _ in 0..MANY {
            assert_eq!(client.receive().unwrap().error, None, "{parameters:?}");
        }
    }
    threads(worker)
}

/// Low enough that no read ever fails, and so that each has to be looked at.
const SELDOM: &str = "error-pread-rate=0.000000000001";

#[test]
fn filters_that_do_not_sleep_hand_nothing_over_in_any_order() {
    let mut filters = ["error", "offset", "blocksize", "delay", "rate", "truncate"];
    for _ in 0..filters.len() {
        assert_eq!(threads_for(&filters, &[SELDOM], true), 1, "{filters:?}");
        // Writers of parts of blocks may wait for each other, readers do not.
        assert_eq!(threads_for(&filters, &[SELDOM, "minblock=4096"], false), 1, "{filters:?}");
        filters.rotate_left(1);
    }
}

#[test]
fn reads_are_answered_by_the_reader_while_a_filter_that_may_sleep_need_not() {
    for (filters, parameters) in [
        (&["error", "rate"][..], &[SELDOM, "rate=1T"][..]),
        (&["map", "pause"], &["map=0-99999:100000", "pause-control={dir}/pause"]),
        (&["error", "log"], &[SELDOM, "logfile={dir}/log"]),
        (&["error", "retry-request"], &[SELDOM]),
        (&["blocksize", "cow"], &["minblock=65536"]),
    ] {
        assert_eq!(threads_for(filters, parameters, false), 1, "{filters:?}");
    }
}

#[test]
fn a_filter_that_sleeps_hands_over() {
    assert!(threads_for(&["error", "delay"], &[SELDOM, "rdelay=1ms"], false) > 1);
    // 4096 bytes take ten milliseconds.
    assert!(threads_for(&["rate"], &["rate=3M", "burstiness=0"], false) > 1);
}
