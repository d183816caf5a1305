//! Socket activation: `LISTEN_FDS` and `LISTEN_PID`. nbdkit-service(1), sd_listen_fds(3).

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::process::{Command, Stdio};

use nbdkit_tests::binary::Binary;
use nbdkit_tests::command::{self, Finished};
use nbdkit_tests::{Client, Server, uninterrupted};
use nix::sys::signal::Signal;

use crate::support::{DEADLINE, Foreground, Paths, assert_serves, connect, debian_lacks, pid_in};

/// A shell that becomes the server with these variables and these shell redirections.
fn activated(environment: &str, redirections: &str, arguments: &[&str]) -> Command {
    let mut shell = Command::new("/bin/sh");
    shell.arg("-c").arg(format!(r#"{environment} exec "$0" "$@" {redirections}"#));
    shell.arg(Binary::under_test().path()).args(arguments);
    shell.env_remove("LISTEN_FDS").env_remove("LISTEN_PID");
    shell
}

/// Runs the server with descriptor 3 a listening socket, if `socket`, to its end.
fn run_activated(environment: &str, arguments: &[&str]) -> Finished {
    let redirections = "3</dev/null";
    command::run(&mut activated(environment, redirections, arguments), DEADLINE)
}

#[test]
fn two_sockets_are_both_served() {
    let paths = Paths::new();
    let unix = UnixListener::bind(paths.path("activated")).unwrap();
    let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = tcp.local_addr().unwrap();
    let mut command = activated(
        "LISTEN_PID=$$ LISTEN_FDS=2",
        "3<&0 4<&1 0</dev/null 1>&2",
        &["-P", &paths.text("pid"), "memory", "1M"],
    );
    // Foreground would take standard output for itself.
    command.stdin(OwnedFd::from(unix)).stdout(OwnedFd::from(tcp)).stderr(Stdio::inherit());
    let mut server = command.spawn().unwrap();
    let pid = pid_in(&paths.path("pid"));
    assert_eq!(u32::try_from(pid).unwrap(), server.id(), "it stays in the foreground");
    for _ in 0..2 {
        assert_serves(&mut connect(&paths.path("activated")));
        assert_serves(&mut Client::new(TcpStream::connect(address).unwrap()));
    }
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGTERM);
    assert!(server.wait().unwrap().success());
}

#[test]
fn a_client_that_waited_since_before_the_start_is_served() {
    let paths = Paths::new();
    let listener = UnixListener::bind(paths.path("activated")).unwrap();
    let early = UnixStream::connect(paths.path("activated")).unwrap();
    let _server = Server::nbdkit(["memory", "1M"]).activated_by(listener).start();
    assert_serves(&mut Client::new(early));
}

#[test]
fn the_socket_outlives_the_server() {
    let paths = Paths::new();
    let listener = UnixListener::bind(paths.path("activated")).unwrap();
    for _ in 0..2 {
        let socket = listener.try_clone().unwrap();
        let mut server = Server::nbdkit(["memory", "1M"]).activated_by(socket).start();
        assert_serves(&mut connect(&paths.path("activated")));
        assert!(server.stop().success());
    }
    assert!(paths.path("activated").exists());
}

#[test]
fn sockets_for_another_process_are_not_ours() {
    let paths = Paths::new();
    let mut command = activated(
        "LISTEN_PID=1 LISTEN_FDS=1",
        "3</dev/null",
        &["-f", "-U", &paths.text("sock"), "-P", &paths.text("pid"), "null"],
    );
    let mut server = Foreground::start(command.stdin(Stdio::null()));
    let _ = pid_in(&paths.path("pid"));
    assert_serves(&mut connect(&paths.path("sock")));
    assert!(server.stderr().contains("LISTEN_PID was not for us"), "{}", server.stderr());
    server.signal(Signal::SIGTERM);
    assert!(server.wait().success());
}

#[test]
fn one_variable_alone_is_no_activation() {
    for environment in ["LISTEN_FDS=1", "LISTEN_PID=$$"] {
        let paths = Paths::new();
        let mut command = activated(
            environment,
            "",
            &["-f", "-U", &paths.text("sock"), "-P", &paths.text("pid"), "null"],
        );
        let mut server = Foreground::start(command.stdin(Stdio::null()));
        let _ = pid_in(&paths.path("pid"));
        assert_serves(&mut connect(&paths.path("sock")));
        server.signal(Signal::SIGTERM);
        assert!(server.wait().success());
    }
}

#[test]
fn numbers_of_sockets_out_of_range_are_refused() {
    for number in ["0", "2147483647"] {
        let environment = format!("LISTEN_PID=$$ LISTEN_FDS={number}");
        let finished = run_activated(&environment, &["null"]);
        assert_eq!(finished.status.code(), Some(1), "{finished:?}");
        assert!(finished.stderr.contains(&format!("LISTEN_FDS={number}")), "{finished:?}");
    }
}

#[test]
fn variables_that_are_no_numbers_are_reported_and_ignored() {
    for (environment, name) in [
        ("LISTEN_PID=$$ LISTEN_FDS=x", "LISTEN_FDS"),
        ("LISTEN_PID=$$ LISTEN_FDS=-1", "LISTEN_FDS"),
        ("LISTEN_PID=$$ LISTEN_FDS=", "LISTEN_FDS"),
        ("LISTEN_PID=$$ LISTEN_FDS=99999999999", "LISTEN_FDS"),
        ("LISTEN_PID=x LISTEN_FDS=1", "LISTEN_PID"),
        ("LISTEN_PID= LISTEN_FDS=1", "LISTEN_PID"),
    ] {
        let finished = run_activated(environment, &["-U", "-", "null", "--run", "exit 5"]);
        assert_eq!(finished.status.code(), Some(5), "{environment}: {finished:?}");
        assert!(finished.stderr.contains(name), "{environment}: {finished:?}");
    }
}

#[test]
fn a_descriptor_that_is_not_open_is_refused() {
    let mut command = activated("LISTEN_PID=$$ LISTEN_FDS=1", "3<&-", &["null"]);
    let finished = command::run(&mut command, DEADLINE);
    assert_eq!(finished.status.code(), Some(1), "{finished:?}");
    assert!(finished.stderr.contains("fd = 3"), "{finished:?}");
}

#[test]
fn a_descriptor_that_is_no_socket_is_refused() {
    if debian_lacks("a check of the descriptor's kind: it fails to accept, for ever") {
        return;
    }
    let finished = run_activated("LISTEN_PID=$$ LISTEN_FDS=1", &["null"]);
    assert_eq!(finished.status.code(), Some(1), "{finished:?}");
    assert!(finished.stderr.contains("fd = 3"), "{finished:?}");
    assert_eq!(finished.stderr.lines().count(), 1);
}

#[test]
fn a_socket_that_does_not_listen_is_refused() {
    if debian_lacks("a check of the socket's state: it fails to accept, for ever") {
        return;
    }
    let (socket, _peer) = UnixStream::pair().unwrap();
    let mut command = activated("LISTEN_PID=$$ LISTEN_FDS=1", "3<&0 0</dev/null", &["null"]);
    let mut server = Foreground::start(command.stdin(OwnedFd::from(socket)));
    assert_eq!(server.wait().code(), Some(1), "{}", server.stderr());
    // Whoever reads its last words may be behind.
    server.wait_for_stderr("fd = 3");
}

#[test]
fn other_places_to_listen_are_refused() {
    for (arguments, flag) in [
        (&["-p", "10999", "null"][..], "-p"),
        (&["-U", "-", "null"], "-U"),
        (&["-s", "null"], "-s"),
        (&["-i", "127.0.0.1", "null"], "-i"),
        (&["null", "--run", "true"], "--run"),
    ] {
        let listener = UnixListener::bind(Paths::new().path("activated")).unwrap();
        let mut command = activated("LISTEN_PID=$$ LISTEN_FDS=1", "3<&0 0</dev/null", arguments);
        let mut server = Foreground::start(command.stdin(OwnedFd::from(listener)));
        assert_eq!(server.wait().code(), Some(1), "{arguments:?}: {}", server.stderr());
        let expected = format!("cannot use socket activation with {flag} flag");
        server.wait_for_stderr(&expected);
    }
}

#[test]
fn the_programs_of_the_server_do_not_inherit_the_variables() {
    let paths = Paths::new();
    let listener = UnixListener::bind(paths.path("activated")).unwrap();
    let size = r#"get_size=test -z "$LISTEN_FDS$LISTEN_PID$WATCHDOG_USEC" && echo 1M || echo 2M"#;
    let _server = Server::nbdkit(["eval", size, "pread=head -c $3 /dev/zero"])
        .activated_by(listener)
        .env("WATCHDOG_USEC", "1000000")
        .start();
    let mut client = connect(&paths.path("activated"));
    crate::support::open(&mut client);
    assert_eq!(client.export().map(|(size, _)| size), Some(1 << 20));
}

/// The next message to the service manager. sd_notify(3).
fn heard(manager: &UnixDatagram) -> String {
    let mut buffer = [0; 256];
    let length =
        uninterrupted(|| manager.recv(&mut buffer)).expect("a message to the service manager");
    String::from_utf8_lossy(&buffer[..length]).into_owned()
}

/// sd_notify(3): what the server has become, also to a manager that was restarted meanwhile and has
/// bound its socket anew.
#[test]
fn a_service_manager_is_told_and_so_is_one_that_was_restarted() {
    if debian_lacks("sd_notify") {
        return;
    }
    let paths = Paths::new();
    let path = paths.path("notify");
    for restarted in [false, true] {
        let mut manager = paths.bind_service("notify");
        let builder = Server::nbdkit(["memory", "1M"]).env("NOTIFY_SOCKET", &path);
        let mut server = builder.start();
        assert_eq!(heard(&manager), format!("READY=1\nMAINPID={}", server.pid()));
        assert_eq!(heard(&manager), "STATUS=serving memory: no clients");
        if restarted {
            drop(manager);
            paths.await_closed("notify");
            std::fs::remove_file(&path).unwrap();
            manager = paths.bind_service("notify");
        }
        assert!(server.stop().success());
        assert_eq!(heard(&manager), "STOPPING=1");
        std::fs::remove_file(&path).unwrap();
    }
}

#[test]
fn the_status_line_has_the_clients_and_their_exports() {
    if debian_lacks("a status line") {
        return;
    }
    let paths = Paths::new();
    let manager = paths.bind_service("notify");
    let builder = Server::nbdkit(["memory", "1M"]).env("NOTIFY_SOCKET", paths.path("notify"));
    let mut server = builder.start();
    let until = |expected: &str| while heard(&manager) != format!("STATUS={expected}") {};
    until("serving memory: no clients");
    let mut first = server.connect();
    crate::support::open(&mut first);
    until("serving memory: 1 client, export \"\"");
    let second = server.connect();
    until("serving memory: 2 clients, 1 of them in the handshake, export \"\"");
    drop(second);
    until("serving memory: 1 client, export \"\"");
    drop(first);
    until("serving memory: no clients");
    assert!(server.stop().success());
}

/// WATCHDOG=1, sd_watchdog_enabled(3). The loop itself sends it: one that hangs sends none.
#[test]
fn the_watchdog_hears_of_a_loop_that_turns() {
    if debian_lacks("a watchdog") {
        return;
    }
    let paths = Paths::new();
    let manager = paths.bind_service("notify");
    let interval = std::time::Duration::from_millis(50);
    let patience = (2 * interval).as_micros().to_string();
    let builder = Server::nbdkit(["memory", "1M"])
        .env("NOTIFY_SOCKET", paths.path("notify"))
        .env("WATCHDOG_USEC", &patience);
    let mut server = builder.start();
    let pings = |count| {
        for _ in 0..count {
            while heard(&manager) != "WATCHDOG=1" {}
        }
    };
    pings(5);
    let listener = server.pid();
    nix::sys::signal::kill(listener, Signal::SIGSTOP).unwrap();
    nix::sys::wait::waitid(
        nix::sys::wait::Id::Pid(listener),
        nix::sys::wait::WaitPidFlag::WSTOPPED | nix::sys::wait::WaitPidFlag::WNOWAIT,
    )
    .unwrap();
    // What it had sent before it was stopped.
    manager.set_nonblocking(true).unwrap();
    while manager.recv(&mut [0; 256]).is_ok() {}
    std::thread::sleep(10 * interval);
    assert!(manager.recv(&mut [0; 256]).is_err(), "a stopped listener sends nothing");
    manager.set_nonblocking(false).unwrap();
    nix::sys::signal::kill(listener, Signal::SIGCONT).unwrap();
    pings(2);
    assert!(server.stop().success());
}
