//! Reads, whole and in chunks.

use nbd_protocol::constants::{CommandFlags, NbdError};
use nbdkit_tests::client::{Chunk, Headers};
use nbdkit_tests::{Ask, Server};

use super::{MIB, memory, open, ours_only};

#[test]
fn reads_return_what_was_written_with_every_kind_of_header() {
    let server = memory();
    let mut writer = open(&server, Headers::Simple);
    let data: Vec<u8> = (0..=255).cycle().take(70_000).collect();
    writer.call(&Ask::write(1000, data.clone())).expect("a reply");
    for headers in [Headers::Simple, Headers::Structured] {
        let mut client = open(&server, headers);
        let reply = client.call(&Ask::read(999, 70_002)).expect("a reply");
        let expected = [&[0], data.as_slice(), &[0]].concat();
        assert!(reply.data == expected, "{headers:?}");
    }
}

#[test]
fn reads_of_single_bytes_at_every_edge() {
    let server = Server::nbdkit(["pattern", "9223372036854775807"]).start();
    let mut client = open(&server, Headers::Structured);
    let largest = i64::MAX as u64;
    for offset in [0, 1, 7, 8, 4095, 4096, (1 << 32) - 1, 1 << 32, (1 << 62) + 7, largest - 1] {
        let reply = client.call(&Ask::read(offset, 1)).expect("a reply");
        let place = usize::try_from(offset % 8).expect("small");
        assert_eq!(reply.data, [(offset & !7).to_be_bytes()[place]], "{offset}");
    }
}

#[test]
fn the_largest_read_is_64_mib() {
    let server = Server::nbdkit(["memory", "65M"]).start();
    let mut client = open(&server, Headers::Structured);
    let reply = client.call(&Ask::read(0, 64 * MIB)).expect("a reply");
    assert_eq!(reply.data.len() as u64, 64 * MIB);
    let reply = client.call(&Ask::read(0, 64 * MIB + 1)).expect("a reply");
    assert!(matches!(reply.nbd_error(), Some(NbdError::NoMem | NbdError::Inval)));
    assert_eq!(client.call(&Ask::read(0, 1)).expect("a reply").data, [0]);
}

#[test]
fn reads_beyond_the_end_are_invalid_and_send_no_data() {
    let server = memory();
    for headers in [Headers::Simple, Headers::Structured] {
        let mut client = open(&server, headers);
        for (offset, length) in
            [(MIB, 1), (MIB - 1, 2), (0, MIB + 1), (u64::MAX, 1), (1 << 63, 512)]
        {
            let reply = client.call(&Ask::read(offset, length)).expect("a reply");
            assert_eq!(reply.nbd_error(), Some(NbdError::Inval), "{offset}+{length}");
            assert!(reply.data.is_empty());
        }
        assert_eq!(client.call(&Ask::read(MIB - 1, 1)).expect("a reply").data, [0]);
    }
}

#[test]
fn reads_of_nothing_do_not_end_the_session() {
    let server = memory();
    let mut client = open(&server, Headers::Structured);
    // Success or error is left open by the protocol; a success would have no chunk to carry it but
    // NBD_REPLY_TYPE_NONE.
    client.call(&Ask::read(0, 0)).expect("a reply");
    assert_eq!(client.call(&Ask::read(0, 1)).expect("a reply").data, [0]);
}

#[test]
fn holes_are_sent_as_hole_chunks() {
    if !ours_only("sparse reads") {
        return;
    }
    let server = memory();
    let mut client = open(&server, Headers::Structured);
    client.call(&Ask::write(262_144, vec![9; 65536])).expect("a reply");
    let reply = client.call(&Ask::read(0, MIB)).expect("a reply");
    assert!(reply.data[..262_144].iter().all(|byte| *byte == 0));
    assert!(reply.data[262_144..327_680].iter().all(|byte| *byte == 9));
    assert!(reply.data[327_680..].iter().all(|byte| *byte == 0));
    let holes: u64 = reply
        .chunks
        .iter()
        .map(|chunk| if let Chunk::Hole(_, length) = chunk { *length } else { 0 })
        .sum();
    assert_eq!(holes, MIB - 65536, "{:?}", reply.chunks);
}

