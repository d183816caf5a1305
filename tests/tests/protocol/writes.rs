//! Large writes to a file, which go there as they come: in whole and in pieces, alone and between
//! other requests, and of clients that vanish.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nbd_protocol::constants::{Command, CommandFlags, NbdError};
use nbd_protocol::transmission::Request;
use nbdkit_tests::client::{Headers, Transport};
use nbdkit_tests::{Ask, Client, Server};

use super::{MIB, assert_still_serves, open, ours_only};

const SIZE: usize = 8 << 20;
/// What is not half written.
const BLOCK: usize = 4096;

/// A server of a file of `0xee`, and where that is.
fn server(script: Option<&str>) -> (Server, PathBuf) {
    let mut builder = Server::nbdkit(["file", "{dir}/disk"]);
    let path = builder.dir().path().join("disk");
    fs::write(&path, vec![0xee; SIZE]).expect("a disk");
    if let Some(script) = script {
        builder = builder.through_shell(script);
    }
    (builder.start(), path)
}

/// `length` bytes that differ from those with another `seed`.
fn data(seed: usize, length: usize) -> Vec<u8> {
    (0..length).map(|n| (n / 251 + n + seed * 7) as u8).collect()
}

/// Writes of every size around the limits, a batch of them at a time, with reads and small writes
/// in between.
const WRITES: [(usize, usize); 12] = [
    (0, 131_072),
    (4096, 262_144),
    (300_000, 131_071),
    (500_001, 131_073),
    (700_003, 262_111),
    (1_000_000, 7),
    (1_048_576, 1_048_576),
    (2_097_152, 1_048_577),
    (3_200_000, 300),
    (3_300_001, 2_000_003),
    (5_400_000, 131_072),
    (5_600_000, 2_788_608),
];

fn writes_arrive<T: Transport>(mut client: Client<T>, path: &Path) {
    let mut expected = vec![0xee; SIZE];
    for (round, batch) in [(1, 1), (2, 3), (3, 12)] {
        for (group, writes) in WRITES.chunks(batch).enumerate() {
            for (index, (offset, length)) in writes.iter().copied().enumerate() {
                let bytes = data(round * 100 + group * 12 + index, length);
                expected[offset..offset + length].copy_from_slice(&bytes);
                client.send(&Ask::write(offset as u64, bytes)).expect("sent");
                client.send(&Ask::read(SIZE as u64 - 10, 10)).expect("sent");
            }
            for _ in 0..2 * writes.len() {
                assert_eq!(client.receive().expect("a reply").error, None);
            }
        }
        assert!(fs::read(path).expect("the disk") == expected, "round {round}");
    }
}

#[test]
fn large_writes_arrive_whole_with_every_kind_of_header() {
    let (server, path) = server(None);
    for headers in [Headers::Simple, Headers::Structured] {
        fs::write(&path, vec![0xee; SIZE]).expect("a fresh disk");
        writes_arrive(open(&server, headers), &path);
    }
    if ours_only("extended headers") {
        fs::write(&path, vec![0xee; SIZE]).expect("a fresh disk");
        writes_arrive(open(&server, Headers::Extended), &path);
    }
}

#[test]
fn large_writes_arrive_whole_by_tcp() {
    let builder = Server::nbdkit(["file", "{dir}/disk"]).tcp();
    let path = builder.dir().path().join("disk");
    fs::write(&path, vec![0xee; SIZE]).expect("a disk");
    let server = builder.start();
    let mut client = server.connect_tcp();
    client.handshake().expect("a fixed newstyle handshake");
    client.go("", &[]).expect("a reply");
    writes_arrive(client, &path);
}

