//! Thread models of plugins, by the overlap that they measure themselves; and in which process they
//! are.

use std::collections::HashSet;
use std::os::unix::net::UnixStream;

use nbdkit_tests::processes::eventually;
use nbdkit_tests::{Ask, Client, Server};

use crate::support::{compile, open};

/// What `overlap.c` has seen.
struct Seen {
    most: u64,
    process: u64,
    thread: u64,
    reads: u64,
}

fn seen(client: &mut Client<UnixStream>) -> Seen {
    let data = client.call(&Ask::read(4096, 32)).expect("a reply").data;
    let word = |n: usize| u64::from_ne_bytes(data[8 * n..8 * n + 8].try_into().unwrap());
    Seen { most: word(0), process: word(1), thread: word(2), reads: word(3) }
}

/// Has two clients read four times each, all at once, and returns what the plugin saw.
fn overlap(model: u32, options: &[&str]) -> Seen {
    overlap_of(&[&format!("-DMODEL={model}")], options)
}

/// The same, of a plugin that was compiled with these flags.
fn overlap_of(flags: &[&str], options: &[&str]) -> Seen {
    let plugin = compile("overlap.c", flags);
    let server = Server::nbdkit(options).arg(&plugin).start();
    let mut clients: Vec<_> = (0..2).map(|_| server.connect()).collect();
    clients.iter_mut().for_each(open);
    for client in &mut clients {
        for _ in 0..4 {
            client.send(&Ask::read(0, 512)).expect("sent");
        }
    }
    for client in &mut clients {
        for _ in 0..4 {
            assert_eq!(client.receive().expect("a reply").error, None);
        }
    }
    let seen = seen(&mut clients[0]);
    assert_eq!(seen.reads, 8);
    seen
}

#[test]
fn serialize_all_requests_never_overlaps() {
    assert_eq!(overlap(1, &[]).most, 1);
}

#[test]
fn serialize_requests_overlaps_once_for_each_client() {
    assert_eq!(overlap(2, &[]).most, 2);
}

#[test]
fn parallel_overlaps_up_to_the_limit_of_threads() {
    assert_eq!(overlap(3, &[]).most, 8);
    assert_eq!(overlap(3, &["-t", "3"]).most, 6);
}

#[test]
fn calls_are_made_in_turn_or_not_and_long_ones_are_not_waited_for() {
    let short = ["-DMODEL=3", "-DMILLISECONDS=3"];
    let most = |flags: &[&str], turns: &str| {
        overlap_of(flags, &["-D", &format!("nbdkit.policy.turns={turns}")]).most
    };
    assert_eq!(most(&short, "1"), 1);
    assert!(most(&short, "-1") > 1);
    assert!(most(&["-DMODEL=3"], "1") > 1, "a turn that is longer than 50 ms ends");
}

/// The reader is the first thread of a process that has one client.
#[test]
fn the_reader_makes_quick_calls_itself_until_one_sleeps() {
    let plugin = compile("overlap.c", &["-DMODEL=3"]);
    let server = Server::nbdkit(["--isolation=connection", &plugin]).start();
    let mut client = server.connect();
    open(&mut client);
    let first = seen(&mut client);
    assert_ne!(first.thread, first.process, "nothing is known of the plugin yet");
    eventually("the reader makes the calls", || {
        for _ in 0..100 {
            client.send(&Ask::read(8192, 512)).expect("sent");
        }
        for _ in 0..100 {
            assert_eq!(client.receive().expect("a reply").error, None);
        }
        let last = seen(&mut client);
        last.thread == last.process
    });
    // The first one, and none behind it: they do not wait for each other.
    for _ in 0..8 {
        client.send(&Ask::read(0, 512)).expect("sent");
    }
    for _ in 0..8 {
        assert_eq!(client.receive().expect("a reply").error, None);
    }
    let last = seen(&mut client);
    assert_eq!(last.reads, 8);
    assert!(last.most > 1);
}

#[test]
fn serialize_connections_lets_the_second_client_wait() {
    let plugin = compile("overlap.c", &["-DMODEL=0"]);
    let server = Server::nbdkit([&plugin]).start();
    let mut first = server.connect();
    open(&mut first);
    let mut second = server.connect();
    first.call(&Ask::read(0, 512)).expect("a reply");
    assert_eq!(seen(&mut first).most, 1);
    first.disconnect().expect("gone");
    drop(first);
    open(&mut second);
    second.call(&Ask::read(0, 512)).expect("a reply");
    assert_eq!(seen(&mut second).reads, 2);
}

#[test]
fn one_process_serves_all_unless_told_otherwise() {
    let plugin = compile("overlap.c", &["-DMODEL=3"]);
    for (option, processes) in [("--isolation=shared", 1), ("--isolation=connection", 3)] {
        let server = Server::nbdkit([option, &plugin]).start();
        let mut clients: Vec<_> = (0..3).map(|_| server.connect()).collect();
        clients.iter_mut().for_each(open);
        let seen: HashSet<u64> = clients.iter_mut().map(|client| seen(client).process).collect();
        assert_eq!(seen.len(), processes, "{option}");
    }
    let server = Server::nbdkit([&plugin]).start();
    let mut clients: Vec<_> = (0..3).map(|_| server.connect()).collect();
    clients.iter_mut().for_each(open);
    let seen: HashSet<u64> = clients.iter_mut().map(|client| seen(client).process).collect();
    assert_eq!(seen.len(), 1);
}

#[test]
fn a_plugin_with_threads_of_its_own_is_not_copied_for_each_client() {
    let plugin = compile("overlap.c", &["-DMODEL=3", "-DBACKGROUND"]);
    let server = Server::nbdkit([&plugin]).start();
    let mut client = server.connect();
    open(&mut client);
    assert_eq!(seen(&mut client).most, 0);
    let finished = Server::nbdkit(["--isolation=connection", &plugin]).try_start();
    let finished = finished.expect_err("refused");
    assert!(
        finished.stderr.contains("the plugin or a filter has started threads"),
        "{}",
        finished.stderr
    );
}
