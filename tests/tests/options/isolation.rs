//! Which process serves whom, and who waits for whom: `--isolation=shared`, and the thread model of
//! one connection at a time.

use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nbd_protocol::constants::Rep;
use nbdkit_tests::client::{Failure, Transport};
use nbdkit_tests::processes::{children, eventually};
use nbdkit_tests::{Ask, Client, Server};
use nix::sys::signal::Signal;

use crate::support::{connect, debian_lacks, open};

/// How many processes serve: all that descend from the listener, without it.
fn serving(server: &Server) -> usize {
    let mut parents = vec![server.pid().as_raw()];
    let mut count = 0;
    while let Some(parent) = parents.pop() {
        let below = children(parent);
        count += below.len();
        parents.extend(below);
    }
    count
}

#[test]
fn shared_isolation_serves_all_clients_from_one_process() {
    if debian_lacks("--isolation") {
        return;
    }
    let mut server = Server::nbdkit(["--isolation=shared", "memory", "1M"]).start();
    let mut clients: Vec<_> = (0..3).map(|_| server.connect()).collect();
    clients.iter_mut().for_each(open);
    assert_eq!(serving(&server), 1, "one process for everybody");
    assert_eq!(clients[0].call(&Ask::write(100, *b"shared")).expect("a reply").error, None);
    for client in &mut clients {
        assert_eq!(client.call(&Ask::read(100, 6)).expect("a reply").data, b"shared");
    }
    // One that leaves takes nobody with it.
    drop(clients.pop());
    assert_eq!(clients[1].call(&Ask::read(100, 6)).expect("a reply").data, b"shared");
    assert!(server.stop().success());
    assert_eq!(server.stderr_text_after_end(), "");
}

#[test]
fn isolated_connections_have_a_process_each() {
    if debian_lacks("--isolation") {
        return;
    }
    let server = Server::nbdkit(["--isolation=connection", "memory", "1M"]).start();
    let mut clients: Vec<_> = (0..3).map(|_| server.connect()).collect();
    clients.iter_mut().for_each(open);
    // The template is the fourth.
    assert_eq!(serving(&server), 4);
    drop(clients);
    eventually("the workers are gone", || serving(&server) == 1);
}

#[test]
fn clients_of_a_shared_process_do_not_wait_for_one_another() {
    if debian_lacks("--isolation") {
        return;
    }
    let server = Server::nbdkit(["--isolation=shared", "--filter=delay", "null", "1M"])
        .arg("rdelay=2s")
        .start();
    let mut clients: Vec<_> = (0..8).map(|_| server.connect()).collect();
    clients.iter_mut().for_each(open);
    let began = Instant::now();
    for client in &mut clients {
        client.send(&Ask::read(0, 512)).expect("sent");
    }
    for client in &mut clients {
        assert_eq!(client.receive().expect("a reply").error, None);
    }
    assert!(began.elapsed() < Duration::from_secs(14), "{:?}", began.elapsed());
}

#[test]
fn a_silent_client_of_a_shared_process_holds_up_nobody() {
    if debian_lacks("--isolation") {
        return;
    }
    let server = Server::nbdkit(["--isolation=shared", "memory", "1M"]).start();
    let mut silent: Vec<_> = (0..20).map(|_| server.connect()).collect();
    for client in &mut silent {
        client.greeting().expect("a greeting");
    }
    let mut client = server.connect();
    open(&mut client);
    assert_eq!(client.call(&Ask::read(0, 512)).expect("a reply").error, None);
}

#[test]
fn a_shared_process_ends_with_its_clients_connected() {
    if debian_lacks("--isolation") {
        return;
    }
    let mut server = Server::nbdkit(["--isolation=shared", "memory", "1M"]).start();
    let mut clients: Vec<_> = (0..3).map(|_| server.connect()).collect();
    clients.iter_mut().for_each(open);
    assert!(server.stop().success());
    for client in &mut clients {
        client.expect_close().expect("closed");
    }
}

