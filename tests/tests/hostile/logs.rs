//! What clients can do to the log, and the log to the server.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nbdkit_tests::binary::Binary;
use nbdkit_tests::processes::eventually;
use nbdkit_tests::server::ours;
use nbdkit_tests::tempdir::TempDir;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// With `-v`, at the end of a pipe that is full.
#[test]
fn a_log_that_nobody_reads_stops_neither_clients_nor_the_end_of_the_server() {
    let dir = TempDir::new();
    let socket = dir.path().join("sock");
    let mut child = Command::new(Binary::ours().path())
        .args(["-f", "-v", "-U"])
        .arg(&socket)
        .args(["memory", "1M"])
        .stderr(Stdio::piped())
        .spawn()
        .expect("a server");
    eventually("it listens", || UnixStream::connect(&socket).is_ok());
    // Some 3 MB of lines; a pipe takes 64 KiB, and some more wait.
    for number in 0..4000 {
        let mut client = UnixStream::connect(&socket).expect("it accepts");
        client.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
        let greeted = client.read_exact(&mut [0; 18]);
        assert!(greeted.is_ok(), "client {number}: {greeted:?}");
    }
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).expect("ours");
    let end = Instant::now() + Duration::from_secs(20);
    while child.try_wait().expect("ours").is_none() {
        assert!(Instant::now() < end, "it ends although nobody reads");
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut text = Vec::new();
    child.stderr.take().expect("a pipe").read_to_end(&mut text).expect("read");
    assert!(text.len() < 300_000, "{}", text.len());
    assert!(text.ends_with(b"\n") || text.len() >= 65_536);
}

#[test]
fn clients_that_come_again_and_again_do_not_fill_the_log() {
    let server = ours(&["memory", "1M"]).start();
    const CLIENTS: usize = 1500;
    let begin = Instant::now();
    for _ in 0..CLIENTS {
        let mut client = server.connect();
        let transport = client.transport();
        transport.read_exact(&mut [0; 18]).expect("a greeting");
        // Unknown client flags are an error, and a line of each connection.
        transport.write_all(&[0xff; 4]).expect("sent");
        let _ = transport.read_to_end(&mut Vec::new());
    }
    let seconds = usize::try_from(begin.elapsed().as_secs()).expect("few") + 1;
    let lines = server.stderr_text().lines().count();
    // At once, each second, and lines about how many were dropped.
    assert!(lines >= 100 && lines <= 2 * (400 + 40 * seconds), "{lines} in {seconds} s");
    if seconds < 20 {
        assert!(lines < CLIENTS, "{lines}");
    }
    let text = server.wait_for_stderr("were dropped");
    assert!(text.contains("messages about clients"), "{text}");
}
