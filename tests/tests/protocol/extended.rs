//! Extended headers, which ours has and Debian's nbdkit has not. NBD protocol,
//! `NBD_OPT_EXTENDED_HEADERS`.

use nbd_protocol::constants::{Command, CommandFlags, NbdError, Opt, Rep, TransmissionFlags};
use nbd_protocol::transmission::Request;
use nbdkit_tests::client::{Chunk, Headers};
use nbdkit_tests::{Ask, Server};

use super::{MIB, assert_still_serves, haggling, memory, open, ours_only};

const WHAT: &str = "extended headers";

#[test]
fn every_command_works_with_extended_headers() {
    if !ours_only(WHAT) {
        return;
    }
    let server = memory();
    let mut client = open(&server, Headers::Extended);
    for ask in [
        Ask::write(100, [7; 1000]),
        Ask::write_zeroes(200, 100),
        Ask::trim(400, 100),
        Ask::flush(),
        Ask::cache(0, 4096),
        Ask::block_status(0, MIB),
        Ask::read(0, MIB),
        Ask::read(0, 65536).flags(CommandFlags::DF),
    ] {
        assert_eq!(client.call(&ask).expect("a reply").error, None, "{ask:?}");
    }
    let data = client.call(&Ask::read(99, 102)).expect("a reply").data;
    assert_eq!(data, [&[0], &[7; 100][..], &[0]].concat());
    client.disconnect().expect("sent");
    client.expect_close().expect("closed");
}

#[test]
fn lengths_beyond_32_bits_are_honoured() {
    if !ours_only(WHAT) {
        return;
    }
    let server = Server::nbdkit(["memory", "1T"]).start();
    let mut client = open(&server, Headers::Extended);
    let far = (1 << 39) + 4096;
    client.call(&Ask::write(far, vec![1; 65536])).expect("a reply");
    let status = client.call(&Ask::block_status(0, 1 << 40)).expect("a reply");
    assert!(matches!(status.chunks[0], Chunk::StatusExt(_)));
    let covered: u64 = status.status[0].1.iter().map(|(length, _)| length).sum();
    assert!(covered > 0);
    for ask in [Ask::write_zeroes(0, 1 << 40), Ask::trim(0, 1 << 40), Ask::cache(0, 1 << 40)] {
        let reply = client.call(&ask).expect("a reply");
        assert_eq!(reply.error, None, "{}", ask.command);
    }
    assert_eq!(client.call(&Ask::read(far, 512)).expect("a reply").data, [0; 512]);
}

#[test]
fn a_length_that_overflows_the_offset_is_out_of_range() {
    if !ours_only(WHAT) {
        return;
    }
    let server = memory();
    let mut client = open(&server, Headers::Extended);
    for (offset, length) in [(512, u64::MAX), (u64::MAX, u64::MAX), (0, 1 << 63)] {
        for ask in [Ask::trim(offset, length), Ask::block_status(offset, length)] {
            let reply = client.call(&ask).expect("a reply");
            assert_eq!(reply.nbd_error(), Some(NbdError::Inval), "{offset}+{length}");
        }
        let zero = client.call(&Ask::write_zeroes(offset, length)).expect("a reply");
        assert_eq!(zero.nbd_error(), Some(NbdError::NoSpc));
        assert!(client.call(&Ask::read(offset, length)).expect("a reply").error.is_some());
    }
}

#[test]
fn the_option_refuses_data_and_repetition() {
    if !ours_only(WHAT) {
        return;
    }
    let server = memory();
    let mut client = haggling(&server);
    let with_data = client.simple_option(Opt::EXTENDED_HEADERS, &[0]).expect("a reply");
    assert_eq!(with_data.reply, Rep::ERR_INVALID);
    assert_eq!(client.extended_headers().expect("a reply").reply, Rep::ACK);
    let again = client.simple_option(Opt::EXTENDED_HEADERS, &[]).expect("a reply");
    assert_eq!(again.reply, Rep::ERR_INVALID);
    let weaker = client.simple_option(Opt::STRUCTURED_REPLY, &[]).expect("a reply");
    assert!(weaker.reply.is_error(), "structured replies are implied");
    assert_eq!(client.go("", &[]).expect("a reply").end.reply, Rep::ACK);
    assert_eq!(client.call(&Ask::read(0, 1)).expect("an extended reply").error, None);
}

#[test]
fn structured_replies_may_be_followed_by_extended_headers() {
    if !ours_only(WHAT) {
        return;
    }
    let server = memory();
    let mut client = haggling(&server);
    assert_eq!(client.structured_replies().expect("a reply").reply, Rep::ACK);
    assert_eq!(client.extended_headers().expect("a reply").reply, Rep::ACK);
    assert_eq!(client.go("", &[]).expect("a reply").end.reply, Rep::ACK);
    assert_eq!(client.call(&Ask::read(0, 1)).expect("an extended reply").error, None);
}

#[test]
fn export_name_is_refused_after_extended_headers() {
    if !ours_only(WHAT) {
        return;
    }
    let server = memory();
    let mut client = haggling(&server);
    client.extended_headers().expect("a reply");
    assert!(client.export_name("").is_err());
    assert_still_serves(&server);
}

