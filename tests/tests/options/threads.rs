//! `-t`: how many requests of one connection are worked on at once.

use std::time::{Duration, Instant};

use nbdkit_tests::{Ask, Server};

use crate::support::{assert_serves, open, run};

const DELAY: Duration = Duration::from_millis(500);

/// How long `reads` delayed reads of one client take, all sent before the first reply.
fn time_of_reads(options: &[&str], reads: u64) -> Duration {
    let server =
        Server::nbdkit(options).args(["--filter=delay", "null", "1M", "rdelay=500ms"]).start();
    let mut client = server.connect();
    open(&mut client);
    let began = Instant::now();
    for block in 0..reads {
        client.send(&Ask::read(block * 512, 512)).expect("sent");
    }
    for _ in 0..reads {
        assert_eq!(client.receive().expect("a reply").error, None);
    }
    began.elapsed()
}

/// So many that reads of which a few are carried out at a time are told apart from reads at once on
/// the busiest machine.
const MANY: u64 = 16;
/// How long they take four at a time: longer than at once, even there.
const FOUR_AT_A_TIME: Duration = Duration::from_secs(2);

#[test]
fn requests_overlap_by_default() {
    let time = time_of_reads(&[], MANY);
    assert!(time >= DELAY && time < FOUR_AT_A_TIME, "{time:?}");
}

#[test]
fn one_thread_works_on_one_request_at_a_time() {
    for option in ["-t1", "--threads=1"] {
        let time = time_of_reads(&[option], 2);
        assert!(time >= DELAY * 2, "{option}: {time:?}");
    }
}

#[test]
fn two_threads_work_on_two_requests() {
    // Three at a time are done after three delays, one at a time after eight.
    let time = time_of_reads(&["-t", "2"], 8);
    assert!(time >= DELAY * 4 && time < DELAY * 8, "{time:?}");
}

#[test]
fn zero_threads_mean_the_default() {
    let time = time_of_reads(&["-t", "0"], MANY);
    assert!(time >= DELAY && time < FOUR_AT_A_TIME, "{time:?}");
}

#[test]
fn one_thread_answers_in_the_order_of_requests() {
    let server =
        Server::nbdkit(["-t", "1", "--filter=delay", "memory", "1M", "rdelay=50ms"]).start();
    let mut client = server.connect();
    open(&mut client);
    let cookies: Vec<u64> =
        (0..4).map(|at| client.send(&Ask::read(at, 1)).expect("sent")).collect();
    let replies: Vec<u64> = (0..4).map(|_| client.receive().expect("a reply").cookie).collect();
    assert_eq!(replies, cookies);
}

#[test]
fn one_thread_for_each_connection_not_for_all() {
    let server = Server::nbdkit(["-t1", "--filter=delay", "null", "1M", "rdelay=500ms"]).start();
    let mut clients: Vec<_> = (0..MANY).map(|_| server.connect()).collect();
    clients.iter_mut().for_each(open);
    let began = Instant::now();
    for client in &mut clients {
        client.send(&Ask::read(0, 512)).expect("sent");
    }
    for client in &mut clients {
        assert_eq!(client.receive().expect("a reply").error, None);
    }
    let time = began.elapsed();
    assert!(time < FOUR_AT_A_TIME, "{time:?}");
}

#[test]
fn a_plugin_that_is_not_parallel_gets_one_request_at_a_time() {
    let server = Server::nbdkit([
        "eval",
        "get_size=echo 1M",
        "pread=sleep 0.5; head -c $3 /dev/zero",
        "thread_model=echo serialize_requests",
    ])
    .start();
    let mut client = server.connect();
    open(&mut client);
    let began = Instant::now();
    for block in 0..2 {
        client.send(&Ask::read(block * 512, 512)).expect("sent");
    }
    for _ in 0..2 {
        assert_eq!(client.receive().expect("a reply").error, None);
    }
    assert!(began.elapsed() >= DELAY * 2, "{:?}", began.elapsed());
}

#[test]
fn many_threads_are_a_limit_not_an_order() {
    let server = Server::nbdkit(["-t", "100000", "memory", "1M"]).start();
    assert_serves(&mut server.connect());
    let finished = run(["-t", "4294967295", "-U", "-", "null", "--run", "exit 0"]);
    assert!(finished.status.success(), "{finished:?}");
}
