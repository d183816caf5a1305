//! Log files: the time and the client in each line. nbdkit(1) of this server, "LOG".

use std::path::Path;
use std::process::Command;

use nbdkit_tests::processes::eventually;
use nbdkit_tests::{Ask, Server};

use crate::log::{COMPLAINING, COMPLAINT, fail_to_read};
use crate::support::{Paths, debian_lacks, open};

fn text(log: &Path) -> String {
    std::fs::read_to_string(log).unwrap_or_default()
}

fn wait_for(log: &Path, words: &str) {
    eventually(&format!("{words:?} in {}", log.display()), || text(log).contains(words));
}

/// The first line with these words, divided into time and text.
fn line_with(log: &Path, words: &str) -> (String, String) {
    wait_for(log, words);
    let text = text(log);
    let line = text.lines().find(|line| line.contains(words)).unwrap();
    let (time, line) = line.split_once(' ').unwrap();
    (time.to_owned(), line.to_owned())
}

/// Seconds since 1970, as date(1) understands a time.
fn seconds(time: &str) -> u64 {
    let output = Command::new("date").args(["-d", time, "+%s"]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().parse().expect(time)
}

#[test]
fn each_line_begins_with_the_local_time() {
    if debian_lacks("--log=/PATH") {
        return;
    }
    let paths = Paths::new();
    let log = paths.path("log");
    let option = format!("--log={}", paths.text("log"));
    let now = || std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let before = now();
    let builder = Server::nbdkit([&*option, "--sandbox=off"]).args(COMPLAINING);
    let mut server = builder.env("TZ", "<+0530>-5:30").start();
    fail_to_read(&server);
    server.stop();
    let text = text(&log);
    assert!(text.lines().count() >= 2, "{text}");
    for line in text.lines() {
        let (time, line) = line.split_once(' ').unwrap();
        // 2026-11-29T17:43:45.678+05:30
        let shape: String =
            time.chars().map(|it| if it.is_ascii_digit() { '0' } else { it }).collect();
        assert_eq!(shape, "0000-00-00T00:00:00.000+00:00", "{line}");
        assert!(time.ends_with("+05:30"), "{time}");
        assert!((before..=now()).contains(&seconds(time)), "{time}");
        assert!(line.starts_with("nbdkit: "), "{line}");
    }
}

/// Standard error has nbdkit's lines, without the client.
#[test]
fn each_line_about_a_connection_names_the_client() {
    if debian_lacks("--log=/PATH") {
        return;
    }
    for isolation in ["--isolation=connection", "--isolation=shared"] {
        let paths = Paths::new();
        let log = paths.path("log");
        let option = format!("--log={}", paths.text("log"));
        let server = Server::nbdkit([isolation, &option]).args(COMPLAINING).start();
        fail_to_read(&server);
        let (pid, uid) = (std::process::id(), nix::unistd::getuid());
        let (_, line) = line_with(&log, COMPLAINT);
        let head = format!("nbdkit: eval[1]: client pid {pid} uid {uid}: error: ");
        assert!(line.starts_with(&head), "{isolation}: {line}");

        let server = Server::nbdkit([isolation, &option]).args(COMPLAINING).tcp().start();
        let mut client = server.connect_tcp();
        let address = client.transport().local_addr().unwrap();
        open(&mut client);
        assert!(client.call(&Ask::read(0, 512)).expect("a reply").error.is_some());
        let (_, line) = line_with(&log, &format!("client {address}: error: "));
        assert!(line.contains(COMPLAINT), "{isolation}: {line}");
    }
}
