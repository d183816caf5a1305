//! `-i`, `-p`, `-4`, `-6` and `--keepalive`, on the loopback interface only.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};

use nbdkit_tests::Client;
use nbdkit_tests::processes::eventually;
use nbdkit_tests::server::{Server, free_port};

use crate::support::{assert_refused, assert_serves, debian_lacks, open};

const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

/// A server on a free port with these options about addresses, and the port.
fn listening(options: &[&str]) -> (Server, u16) {
    let port = free_port();
    let server = Server::nbdkit(options)
        .without_unix_socket()
        .args(["-p", &port.to_string(), "memory", "1M"])
        .start();
    (server, port)
}

fn serves(address: IpAddr, port: u16) -> bool {
    match TcpStream::connect(SocketAddr::new(address, port)) {
        Ok(stream) => {
            assert_serves(&mut Client::new(stream));
            true
        }
        Err(_) => false,
    }
}

fn has_ipv6() -> bool {
    let has = TcpListener::bind((V6, 0)).is_ok();
    if !has {
        eprintln!("SKIPPED in part: this machine has no ::1");
    }
    has
}

/// The addresses of the name localhost, by the machine's own resolver.
fn localhost() -> Vec<IpAddr> {
    ("localhost", 0).to_socket_addrs().unwrap().map(|address| address.ip()).collect()
}

#[test]
fn an_ipv4_address_is_listened_on_alone() {
    let (_server, port) = listening(&["-i", "127.0.0.1"]);
    assert!(serves(V4, port));
    assert!(!serves(V6, port));
    assert!(!serves(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2)), port));
}

#[test]
fn an_ipv6_address_is_listened_on_alone() {
    if !has_ipv6() {
        return;
    }
    let (_server, port) = listening(&["-i", "::1"]);
    assert!(serves(V6, port));
    assert!(!serves(V4, port));
}

#[test]
fn every_address_of_a_name_is_listened_on() {
    let (_server, port) = listening(&["-i", "localhost"]);
    let addresses = localhost();
    assert!(!addresses.is_empty());
    for address in addresses {
        assert!(serves(address, port), "{address}");
    }
}

#[test]
fn a_name_can_be_restricted_to_one_family() {
    for (options, family) in [
        (&["-4"][..], IpAddr::is_ipv4 as fn(&IpAddr) -> bool),
        (&["-6"], IpAddr::is_ipv6),
        (&["--ipv4-only"], IpAddr::is_ipv4),
        (&["--ipv6-only"], IpAddr::is_ipv6),
        // nbdkit(1): "the last one takes effect".
        (&["-6", "-4"], IpAddr::is_ipv4),
        (&["-4", "-6"], IpAddr::is_ipv6),
    ] {
        let arguments = [options, &["-i", "localhost"]].concat();
        let (inside, outside): (Vec<_>, Vec<_>) = localhost().into_iter().partition(family);
        if inside.is_empty() {
            let port = free_port().to_string();
            let arguments = [&arguments[..], &["-f", "-p", &port, "null"]].concat();
            assert_refused(&arguments, &["localhost"]);
            continue;
        }
        let (_server, port) = listening(&arguments);
        assert!(inside.iter().all(|address| serves(*address, port)), "{options:?}");
        assert!(!outside.iter().any(|address| serves(*address, port)), "{options:?}");
    }
}

#[test]
fn an_address_of_the_other_family_is_refused() {
    let port = free_port().to_string();
    for (option, address) in [("-6", "127.0.0.1"), ("-4", "::1")] {
        assert_refused(
            ["-f", option, "-i", address, "-p", &port, "null"],
            &["getaddrinfo", address],
        );
    }
}

#[test]
fn spellings_of_the_options_are_the_same() {
    for option in ["--ipaddr=127.0.0.1", "--ip-addr=127.0.0.1", "-i127.0.0.1"] {
        let (_server, port) = listening(&[option]);
        assert!(serves(V4, port), "{option}");
    }
    let port = free_port();
    let long = format!("--port={port}");
    let _server = Server::nbdkit(["-i", "127.0.0.1", &long, "null"]).without_unix_socket().start();
    assert!(serves(V4, port));
}