/// Filters that change nothing about a write, and one that moves it.
#[test]
fn large_writes_go_through_filters_as_they_come() {
    let filters = ["nozero", "offset", "noextents", "error"].map(|it| format!("--filter={it}"));
    let builder = Server::nbdkit(filters).args(["file", "{dir}/disk"]).args([
        "offset=1M",
        "error-pread=EIO",
        "error-pread-rate=0%",
    ]);
    let path = builder.dir().path().join("disk");
    let mut expected = vec![0xee; SIZE];
    fs::write(&path, &expected).expect("a disk");
    let server = builder.start();
    let mut client = open(&server, Headers::Structured);
    let shift = MIB as usize;
    for (seed, (offset, length)) in WRITES.into_iter().enumerate() {
        if offset + length <= SIZE - shift {
            let bytes = data(seed, length);
            expected[shift + offset..][..length].copy_from_slice(&bytes);
            client.call(&Ask::write(offset as u64, bytes)).expect("a reply");
        }
    }
    assert!(fs::read(&path).expect("the disk") == expected);
    if ours_only("large writes that are not kept in memory") {
        announce(&mut client, 0, &vec![0x11; 262_144]);
        client.send_raw(&[0x11; 100_000]).expect("sent");
        let begun = || fs::read(&path).expect("the disk")[shift..].starts_with(&[0x11; 65_536]);
        for _ in 0..1000 {
            if begun() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("the filters keep the writes from the file");
    }
}

/// Sends the header of a write.
fn announce(client: &mut Client<UnixStream>, offset: usize, payload: &[u8]) {
    let cookie = client.cookie();
    let request = Request {
        flags: CommandFlags::empty(),
        command: Command::WRITE,
        cookie,
        offset: offset as u64,
        length: payload.len() as u64,
    };
    client.expect_reply_to(&request, payload);
    client.send_raw(&request.encode()).expect("sent");
}

#[test]
fn a_large_write_may_come_byte_by_byte() {
    let (server, path) = server(None);
    let mut client = open(&server, Headers::Structured);
    let mut expected = vec![0xee; SIZE];
    // Crumbs before the payload's middle, in its middle, and at its end; more than a pipe has room
    // for.
    for (seed, offset, crumbs) in [(1, 0, 0), (2, 4096, 100_000), (3, 1_000_001, 199_000)] {
        let bytes = data(seed, 200_000);
        expected[offset..offset + bytes.len()].copy_from_slice(&bytes);
        announce(&mut client, offset, &bytes);
        client.send_raw(&bytes[..crumbs]).expect("sent");
        std::thread::sleep(Duration::from_millis(20));
        for byte in bytes[crumbs..crumbs + 1000].chunks(1) {
            client.send_raw(byte).expect("sent");
        }
        std::thread::sleep(Duration::from_millis(20));
        client.send_raw(&bytes[crumbs + 1000..]).expect("sent");
        assert_eq!(client.receive().expect("a reply").error, None);
    }
    assert!(fs::read(&path).expect("the disk") == expected);
}

#[test]
fn a_client_that_vanishes_in_a_write_leaves_no_half_written_block() {
    let (server, path) = server(None);
    for (sent, offset) in [(100_000, 0), (150_001, 4096), (5, 8192), (262_143, 12_345)] {
        fs::write(&path, vec![0xee; SIZE]).expect("a fresh disk");
        let mut client = open(&server, Headers::Structured);
        // The first large write shows the server what to expect.
        client.call(&Ask::write(4 * MIB, data(9, 262_144))).expect("a reply");
        let bytes = vec![0x11; 262_144];
        announce(&mut client, offset, &bytes);
        client.send_raw(&bytes[..sent]).expect("sent");
        drop(client);
        assert_still_serves(&server);
        let is_torn = || {
            let disk = fs::read(&path).expect("the disk");
            let mut blocks = disk[..MIB as usize].chunks(BLOCK).enumerate();
            blocks.any(|(number, block)| {
                // The first bytes of the first block are before the write.
                let within = &block[offset.saturating_sub(number * BLOCK).min(BLOCK)..];
                within.iter().any(|byte| *byte != within[0])
            })
        };
        std::thread::sleep(Duration::from_millis(50));
        assert!(!is_torn(), "{sent} {offset}");
    }
}

/// setrlimit(2): a process that may not write that far.
#[test]
fn a_large_write_that_fails_is_drained_and_answered() {
    if !ours_only("a handler for SIGXFSZ") {
        return;
    }
    let (server, path) = server(Some(r#"ulimit -f 4096; exec "$0" "$@""#));
    let mut client = open(&server, Headers::Structured);
    let limit = 2 * MIB;
    let far = client.call(&Ask::write(limit, [1; 10])).expect("a reply").nbd_error();
    assert_eq!(far, Some(NbdError::NoSpc));
    for (offset, length) in [(limit, 262_144), (limit - 65_536, 1_000_000), (limit + 1, 200_001)] {
        for _ in 0..2 {
            let reply = client.call(&Ask::write(offset, data(1, length))).expect("a reply");
            assert_eq!(reply.nbd_error(), far, "{offset}+{length}");
        }
        let before = data(2, 131_072);
        client.call(&Ask::write(0, before.clone())).expect("a reply");
        assert_eq!(client.call(&Ask::read(0, 131_072)).expect("a reply").data, before);
    }
    assert_eq!(fs::metadata(&path).expect("the disk").len(), SIZE as u64);
}