/// A server that takes one connection at a time.
fn one_at_a_time(options: &[&str]) -> Server {
    Server::nbdkit(options)
        .args(["--filter=noparallel", "memory", "1M", "serialize=connections"])
        .start()
}

/// Checks that the server says nothing for a while.
fn assert_waits(client: &mut Client<UnixStream>) {
    client.transport().set_timeout(Duration::from_millis(700)).expect("set");
    match client.receive_raw(1) {
        Err(Failure::TimedOut) => {}
        other => panic!("served beside another client: {other:02x?}"),
    }
    client.transport().set_timeout(nbdkit_tests::client::TIMEOUT).expect("set");
}

#[test]
fn the_second_client_waits_until_the_first_has_gone() {
    let server = one_at_a_time(&[]);
    let mut first = server.connect();
    open(&mut first);
    let mut second = server.connect();
    assert_waits(&mut second);
    assert_eq!(first.call(&Ask::write(0, *b"first")).expect("a reply").error, None);
    first.disconnect().expect("sent");
    open(&mut second);
    assert_eq!(second.call(&Ask::read(0, 5)).expect("a reply").data, b"first");
}

#[test]
fn a_first_client_that_vanishes_makes_room_too() {
    let server = one_at_a_time(&[]);
    let mut first = server.connect();
    open(&mut first);
    let mut second = server.connect();
    assert_waits(&mut second);
    drop(first);
    open(&mut second);
}

#[test]
fn a_client_that_only_greets_has_its_turn_like_any_other() {
    let server = one_at_a_time(&[]);
    let mut first = server.connect();
    first.handshake().expect("a greeting");
    let mut second = server.connect();
    assert_waits(&mut second);
    assert_eq!(first.go("", &[]).expect("a reply").end.reply, Rep::ACK);
    drop(first);
    open(&mut second);
}

#[test]
fn clients_that_gave_up_waiting_are_passed_over() {
    let server = one_at_a_time(&[]);
    let mut first = server.connect();
    open(&mut first);
    let impatient: Vec<_> = (0..5).map(|_| server.connect()).collect();
    std::thread::sleep(Duration::from_millis(100));
    drop(impatient);
    let mut last = server.connect();
    drop(first);
    open(&mut last);
    assert_eq!(last.call(&Ask::read(0, 512)).expect("a reply").error, None);
}

#[test]
fn many_clients_are_all_served_one_after_the_other() {
    let server = one_at_a_time(&[]);
    let socket = server.socket();
    let busy = AtomicUsize::new(0);
    let visit = || {
        let mut client = connect(socket);
        open(&mut client);
        let beside = busy.fetch_add(1, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(30));
        busy.fetch_sub(1, Ordering::SeqCst);
        client.disconnect().expect("sent");
        client.expect_close().expect("closed");
        beside
    };
    let beside: Vec<usize> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..8).map(|_| scope.spawn(visit)).collect();
        clients.into_iter().map(|client| client.join().expect("served")).collect()
    });
    assert_eq!(beside, [0; 8]);
}

#[test]
fn a_server_ends_while_a_client_waits() {
    if debian_lacks("an end while clients are connected: it waits for them") {
        return;
    }
    let mut server = one_at_a_time(&[]);
    let mut first = server.connect();
    open(&mut first);
    let mut second = server.connect();
    assert_waits(&mut second);
    server.signal(Signal::SIGTERM);
    assert!(server.wait().success());
    first.expect_close().expect("closed");
    // It may have been greeted in the last moment; it is not left hanging.
    loop {
        match second.receive_raw(1) {
            Ok(_) => {}
            Err(Failure::TimedOut) => panic!("the waiting client hangs"),
            Err(_) => break,
        }
    }
}

#[test]
fn one_at_a_time_holds_in_a_shared_process_too() {
    if debian_lacks("--isolation") {
        return;
    }
    let mut server = one_at_a_time(&["--isolation=shared"]);
    let mut first = server.connect();
    open(&mut first);
    let mut second = server.connect();
    assert_waits(&mut second);
    drop(first);
    open(&mut second);
    let mut third = server.connect();
    assert_waits(&mut third);
    assert!(server.stop().success());
}
