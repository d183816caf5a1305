//! Attacks of a worker whose stack has declared endpoints: on the broker that connects to them, and
//! past it.

use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use nbdkit_tests::Server;
use nbdkit_tests::processes::eventually;
use nbdkit_tests::red_team::attack;
use nix::libc;
use nix::sys::socket::Backlog;
use nix::unistd::geteuid;

use crate::bystander::{Bystander, Work};
use crate::confinement::{
    CALLS, End, NAMESPACES, PATHS, Starter, as_root, builder, carry_out, carry_out_beside, differs,
    is_shown_here,
};
use crate::server;

use End::{Fails, Refused, Succeeds};

/// A port where somebody listens.
fn listener() -> (TcpListener, u16) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let port = listener.local_addr().expect("bound").port();
    (listener, port)
}

/// With that port as its only endpoint.
fn connecting(port: u16) -> Server {
    server(&["redteam"]).arg(format!("endpoint=tcp:127.0.0.1:{port}")).start()
}

/// `Connect`, in hexadecimal.
fn connect(endpoint: u32, attempt: u32) -> String {
    let number = |number: u32| number.to_le_bytes().map(|byte| format!("{byte:02x}")).concat();
    format!("01000000{}{}", number(endpoint), number(attempt))
}

/// `Connecting`, with a socket, and nothing behind it.
const CONNECTING: &str = "0300000000+1";

/// `Refused`, and without one.
fn refused(errno: i32) -> String {
    format!("01000000{errno:02x}000000+0")
}

#[test]
fn the_broker_connects_to_what_was_declared_and_nothing_else() {
    let (listener, port) = listener();
    let server = connecting(port);
    let bystander = Bystander::start(&server, "undeclared endpoints", Work::Writes(0));
    let questions = [
        (connect(0, 0), CONNECTING.to_owned()),
        (connect(1, 0), refused(libc::EACCES)),
        (connect(u32::MAX, u32::MAX), refused(libc::EACCES)),
        (connect(0, 1), refused(libc::EADDRNOTAVAIL)),
        (connect(0, u32::MAX), refused(libc::EADDRNOTAVAIL)),
        // No path is declared, and there is none to be got at.
        ("00000000000000000000000000".to_owned(), refused(libc::EACCES)),
        (connect(0, 0), CONNECTING.to_owned()),
    ];
    let packets: Vec<_> = questions.iter().map(|(question, _)| question.as_str()).collect();
    let expected: Vec<_> = questions.iter().map(|(_, answer)| answer.as_str()).collect();
    let outcome = attack(&server, &format!("say-to-broker={}", packets.join(",")));
    assert_eq!(outcome, Some(format!("ok {}", expected.join(","))));
    // Those were real, and are closed with the worker.
    for _ in 0..2 {
        let (mut client, _) = listener.accept().expect("a connection");
        assert_eq!(client.read(&mut [0]).expect("closed"), 0);
    }
    bystander.finish();
}

#[test]
fn a_channel_that_breaks_the_rules_of_connecting_is_closed() {
    let (_listener, port) = listener();
    let server = connecting(port);
    for (what, packet) in [
        ("half an attempt", "010000000000000000".to_owned()),
        ("more behind it", format!("{}00", connect(0, 0))),
    ] {
        let text = format!("say-to-broker={packet}");
        assert_eq!(attack(&server, &text).as_deref(), Some("ok closed"), "{what}");
    }
    let _ = server.wait_for_stderr("sent an invalid message to the broker, its channel is closed");
    let good = format!("say-to-broker={}", connect(0, 0));
    assert_eq!(attack(&server, &good), Some(format!("ok {CONNECTING}")));
}

#[test]
fn a_worker_that_connects_without_end_waits_and_others_do_not() {
    let (_listener, port) = listener();
    let server = connecting(port);
    let bystander = Bystander::start(&server, "24 connections", Work::Writes(0));
    let started = Instant::now();
    std::thread::scope(|scope| {
        let flood = scope.spawn(|| attack(&server, "flood-connect=24"));
        let _ = server.wait_for_stderr("connects too often and has to wait");
        let good = format!("say-to-broker={}", connect(0, 0));
        assert_eq!(attack(&server, &good), Some(format!("ok {CONNECTING}")));
        assert!(!flood.is_finished(), "the flood still waits");
        assert_eq!(flood.join().expect("it was served").as_deref(), Some("ok"));
    });
    assert!(started.elapsed() > Duration::from_millis(1900), "eight at 250 ms each");
    bystander.finish();
}

