//! The rate filter: its parameters, and what clients in several processes have in common.

use std::time::{Duration, Instant};

use nbdkit_tests::differential::{Row, for_each};
use nbdkit_tests::processes::eventually;
use nbdkit_tests::server::ours;

use nbdkit_tests::{Ask, row_name};

use crate::filters::capabilities;

#[test]
fn parameters_of_rate() {
    for_each(
        &[
            "rate=0",
            "rate=1M",
            "connection-rate=0",
            "burstiness=x",
            "burstiness=",
            "burstiness=0.5",
            "rate-file=/nonexistent",
        ],
        |parameter| {
            let arguments = ["--filter=rate", "null", "1M", parameter, "--run", "true"];
            Row::new(row_name!(), &arguments).variant(parameter).compare_command();
        },
    );
}

#[test]
fn a_disk_behind_a_rate() {
    for_each(&["rate=1G", "connection-rate=1G"], |rate| {
        let arguments = ["--filter=rate", "memory", "64K", rate];
        Row::new(row_name!(), &arguments).variant(rate).compare(capabilities);
    });
}

/// 8000 bytes a second, and nothing at once.
const SLOW: &str = "64000";
const UNIT: u64 = 4000;
const HALF_A_SECOND: Duration = Duration::from_millis(500);

#[test]
fn two_clients_in_two_processes_share_the_rate_of_the_server() {
    let rate = format!("rate={SLOW}");
    let mut server = ours(&["--filter=rate", "memory", "1M", &rate, "burstiness=0"]).start();
    let (mut one, mut two) = (server.connected(""), server.connected(""));
    let start = Instant::now();
    one.send(&Ask::read(0, UNIT)).unwrap();
    two.send(&Ask::read(0, UNIT)).unwrap();
    for client in [&mut one, &mut two] {
        assert_eq!(client.receive().unwrap().error, None);
    }
    // Each alone would have waited for half of it.
    assert!(start.elapsed() >= 2 * HALF_A_SECOND);
    one.disconnect().unwrap();
    two.disconnect().unwrap();
    assert!(server.stop().success());
}

#[test]
fn a_file_changes_the_rate_of_clients_that_are_connected() {
    let builder = ours(&["--filter=rate", "memory", "64M", "rate=8G", "burstiness=0"])
        .arg("rate-file={dir}/rate");
    let (file, new) = (builder.dir().join("rate"), builder.dir().join("new"));
    let server = builder.start();
    let mut client = server.connected("");
    let replace = |rate: &str| {
        std::fs::write(&new, rate).unwrap();
        std::fs::rename(&new, &file).unwrap();
    };
    let mut took = |bytes| {
        let start = Instant::now();
        assert_eq!(client.call(&Ask::read(0, bytes)).unwrap().error, None);
        start.elapsed()
    };
    took(1 << 20);
    replace(SLOW);
    eventually("the file slows reads down", || took(UNIT) >= HALF_A_SECOND);
    replace("nonsense\n");
    eventually("what is no rate is reported", || {
        took(1);
        server.stderr_text().contains("could not parse size")
    });
    std::fs::remove_file(&file).unwrap();
    assert!(took(UNIT) >= HALF_A_SECOND, "the last rate from the file holds");
    replace("8G\n");
    eventually("the file makes reads fast again", || took(UNIT) < HALF_A_SECOND);
    // 17 minutes at the slow rate.
    took(8 << 20);
}

#[test]
fn a_client_that_leaves_while_it_waits_takes_nothing() {
    let mut server = ours(&["--filter=rate", "memory", "64M", "rate=8000", "burstiness=0"]).start();
    let mut one = server.connected("");
    // It would wait for an hour.
    one.send(&Ask::read(0, 4 << 20)).unwrap();
    drop(one);
    eventually("the worker has ended", || server.workers().is_empty());
    let mut two = server.connected("");
    assert_eq!(two.call(&Ask::read(0, 1)).unwrap().error, None);
    assert!(server.stop().success());
}