#[test]
fn a_port_in_use_is_refused() {
    let holder = TcpListener::bind((V4, 0)).unwrap();
    let port = holder.local_addr().unwrap().port().to_string();
    for foreground in [&["-f"][..], &[]] {
        let arguments = [foreground, &["-i", "127.0.0.1", "-p", &port, "null"]].concat();
        assert_refused(&arguments, &["Address already in use"]);
    }
}

#[test]
fn an_address_that_is_not_this_machines_is_refused() {
    let port = free_port().to_string();
    // 192.0.2.0/24 is for documentation, but a test machine may have one of them: 198.51.100.0/24
    // is, too.
    assert_refused(
        ["-f", "-i", "198.51.100.77", "-p", &port, "null"],
        &["Cannot assign requested address"],
    );
}

#[test]
fn words_that_are_no_port_are_refused() {
    for port in ["notaport", "-1", "10809x", "70000"] {
        if port == "70000" && debian_lacks("a check of the range: it takes the lower 16 bits") {
            return;
        }
        assert_refused(["-f", "-i", "127.0.0.1", "-p", port, "null"], &[port]);
    }
}

#[test]
fn the_port_can_be_used_again_at_once() {
    if debian_lacks("an end while clients are connected: it waits for them") {
        return;
    }
    let port = free_port().to_string();
    for _ in 0..3 {
        let mut server = Server::nbdkit(["-i", "127.0.0.1", "-p", &port, "memory", "1M"])
            .without_unix_socket()
            .start();
        let stream = TcpStream::connect((V4, port.parse().unwrap())).unwrap();
        let mut client = Client::new(stream);
        open(&mut client);
        // The server closes first, so its end of the connection is the one that lingers in
        // TIME_WAIT.
        assert!(server.stop().success());
        client.expect_close().expect("closed");
    }
}

#[test]
fn small_replies_are_not_held_back() {
    let (_server, port) = listening(&["-i", "127.0.0.1"]);
    let mut client = Client::new(TcpStream::connect((V4, port)).unwrap());
    open(&mut client);
    let began = std::time::Instant::now();
    // With Nagle's algorithm on one side and delayed acknowledgement on the other it is 40 ms a
    // piece.
    for _ in 0..200 {
        client.send(&nbdkit_tests::Ask::read(0, 1)).expect("sent");
        client.send(&nbdkit_tests::Ask::read(1, 1)).expect("sent");
        client.receive().expect("a reply");
        client.receive().expect("a reply");
    }
    assert!(began.elapsed().as_secs() < 14, "{:?}", began.elapsed());
}

/// Whether the server's end of the connection has a keepalive timer: `tr` in /proc/net/tcp,
/// proc_net_tcp(5).
fn has_keepalive(server: SocketAddr, client: SocketAddr) -> bool {
    let hex = |address: SocketAddr| format!("0100007F:{:04X}", address.port());
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let row = table.lines().find(|line| {
        let mut fields = line.split_whitespace().skip(1);
        fields.next() == Some(&hex(server)) && fields.next() == Some(&hex(client))
    });
    let timer = row.expect("the connection").split_whitespace().nth(5).unwrap();
    timer.starts_with("02:")
}

#[test]
fn keepalive_is_set_on_connections_unless_it_is_switched_off() {
    if debian_lacks("--keepalive") {
        return;
    }
    for (options, expected) in [
        (&[][..], true),
        (&["--keepalive"], true),
        (&["--keep-alive"], true),
        (&["--no-keepalive"], false),
    ] {
        let (server, port) = listening(&[&["-i", "127.0.0.1"], options].concat());
        let mut client = Client::new(TcpStream::connect((V4, port)).unwrap());
        open(&mut client);
        let here = client.transport().local_addr().unwrap();
        // Other timers, of acknowledgements, come first and soon go.
        let there = SocketAddr::new(V4, port);
        if expected {
            eventually("a keepalive timer", || has_keepalive(there, here));
        } else {
            std::thread::sleep(std::time::Duration::from_millis(500));
            assert!(!has_keepalive(there, here), "{options:?}");
        }
        drop(server);
    }
}

#[test]
fn keepalive_means_nothing_to_a_unix_socket() {
    if debian_lacks("--keepalive") {
        return;
    }
    let mut server = Server::nbdkit(["--keepalive", "null"]).start();
    assert_serves(&mut server.connect());
    assert!(server.stop().success());
    assert_eq!(server.stderr_text_after_end(), "");
}