#[test]
fn a_compact_request_ends_the_session() {
    if !ours_only(WHAT) {
        return;
    }
    let server = memory();
    let mut client = open(&server, Headers::Extended);
    let request = Request {
        flags: CommandFlags::empty(),
        command: Command::READ,
        cookie: 1,
        offset: 0,
        length: 1,
    };
    client.send_raw(&[&request.encode()[..], &[0; 4]].concat()).expect("sent");
    client.expect_close().expect("closed");
    assert_still_serves(&server);
}

#[test]
fn an_extended_request_that_was_not_negotiated_ends_the_session() {
    let server = memory();
    let mut client = open(&server, Headers::Structured);
    let request = Request {
        flags: CommandFlags::empty(),
        command: Command::READ,
        cookie: 1,
        offset: 0,
        length: 1,
    };
    client.send_raw(&request.encode_extended()).expect("sent");
    client.expect_close().expect("closed");
    assert_still_serves(&server);
}

/// The protocol wants the flag on every write; a server that refuses a write without it must still
/// take its payload.
#[test]
fn a_write_without_the_payload_flag_keeps_the_stream_in_step() {
    if !ours_only(WHAT) {
        return;
    }
    let server = memory();
    let mut client = open(&server, Headers::Extended);
    let request = Request {
        flags: CommandFlags::empty(),
        command: Command::WRITE,
        cookie: 9,
        offset: 0,
        length: 512,
    };
    client.send_request(&request, &[1; 512]).expect("sent");
    client.receive().expect("a reply");
    assert_eq!(client.call(&Ask::read(4096, 1)).expect("still in step").data, [0]);
}

#[test]
fn a_payload_where_none_belongs_is_drained_and_refused() {
    if !ours_only(WHAT) {
        return;
    }
    let server = memory();
    let mut client = open(&server, Headers::Extended);
    for command in
        [Command::READ, Command::TRIM, Command::FLUSH, Command::CACHE, Command::WRITE_ZEROES]
    {
        let ask = Ask {
            payload: vec![0x25; 100],
            ..Ask::new(command, 0, 100).flags(CommandFlags::PAYLOAD_LEN)
        };
        let reply = client.call(&ask).expect("a reply");
        assert_eq!(reply.nbd_error(), Some(NbdError::Inval), "{command}");
    }
    assert_eq!(client.call(&Ask::read(0, 1)).expect("still in step").data, [0]);
}

#[test]
fn a_payload_too_long_to_be_drained_ends_the_session() {
    if !ours_only(WHAT) {
        return;
    }
    let server = memory();
    for command in [Command::WRITE, Command::TRIM, Command::BLOCK_STATUS] {
        let mut client = open(&server, Headers::Extended);
        let request = Request {
            flags: CommandFlags::PAYLOAD_LEN,
            command,
            cookie: 1,
            offset: 0,
            length: 1 << 40,
        };
        client.send_raw(&request.encode_extended()).expect("sent");
        client.expect_close().expect("closed");
    }
    assert_still_serves(&server);
}

#[test]
fn block_status_can_be_narrowed_to_contexts() {
    if !ours_only(WHAT) {
        return;
    }
    let server = memory();
    let mut client = open(&server, Headers::Extended);
    if !client.offers(TransmissionFlags::BLOCK_STATUS_PAYLOAD) {
        return;
    }
    let id = client.contexts()[0].0;
    let reply = client.call(&Ask::block_status_in(0, MIB, &[id])).expect("a reply");
    assert_eq!(reply.extents(), [(MIB, 3)]);
    for contexts in [&[id, id][..], &[id + 1]] {
        let reply = client.call(&Ask::block_status_in(0, MIB, contexts)).expect("a reply");
        assert_eq!(reply.nbd_error(), Some(NbdError::Inval), "{contexts:?}");
    }
    for length in [0, 4, 7, 9, 13] {
        let ask = Ask {
            payload: vec![0; length],
            ..Ask::new(Command::BLOCK_STATUS, 0, length as u64).flags(CommandFlags::PAYLOAD_LEN)
        };
        let reply = client.call(&ask).expect("a reply");
        assert_eq!(reply.nbd_error(), Some(NbdError::Inval), "{length} bytes of payload");
    }
    assert_eq!(client.call(&Ask::read(0, 1)).expect("still in step").data, [0]);
}

#[test]
fn holes_and_errors_travel_in_extended_chunks() {
    if !ours_only(WHAT) {
        return;
    }
    let server = memory();
    let mut client = open(&server, Headers::Extended);
    let reply = client.call(&Ask::read(0, MIB)).expect("a reply");
    assert!(
        reply.chunks.iter().any(|chunk| matches!(chunk, Chunk::Hole(..))),
        "{:?}",
        reply.chunks
    );
    // Every reply has an extended header, also that of a command without data: the client checks
    // it.
    let error = client.call(&Ask::read(MIB, 1)).expect("a reply").error.expect("an error");
    assert!(!error.message.is_empty());
    assert_eq!(client.call(&Ask::flush()).expect("a reply").error, None);
}