#[test]
fn dont_fragment_returns_one_content_chunk() {
    let server = memory();
    let mut client = open(&server, Headers::Structured);
    client.call(&Ask::write(262_144, vec![9; 65536])).expect("a reply");
    let whole = Ask::read(0, MIB).flags(CommandFlags::DF);
    let reply = client.call(&whole).expect("a reply");
    let content = reply.chunks.iter().filter(|chunk| matches!(chunk, Chunk::Data(..)));
    assert_eq!(content.count(), 1, "{:?}", reply.chunks);
    assert!(reply.data[262_144..327_680].iter().all(|byte| *byte == 9));
}

#[test]
fn dont_fragment_without_structured_replies_is_invalid() {
    let server = memory();
    let mut client = open(&server, Headers::Simple);
    let reply = client.call(&Ask::read(0, 512).flags(CommandFlags::DF)).expect("a reply");
    assert_eq!(reply.nbd_error(), Some(NbdError::Inval));
}

#[test]
fn read_errors_carry_a_message_for_people() {
    if !ours_only("messages in error chunks") {
        return;
    }
    let server = memory();
    let mut client = open(&server, Headers::Structured);
    let error = client.call(&Ask::read(MIB, 1)).expect("a reply").error.expect("an error");
    assert!(!error.message.is_empty());
    assert!(!error.message.contains(char::is_control), "{:?}", error.message);
}

#[test]
fn plugin_errors_reach_the_client_by_number() {
    for (errno, expected) in [
        ("EPERM", NbdError::Perm),
        ("EROFS", NbdError::Perm),
        ("EIO", NbdError::Io),
        ("ENOMEM", NbdError::NoMem),
        ("EINVAL", NbdError::Inval),
        ("ENOSPC", NbdError::NoSpc),
        ("EDQUOT", NbdError::NoSpc),
        ("EFBIG", NbdError::NoSpc),
        ("EOVERFLOW", NbdError::Inval),
        ("ENOTSUP", NbdError::Inval),
        ("ESHUTDOWN", NbdError::Shutdown),
    ] {
        let pread = format!("pread=echo '{errno} reason' >&2; exit 1");
        let server = Server::nbdkit(["eval", "get_size=echo 1M", &pread]).start();
        let mut client = open(&server, Headers::Structured);
        let reply = client.call(&Ask::read(0, 512)).expect("a reply");
        assert_eq!(reply.nbd_error(), Some(expected), "{errno}");
        let reply = client.call(&Ask::read(0, 512)).expect("still connected");
        assert_eq!(reply.nbd_error(), Some(expected), "{errno}");
    }
}

#[test]
fn replies_to_many_reads_belong_to_their_cookies() {
    let server = Server::nbdkit(["pattern", "1G"]).start();
    for headers in [Headers::Simple, Headers::Structured] {
        let mut client = open(&server, headers);
        // In bursts: with thousands of bytes of replies unread, the server stops taking requests,
        // as it should.
        for burst in 0..20u64 {
            for number in burst * 25..(burst + 1) * 25 {
                client.send(&Ask::read(number * 4096, 1 + number % 64)).expect("sent");
            }
            for _ in 0..25 {
                let reply = client.receive().expect("a reply");
                assert_eq!(reply.data.len() as u64, reply.request.length);
                let prefix = reply.request.offset.to_be_bytes();
                let length = reply.data.len().min(8);
                assert_eq!(reply.data[..length], prefix[..length]);
            }
        }
    }
}

#[test]
fn slow_requests_do_not_hold_up_fast_ones() {
    let server = Server::nbdkit(["--filter=delay", "memory", "1M", "wdelay=500ms"]).start();
    let mut client = open(&server, Headers::Structured);
    let slow = client.send(&Ask::write(0, [1; 512])).expect("sent");
    let fast = client.send(&Ask::read(4096, 512)).expect("sent");
    assert_eq!(client.receive().expect("a reply").cookie, fast);
    assert_eq!(client.receive().expect("a reply").cookie, slow);
}
