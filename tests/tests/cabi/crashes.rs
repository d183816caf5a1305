//! A plugin that ends its process: the log says so, and clients that come again are served again.

use std::time::{Duration, Instant};

use nbdkit_tests::{Ask, Server};

use crate::support::{compile, open};

/// Connects until that works: the listener waits a little before it makes a new template.
fn served_again(server: &Server) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let mut client = server.connect();
        let read = client
            .handshake()
            .and_then(|_| client.structured_replies())
            .and_then(|_| client.go("", &[]))
            .and_then(|_| client.call(&Ask::read(0, 4)));
        if let Ok(reply) = read {
            assert_eq!(reply.data, b"cccc");
            return;
        }
        assert!(Instant::now() < deadline, "not served again: {}", server.stderr_text());
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_crash_is_reported_and_clients_can_come_again() {
    for isolation in ["--isolation=shared", "--isolation=connection"] {
        for (offset, how) in [(512, "SIGSEGV"), (1024, "SIGABRT")] {
            let mut server = Server::nbdkit([isolation, &compile("crash.c", &[])]).start();
            let mut client = server.connect();
            open(&mut client);
            assert!(client.call(&Ask::read(offset, 512)).is_err());
            // The log names signals by name or by number.
            let number = if how == "SIGSEGV" { "11" } else { "6" };
            let deadline = Instant::now() + Duration::from_secs(20);
            while !server.stderr_text().lines().any(|l| l.contains(how) || l.contains(number)) {
                assert!(Instant::now() < deadline, "{isolation}: {}", server.stderr_text());
                std::thread::sleep(Duration::from_millis(20));
            }
            served_again(&server);
            assert!(server.stop().success());
        }
    }
}

#[test]
fn with_a_process_for_each_client_a_crash_is_one_clients() {
    let plugin = compile("crash.c", &[]);
    let server = Server::nbdkit(["--isolation=connection", &plugin]).start();
    let mut bystander = server.connect();
    open(&mut bystander);
    let mut client = server.connect();
    open(&mut client);
    assert!(client.call(&Ask::read(1024, 512)).is_err());
    assert_eq!(bystander.call(&Ask::read(0, 4)).expect("a reply").data, b"cccc");
}

#[test]
fn what_the_sandbox_refuses_is_an_error_to_the_plugin() {
    let server = Server::nbdkit([&compile("crash.c", &[])]).start();
    let mut client = server.connect();
    open(&mut client);
    assert!(client.call(&Ask::read(1536, 512)).expect("a reply").error.is_some());
    let _ = server.wait_for_stderr("unshare: Operation not permitted");
    assert_eq!(client.call(&Ask::read(0, 4)).expect("a reply").data, b"cccc");
}
