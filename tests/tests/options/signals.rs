//! Signals that end a server, with clients and without, one at a time and to the whole terminal.
//! nbdkit(1), "Signals".

use std::time::{Duration, Instant};

use nbdkit_tests::{Ask, Server};
use nix::sys::signal::{Signal, killpg};

use crate::support::{Foreground, Paths, assert_serves, connect, debian_lacks, open, pid_in};

const ENDING: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGQUIT];

#[test]
fn ending_signals_give_status_0_and_no_complaint() {
    for signal in ENDING {
        let mut server = Server::nbdkit(["memory", "1M"]).start();
        assert_serves(&mut server.connect());
        server.signal(signal);
        assert_eq!(server.wait().code(), Some(0), "{signal}");
        assert_eq!(server.stderr_text_after_end(), "", "{signal}");
    }
}

#[test]
fn ending_signals_let_connected_clients_go() {
    if debian_lacks("an end while clients are connected: it waits for them") {
        return;
    }
    for signal in ENDING {
        let mut server = Server::nbdkit(["memory", "1M"]).start();
        let mut idle = server.connect();
        open(&mut idle);
        let mut greeted = server.connect();
        greeted.greeting().expect("a greeting");
        server.signal(signal);
        assert_eq!(server.wait().code(), Some(0), "{signal}");
        idle.expect_close().expect("closed");
        greeted.expect_close().expect("closed");
    }
}

/// A terminal sends its signals to the whole foreground process group: to every process of the
/// server at once.
#[test]
fn a_signal_from_the_terminal_ends_the_server_as_quietly() {
    for signal in ENDING {
        for _ in 0..5 {
            let mut server = Server::nbdkit(["memory", "1M"]).start();
            assert_serves(&mut server.connect());
            let _ = killpg(server.pid(), signal);
            assert_eq!(server.wait().code(), Some(0), "{signal}");
            assert_eq!(server.stderr_text_after_end(), "", "{signal}");
        }
    }
}

#[test]
fn a_signal_from_the_terminal_ends_the_connections_as_quietly() {
    if debian_lacks("an end while clients are connected: it waits for them") {
        return;
    }
    for options in [&["memory", "1M"][..], &["--isolation=shared", "memory", "1M"]] {
        for _ in 0..5 {
            let mut server = Server::nbdkit(options).start();
            let mut client = server.connect();
            open(&mut client);
            let _ = killpg(server.pid(), Signal::SIGINT);
            assert_eq!(server.wait().code(), Some(0), "{options:?}");
            assert_eq!(server.stderr_text_after_end(), "", "{options:?}");
            client.expect_close().expect("closed");
        }
    }
}

#[test]
fn plugins_clean_up_after_a_signal_to_the_server_or_to_the_whole_terminal() {
    for to_group in [false, true] {
        for signal in ENDING {
            let mut server = Server::nbdkit(["-v", "memory", "1M"]).start();
            assert_serves(&mut server.connect());
            if to_group {
                let _ = killpg(server.pid(), signal);
            } else {
                server.signal(signal);
            }
            assert_eq!(server.wait().code(), Some(0));
            let stderr = server.stderr_text_after_end();
            assert!(stderr.contains("memory: cleanup"), "to the group: {to_group}\n{stderr}");
        }
    }
}

#[test]
fn signals_at_any_moment_of_the_start_end_the_server() {
    let paths = Paths::new();
    for delay in [0, 1, 2, 4, 8, 16, 32] {
        let socket = paths.text(&format!("sock{delay}"));
        let mut server = Foreground::nbdkit(["-f", "-U", &socket, "memory", "1M"]);
        std::thread::sleep(Duration::from_millis(delay));
        if server.try_wait().is_none() {
            server.signal(Signal::SIGTERM);
        }
        // Before the handlers are there it dies of the signal; it never hangs.
        server.wait();
    }
}

#[test]
fn the_second_signal_is_not_needed() {
    if debian_lacks("an end while clients are connected: it waits for them") {
        return;
    }
    // A request that would take a minute does not hold up the end.
    let mut server = Server::nbdkit(["--filter=delay", "memory", "1M", "rdelay=60"]).start();
    let mut client = server.connect();
    open(&mut client);
    client.send(&Ask::read(0, 512)).expect("sent");
    std::thread::sleep(Duration::from_millis(200));
    let began = Instant::now();
    server.signal(Signal::SIGTERM);
    assert!(server.wait().success());
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
}

#[test]
fn sigpipe_is_ignored() {
    let mut server = Server::nbdkit(["memory", "1M"]).start();
    server.signal(Signal::SIGPIPE);
    std::thread::sleep(Duration::from_millis(50));
    assert_serves(&mut server.connect());
    assert!(server.stop().success());
}

#[test]
fn a_signal_that_the_caller_ignores_still_ends_the_server() {
    // A shell starts background commands with SIGINT and SIGQUIT ignored; nbdkit takes them all the
    // same.
    let paths = Paths::new();
    let mut shell = std::process::Command::new("/bin/sh");
    shell.args(["-c", r#"trap '' INT QUIT; exec "$0" "$@""#]);
    shell.arg(nbdkit_tests::binary::Binary::under_test().path());
    shell.args(["-f", "-U", &paths.text("sock"), "-P", &paths.text("pid"), "null"]);
    let mut server = Foreground::start(shell.stdin(std::process::Stdio::null()));
    let _ = pid_in(&paths.path("pid"));
    assert_serves(&mut connect(&paths.path("sock")));
    server.signal(Signal::SIGINT);
    assert!(server.wait().success());
}

/// timeout(1) sends its signal to the command and then to the whole process group: the server gets
/// it twice at once.
#[test]
fn a_signal_that_comes_twice_at_once_ends_the_server_as_quietly() {
    for _ in 0..5 {
        let mut server = Server::nbdkit(["-v", "memory", "1M"]).start();
        assert_serves(&mut server.connect());
        server.signal(Signal::SIGTERM);
        let _ = killpg(server.pid(), Signal::SIGTERM);
        assert_eq!(server.wait().code(), Some(0));
        let stderr = server.stderr_text_after_end();
        assert!(!stderr.contains("error"), "{stderr}");
        assert!(stderr.contains("memory: cleanup"), "{stderr}");
    }
}
