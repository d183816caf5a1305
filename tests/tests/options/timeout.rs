//! `--timeout`: how long a handshake may take. Since 1.42.

use std::time::{Duration, Instant};

use nbdkit_tests::{Ask, Server};

use crate::support::{assert_refused, assert_serves, debian_lacks, open};

/// Milliseconds within which a client that is due to be cut off has been.
const PATIENCE: Duration = Duration::from_secs(10);

fn server(timeout: &str) -> Server {
    Server::nbdkit([timeout, "memory", "1M"]).start()
}

#[test]
fn a_client_that_says_nothing_is_cut_off() {
    if debian_lacks("--timeout") {
        return;
    }
    for option in ["--timeout=1", "--time-out=1s", "--timeout=1000ms"] {
        let server = server(option);
        let mut client = server.connect();
        client.greeting().expect("a greeting");
        let began = Instant::now();
        client.expect_close().expect("closed");
        let time = began.elapsed();
        assert!(time > Duration::from_millis(700), "{option}: {time:?}");
        assert!(time < PATIENCE, "{option}: {time:?}");
    }
}

#[test]
fn a_client_that_dawdles_through_the_handshake_is_cut_off() {
    if debian_lacks("--timeout") {
        return;
    }
    let server = server("--timeout=1");
    let mut client = server.connect();
    client.handshake().expect("a greeting");
    let began = Instant::now();
    // Options, each answered promptly: it is the handshake that has a deadline, not a message.
    while client.list().is_ok() {
        assert!(began.elapsed() < PATIENCE, "it may go on for ever");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(began.elapsed() > Duration::from_millis(700));
}

#[test]
fn a_client_that_drips_bytes_is_cut_off() {
    if debian_lacks("--timeout") {
        return;
    }
    let server = server("--timeout=1");
    let mut client = server.connect();
    client.greeting().expect("a greeting");
    let began = Instant::now();
    for byte in b"\0\0\0\x03IHAVEOPT\0\0\0\x07\0\0\0\x64".iter().chain(std::iter::repeat(&b'x')) {
        if client.send_raw(&[*byte]).is_err() {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "it may go on for ever");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_client_that_finished_its_handshake_has_all_the_time_it_wants() {
    if debian_lacks("--timeout") {
        return;
    }
    let server = server("--timeout=1");
    let mut client = server.connect();
    open(&mut client);
    std::thread::sleep(Duration::from_millis(2500));
    assert_eq!(client.call(&Ask::read(0, 512)).expect("a reply").data, [0; 512]);
    client.disconnect().expect("sent");
    client.expect_close().expect("closed");
}

#[test]
fn the_deadline_of_one_client_is_not_anothers() {
    if debian_lacks("--timeout") {
        return;
    }
    let server = server("--timeout=1");
    let mut finished = server.connect();
    open(&mut finished);
    let mut silent: Vec<_> = (0..3).map(|_| server.connect()).collect();
    for client in &mut silent {
        client.greeting().expect("a greeting");
    }
    for client in &mut silent {
        client.expect_close().expect("closed");
    }
    assert_eq!(finished.call(&Ask::read(0, 512)).expect("a reply").error, None);
    assert_serves(&mut server.connect());
}

#[test]
fn zero_is_no_limit() {
    if debian_lacks("--timeout") {
        return;
    }
    let server = server("--timeout=0");
    let mut client = server.connect();
    std::thread::sleep(Duration::from_millis(1200));
    open(&mut client);
}

#[test]
fn an_oldstyle_client_has_no_handshake_to_finish() {
    if debian_lacks("--timeout") {
        return;
    }
    let server = Server::nbdkit(["-o", "--timeout=1", "memory", "1M"]).start();
    let mut client = server.connect();
    client.greeting().expect("a greeting");
    std::thread::sleep(Duration::from_millis(2000));
    assert_eq!(client.call(&Ask::read(0, 512)).expect("a reply").error, None);
}

#[test]
fn delays_that_are_none_are_refused() {
    if debian_lacks("--timeout") {
        return;
    }
    for delay in ["x", "-1", "1x", "", "1 s"] {
        let option = format!("--timeout={delay}");
        assert_refused(["-f", "-U", "-", &option, "null"], &["timeout"]);
    }
}