/// A port that answers no SYN: its queue of connections is full, and nobody accepts them.
fn silent() -> (TcpListener, Vec<TcpStream>, u16) {
    let (listener, port) = listener();
    nix::sys::socket::listen(&listener, Backlog::new(1).expect("small")).expect("listening");
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let connect = || TcpStream::connect_timeout(&address, Duration::from_millis(200)).ok();
    let queue = std::iter::from_fn(connect).take(100).collect();
    (listener, queue, port)
}

/// A socket that is still about to be connected is in the machine's network, and TCP fast open
/// needs no connect(2).
#[test]
fn a_socket_of_the_brokers_is_connected_to_nothing_else() {
    let (_listener, _queue, declared) = silent();
    let starters = [Starter::Root, Starter::User];
    for starter in starters.into_iter().filter(|it| geteuid().is_root() || *it == Starter::User) {
        let ends = [(0, Fails(libc::EOPNOTSUPP)), (CALLS, Succeeds)];
        for (skip, end) in ends.into_iter().filter(|(skip, _)| is_shown_here(*skip)) {
            let (other, port) = listener();
            let endpoint = format!("endpoint=tcp:127.0.0.1:{declared}");
            let server = builder(starter, skip, &["redteam", &endpoint]).start();
            assert_eq!(carry_out(&server, &format!("fast-open={port}")).0, end, "{starter:?}");
            other.set_nonblocking(true).expect("ours");
            match end {
                Succeeds => eventually("a connection", || other.accept().is_ok()),
                _ => assert!(other.accept().is_err(), "{starter:?}"),
            }
        }
    }
}

/// What stops a worker that makes its own socket.
struct Row {
    /// The endpoint is the very one that it has declared.
    attack: &'static str,
    /// Without which layers: what it comes to for root and for an ordinary user. All layers first.
    ends: &'static [(u32, End, End)],
}

const OWN: &[Row] = &[
    Row {
        attack: "connect={port}",
        ends: &[
            (0, Refused("socket"), Refused("socket")),
            (CALLS, Fails(libc::EACCES), Fails(libc::EACCES)),
            (CALLS | PATHS, Fails(libc::ENETUNREACH), Succeeds),
            (CALLS | PATHS | NAMESPACES, Succeeds, Succeeds),
        ],
    },
    // Sockets of the Unix domain that have a path are beyond Landlock and namespaces.
    Row {
        attack: "connect-unix={dir}/socket",
        ends: &[(0, Refused("socket"), Refused("socket")), (CALLS, Succeeds, Succeeds)],
    },
];

fn run(starter: Starter) {
    let (_tcp, port) = listener();
    let mut wrong = Vec::new();
    for Row { attack, ends } in OWN {
        for (skip, for_root, for_user) in ends.iter().filter(|(skip, ..)| is_shown_here(*skip)) {
            let expected = if starter == Starter::Root { for_root } else { for_user };
            let builder = builder(starter, *skip, &["redteam", "endpoint=unix:{dir}/socket"]);
            let open = || std::os::unix::fs::PermissionsExt::from_mode(0o777);
            std::fs::set_permissions(builder.dir().path(), open()).expect("open to all");
            let path = builder.dir().join("socket");
            let _unix = UnixListener::bind(&path).expect("a socket");
            std::fs::set_permissions(&path, open()).expect("open to all");
            let server = builder.arg(format!("endpoint=tcp:127.0.0.1:{port}")).start();
            let dir = server.dir().path().display().to_string();
            let text = attack.replace("{port}", &port.to_string()).replace("{dir}", &dir);
            let end = carry_out_beside(&server, attack, &text, Work::Writes(0));
            if end != *expected {
                wrong.push(differs(starter, *skip, &text, &end, expected));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
#[cfg(target_arch = "x86_64")]
fn a_worker_of_root_makes_no_socket_of_its_own() {
    as_root(run);
}

#[test]
#[cfg(target_arch = "x86_64")]
fn a_worker_of_an_ordinary_user_makes_none_either() {
    run(Starter::User);
}
