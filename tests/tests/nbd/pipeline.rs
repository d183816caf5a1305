//! Requests that are in flight without a thread for each, and how they end.

use nbd_protocol::constants::{Command, CommandFlags};
use nbdkit_tests::processes::{eventually, is_alive, threads};
use nbdkit_tests::server::ours;
use nbdkit_tests::tls::{Authority, KeyType, is_possible};
use nbdkit_tests::{Ask, TempDir};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{ESHUTDOWN, socket};

/// As many as are in flight at once.
const MANY: u64 = 16;

/// Sends writes and reads of so many bytes, then receives all replies; the contents have to be
/// right.
macro_rules! exchange {
    ($client:expr, $round:expr, $size:expr) => {
        let size: u64 = $size;
        let data = |slot: u64| vec![(slot * 7 + $round) as u8; size as usize];
        let mut slots = std::collections::HashMap::new();
        for slot in 0..MANY {
            $client.send(&Ask::write(slot * 2 * size, data(slot))).unwrap();
        }
        for _ in 0..MANY {
            assert_eq!($client.receive().unwrap().error, None);
        }
        for slot in 0..MANY {
            slots.insert($client.send(&Ask::read(slot * 2 * size, size)).unwrap(), slot);
        }
        for _ in 0..MANY {
            let reply = $client.receive().unwrap();
            assert!(reply.data == data(slots[&reply.cookie]));
        }
    };
}

#[test]
fn requests_take_no_threads() {
    let upstream = ours(&["memory", "16M"]).start();
    for (filters, pipelined) in [
        (&[][..], true),
        (&["--filter=nofilter", "--filter=offset"], true),
        (&["--filter=blocksize-policy"], true),
        // A filter that has to be told of each request.
        (&["--filter=count"], false),
    ] {
        let server = ours(&[filters, &["nbd", &socket(&upstream)]].concat()).start();
        let mut client = server.connected("");
        let [worker] = server.workers()[..] else { panic!("one client") };
        for round in 0..20 {
            exchange!(client, round, 4096);
            exchange!(client, round, [1000, 40_000, 200_000, 524_288][round as usize % 4]);
        }
        // How the requests come decides whether a pool is needed, so that is not checked.
        if pipelined {
            assert_eq!(threads(worker), 1, "{filters:?}");
        }
        let flush = Ask::flush();
        assert_eq!(client.call(&flush).unwrap().error, None);
        exchange!(client, 100, 4096);
        client.disconnect().unwrap();
    }
}

/// What has to wait for the others to end comes among them: a flush, a long read, FUA.
#[test]
fn other_requests_come_between() {
    let upstream = ours(&["memory", "1M"]).start();
    let server = ours(&["nbd", &socket(&upstream)]).start();
    let mut client = server.connected("");
    for round in 0..30_u8 {
        for slot in 0..MANY {
            client.send(&Ask::write(slot * 4096, [round; 4096])).unwrap();
            client.send(&Ask::read(slot * 4096, 512)).unwrap();
        }
        client.send(&Ask::flush()).unwrap();
        client.send(&Ask::read(0, 200_000)).unwrap();
        client.send(&Ask::write(0, [round; 512]).flags(CommandFlags::FUA)).unwrap();
        client.send(&Ask::read(900_000, 10)).unwrap();
        for _ in 0..2 * MANY + 4 {
            assert_eq!(client.receive().unwrap().error, None);
        }
    }
    assert_eq!(client.call(&Ask::read(0, 65_536)).unwrap().data, [29; 65_536]);
}

/// NBD protocol, `NBD_CMD_DISC`: "the server MUST handle all outstanding requests".
#[test]
fn every_request_is_replied_to_when_the_client_disconnects() {
    let upstream = ours(&["--filter=delay", "memory", "1M", "delay-read=300ms"]).start();
    let server = ours(&["nbd", &socket(&upstream)]).start();
    let mut client = server.connected("");
    for slot in 0..MANY {
        client.send(&Ask::read(slot, 1)).unwrap();
    }
    client.send(&Ask::new(Command::DISC, 0, 0)).unwrap();
    for _ in 0..MANY {
        assert_eq!(client.receive().unwrap().error, None);
    }
}

#[test]
fn every_request_fails_when_the_server_dies() {
    let upstream = ours(&["--filter=delay", "memory", "1M", "delay-read=3600"]).start();
    let server = ours(&["nbd", &socket(&upstream)]).start();
    let mut client = server.connected("");
    for slot in 0..MANY {
        client.send(&Ask::read(slot, 1)).unwrap();
    }
    let [worker] = upstream.workers()[..] else { panic!("one connection") };
    eventually("the requests are in flight", || threads(worker) > 8);
    kill(Pid::from_raw(worker), Signal::SIGKILL).unwrap();
    for _ in 0..MANY {
        let error = client.receive().unwrap().error.map_or(0, |error| error.code);
        assert_eq!(error, ESHUTDOWN);
    }
    assert!(client.call(&Ask::read(0, 1)).unwrap().error.is_some());
}

/// The server says nothing; when its client has gone, the worker does not wait for it.
#[test]
fn a_client_that_has_gone_is_not_waited_for() {
    let upstream = ours(&["--filter=delay", "memory", "1M", "delay-read=3600"]).start();
    let mut server = ours(&["nbd", &socket(&upstream)]).start();
    let mut client = server.connected("");
    let [worker] = server.workers()[..] else { panic!("one client") };
    for slot in 0..MANY {
        client.send(&Ask::read(slot, 1)).unwrap();
    }
    drop(client);
    eventually("its worker has ended", || !is_alive(worker));
    let mut other = server.connected("");
    for slot in 0..MANY {
        other.send(&Ask::read(slot, 1)).unwrap();
    }
    assert!(server.stop().success());
}

/// What has been decrypted is not seen by polling the socket.
#[test]
fn the_client_may_use_tls() {
    if !is_possible() {
        return;
    }
    let dir = TempDir::new();
    let authority = Authority::new(dir.path(), "authority");
    authority.issue_server(dir.path(), KeyType::Ecdsa);
    let upstream = ours(&["memory", "1M"]).start();
    let pki = format!("--tls-certificates={}", dir.path().display());
    let server = ours(&["--tls=require", &pki, "nbd", &socket(&upstream)]).start();
    let mut client = server.connect();
    client.handshake().unwrap();
    let mut client = client.starttls(authority.client_config(None)).unwrap();
    assert!(client.go("", &[]).unwrap().export().is_some());
    let [worker] = server.workers()[..] else { panic!("one client") };
    for round in 0..20 {
        exchange!(client, round, 4096);
        exchange!(client, round, 30_000);
    }
    assert_eq!(threads(worker), 1);
}
