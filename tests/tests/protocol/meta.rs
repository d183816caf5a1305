//! Metadata contexts and block status.

use nbd_protocol::constants::{CommandFlags, NbdError, Opt, Rep};
use nbdkit_tests::client::Headers;
use nbdkit_tests::{Ask, Server};

use super::{MIB, haggling, memory, open, ours_only};

const HOLE_ZERO: u64 = 3;

#[test]
fn base_allocation_is_listed_by_every_query_that_means_it() {
    let server = memory();
    let mut client = haggling(&server);
    client.structured_replies().expect("a reply");
    for (queries, expected) in [
        (&[][..], 1),
        (&["base:"], 1),
        (&["base:allocation"], 1),
        (&["base:frob"], 0),
        (&["x-frob:y"], 0),
        (&["x-frob:y", "base:allocation"], 1),
    ] {
        let answer = client.list_meta_context("", queries).expect("a reply");
        assert_eq!((answer.end.reply, answer.contexts.len()), (Rep::ACK, expected), "{queries:?}");
    }
}

#[test]
fn no_query_selects_no_context() {
    let server = memory();
    let mut client = haggling(&server);
    client.structured_replies().expect("a reply");
    for queries in [&[][..], &["base:"], &["base:frob"], &["x-frob:y"]] {
        let answer = client.set_meta_context("", queries).expect("a reply");
        assert_eq!((answer.end.reply, answer.contexts.len()), (Rep::ACK, 0), "{queries:?}");
    }
    client.go("", &[]).expect("a reply");
    let reply = client.call(&Ask::block_status(0, 512)).expect("a reply");
    assert_eq!(reply.nbd_error(), Some(NbdError::Inval));
}

#[test]
fn a_context_asked_for_twice_is_selected_once() {
    if !ours_only("the removal of repeated contexts") {
        return;
    }
    let server = memory();
    let mut client = haggling(&server);
    client.structured_replies().expect("a reply");
    let queries = ["base:allocation", "base:allocation"];
    let answer = client.set_meta_context("", &queries).expect("a reply");
    assert_eq!(answer.contexts.len(), 1);
}

#[test]
fn contexts_need_structured_replies() {
    let server = memory();
    let mut client = haggling(&server);
    let answer = client.set_meta_context("", &["base:allocation"]).expect("a reply");
    assert!(answer.end.reply.is_error());
    client.go("", &[]).expect("a reply");
    let reply = client.call(&Ask::block_status(0, 512)).expect("a reply");
    assert_eq!(reply.nbd_error(), Some(NbdError::Inval));
}

#[test]
fn contexts_of_another_export_are_not_selected() {
    let server = memory();
    let mut client = haggling(&server);
    client.structured_replies().expect("a reply");
    client.set_meta_context("other", &["base:allocation"]).expect("a reply");
    client.go("", &[]).expect("a reply");
    let reply = client.call(&Ask::block_status(0, 512)).expect("a reply");
    assert_eq!(reply.nbd_error(), Some(NbdError::Inval));
}

#[test]
fn malformed_queries_are_invalid_and_forget_the_selection() {
    let server = memory();
    let mut client = haggling(&server);
    client.structured_replies().expect("a reply");
    client.set_meta_context("", &["base:allocation"]).expect("a reply");
    let malformed: [&[u8]; 5] = [
        b"",
        b"\0\0\0\0\0\0\0",
        b"\0\0\0\0\0\0\0\x01",
        b"\0\0\0\0\0\0\0\x01\0\0\0\x05abc",
        b"\0\0\0\0\xff\xff\xff\xff",
    ];
    for payload in malformed {
        for option in [Opt::LIST_META_CONTEXT, Opt::SET_META_CONTEXT] {
            let reply = client.simple_option(option, payload).expect("a reply");
            assert_eq!(reply.reply, Rep::ERR_INVALID, "{option} {payload:02x?}");
        }
    }
    client.go("", &[]).expect("a reply");
    let reply = client.call(&Ask::block_status(0, 512)).expect("a reply");
    assert_eq!(
        reply.nbd_error(),
        Some(NbdError::Inval),
        "even a failed choice replaces the last one"
    );
}

#[test]
fn bytes_after_the_last_query_are_invalid() {
    if !ours_only("a check for left-over bytes") {
        return;
    }
    let server = memory();
    let mut client = haggling(&server);
    client.structured_replies().expect("a reply");
    for option in [Opt::LIST_META_CONTEXT, Opt::SET_META_CONTEXT] {
        let reply = client.simple_option(option, b"\0\0\0\0\0\0\0\0\0").expect("a reply");
        assert_eq!(reply.reply, Rep::ERR_INVALID);
    }
}

#[test]
fn block_status_shows_what_was_written() {
    let server = memory();
    let mut client = open(&server, Headers::Structured);
    client.call(&Ask::write(131_072, vec![1; 65536])).expect("a reply");
    let reply = client.call(&Ask::block_status(0, MIB)).expect("a reply");
    let expected = [(131_072, HOLE_ZERO), (65536, 0), (MIB - 196_608, HOLE_ZERO)];
    assert_eq!(reply.extents(), expected);
    client.call(&Ask::trim(131_072, 65536)).expect("a reply");
    let reply = client.call(&Ask::block_status(0, MIB)).expect("a reply");
    assert_eq!(reply.extents(), [(MIB, HOLE_ZERO)]);
}

#[test]
fn req_one_returns_one_extent() {
    let server = memory();
    let mut client = open(&server, Headers::Structured);
    client.call(&Ask::write(65536, vec![1; 65536])).expect("a reply");
    let one = Ask::block_status(0, MIB).flags(CommandFlags::REQ_ONE);
    // That there is only one is checked by the client.
    assert_eq!(client.call(&one).expect("a reply").extents(), [(65536, HOLE_ZERO)]);
    let one = Ask::block_status(65536, 512).flags(CommandFlags::REQ_ONE);
    assert_eq!(client.call(&one).expect("a reply").extents(), [(512, 0)]);
}

#[test]
fn block_status_out_of_range_or_of_nothing_is_invalid() {
    let server = memory();
    let mut client = open(&server, Headers::Structured);
    for (offset, length) in [(MIB, 1), (MIB - 1, 2), (u64::MAX, 1), (0, 0)] {
        let reply = client.call(&Ask::block_status(offset, length)).expect("a reply");
        assert_eq!(reply.nbd_error(), Some(NbdError::Inval), "{offset}+{length}");
    }
}

/// CVE-2025-47711: an extent of 4 GiB or more, asked about with the longest 32-bit length.
#[test]
fn the_longest_block_status_request_is_answered() {
    if !ours_only("a fix for CVE-2025-47711") {
        return;
    }
    for size in ["8G", "9223372036854775807"] {
        let server = Server::nbdkit(["null", size]).start();
        let mut client = open(&server, Headers::Structured);
        for length in [u64::from(u32::MAX), u64::from(u32::MAX) - 511, 1 << 31] {
            let reply = client.call(&Ask::block_status(0, length)).expect("a reply");
            assert_eq!(reply.error, None);
            let covered: u64 = reply.status[0].1.iter().map(|(length, _)| length).sum();
            assert!(covered > 0);
            assert!(reply.extents().iter().all(|(_, flags)| *flags == HOLE_ZERO));
        }
    }
}

#[test]
fn plugins_without_extents_are_all_data() {
    let server = Server::nbdkit(["pattern", "1M"]).start();
    let mut client = open(&server, Headers::Structured);
    let reply = client.call(&Ask::block_status(512, 4096)).expect("a reply");
    assert_eq!(reply.extents(), [(4096, 0)]);
}
