//! Every request but reads and block status.

use nbd_protocol::constants::{Command, CommandFlags, NbdError, TransmissionFlags};
use nbd_protocol::transmission::Request;
use nbdkit_tests::client::Headers;
use nbdkit_tests::{Ask, Server};

use super::{MIB, assert_still_serves, memory, open, ours_only};

#[test]
fn writes_zeroes_and_trims_take_effect() {
    let server = memory();
    let mut client = open(&server, Headers::Structured);
    for ask in [
        Ask::write(100, [7; 1000]),
        Ask::write_zeroes(200, 100),
        Ask::trim(400, 100),
        Ask::write(500, [8; 10]).flags(CommandFlags::FUA),
        Ask::write_zeroes(600, 10).flags(CommandFlags::FUA | CommandFlags::NO_HOLE),
        Ask::flush(),
        Ask::cache(0, 4096),
    ] {
        assert_eq!(client.call(&ask).expect("a reply").error, None, "{ask:?}");
    }
    let mut expected = vec![0; 1200];
    expected[100..1100].fill(7);
    expected[200..300].fill(0);
    expected[400..500].fill(0);
    expected[500..510].fill(8);
    expected[600..610].fill(0);
    assert_eq!(client.call(&Ask::read(0, 1200)).expect("a reply").data, expected);
}

#[test]
fn writes_past_the_end_return_enospc_and_are_drained() {
    let server = memory();
    let mut client = open(&server, Headers::Structured);
    for (offset, length) in
        [(MIB, 1), (MIB - 1, 2), (u64::MAX, 1), (u64::MAX - 511, 512), (0, 2 << 20)]
    {
        let reply = client.call(&Ask::write(offset, vec![1; length])).expect("a reply");
        assert_eq!(reply.nbd_error(), Some(NbdError::NoSpc), "{offset}+{length}");
    }
    let reply = client.call(&Ask::read(MIB - 1, 1)).expect("still in step");
    assert_eq!(reply.data, [0], "a refused write writes nothing");
}

#[test]
fn zeroes_past_the_end_return_enospc_and_trims_einval() {
    let server = memory();
    let mut client = open(&server, Headers::Structured);
    for (offset, length) in [(MIB, 1), (MIB - 1, 2), (u64::MAX, u64::from(u32::MAX))] {
        let zero = client.call(&Ask::write_zeroes(offset, length)).expect("a reply");
        assert_eq!(zero.nbd_error(), Some(NbdError::NoSpc));
        let trim = client.call(&Ask::trim(offset, length)).expect("a reply");
        assert_eq!(trim.nbd_error(), Some(NbdError::Inval));
        let cache = client.call(&Ask::cache(offset, length)).expect("a reply");
        assert_eq!(cache.nbd_error(), Some(NbdError::Inval));
    }
}

#[test]
fn a_read_only_export_refuses_changes_with_eperm_and_drains_them() {
    let server = Server::nbdkit(["-r", "memory", "1M"]).start();
    let mut client = open(&server, Headers::Structured);
    assert!(client.offers(TransmissionFlags::READ_ONLY));
    for ask in [Ask::write(0, vec![1; 70_000]), Ask::write_zeroes(0, 512), Ask::trim(0, 512)] {
        let reply = client.call(&ask).expect("a reply");
        assert_eq!(reply.nbd_error(), Some(NbdError::Perm), "{:?}", ask.command);
    }
    assert_eq!(client.call(&Ask::read(0, 1)).expect("still in step").data, [0]);
}

#[test]
fn unknown_commands_are_invalid() {
    let server = memory();
    let mut client = open(&server, Headers::Structured);
    for command in [8, 9, 255, 0xffff] {
        let reply = client.call(&Ask::new(Command(command), 0, 512)).expect("a reply");
        assert_eq!(reply.nbd_error(), Some(NbdError::Inval), "{command}");
    }
    assert_eq!(client.call(&Ask::read(0, 1)).expect("still in step").data, [0]);
}

#[test]
fn flags_that_do_not_belong_to_a_command_are_invalid() {
    let server = memory();
    let mut client = open(&server, Headers::Structured);
    let cases = [
        (Ask::read(0, 512), 0b0101),
        (Ask::write(0, [0; 512]), 0b0001),
        (Ask::flush(), 0b0001),
        (Ask::trim(0, 512), 0b0001),
        (Ask::cache(0, 512), 0b0001),
        (Ask::write_zeroes(0, 512), 0b1_0011),
        (Ask::block_status(0, 512), 0b1001),
    ];
    for (ask, permitted) in cases {
        for bit in 0..16 {
            let flags = CommandFlags::from_bits_retain(1 << bit);
            let reply = client.call(&ask.clone().flags(flags)).expect("a reply");
            let expected = (permitted & (1 << bit) == 0).then_some(NbdError::Inval);
            assert_eq!(reply.nbd_error(), expected, "{} bit {bit}", ask.command);
        }
    }
}

#[test]
fn a_feature_that_was_not_offered_is_refused() {
    let server = Server::nbdkit(["eval", "get_size=echo 1M", "pread=exit 1"]).start();
    let mut client = open(&server, Headers::Structured);
    assert!(!client.offers(TransmissionFlags::SEND_FLUSH));
    let reply = client.call(&Ask::flush()).expect("a reply");
    assert_eq!(reply.nbd_error(), Some(NbdError::Inval));
    let reply = client.call(&Ask::cache(0, 512)).expect("a reply");
    assert_eq!(reply.nbd_error(), Some(NbdError::Inval));
}

/// Debian's nbdkit ends by an assertion, for all its clients.
#[test]
fn a_fast_zero_that_was_not_offered_is_invalid() {
    if !ours_only("a check of NBD_CMD_FLAG_FAST_ZERO against its own offer") {
        return;
    }
    let server =
        Server::nbdkit(["--filter=nozero", "memory", "1M", "zeromode=plugin", "fastzeromode=none"])
            .start();
    let mut client = open(&server, Headers::Structured);
    assert!(!client.offers(TransmissionFlags::SEND_FAST_ZERO));
    let fast = Ask::write_zeroes(0, 512).flags(CommandFlags::FAST_ZERO);
    assert_eq!(client.call(&fast).expect("a reply").nbd_error(), Some(NbdError::Inval));
    assert_still_serves(&server);
}

#[test]
fn a_fast_zero_that_is_not_fast_returns_enotsup() {
    let server =
        Server::nbdkit(["--filter=nozero", "memory", "1M", "zeromode=plugin", "fastzeromode=slow"])
            .start();
    let mut client = open(&server, Headers::Structured);
    client.call(&Ask::write(0, [1; 512])).expect("a reply");
    let fast = Ask::write_zeroes(0, 512).flags(CommandFlags::FAST_ZERO);
    assert_eq!(client.call(&fast).expect("a reply").nbd_error(), Some(NbdError::NotSup));
    assert_eq!(client.call(&Ask::read(0, 512)).expect("a reply").data, [1; 512]);
}

/// The loop that emulates zeroing must advance: older nbdkit zeroed the first 64 MiB again and
/// again.
#[test]
fn emulated_zeroes_beyond_64_mib_reach_the_end() {
    if !ours_only("a fix for zeroing above 64 MiB") {
        return;
    }
    let server = Server::nbdkit(["--filter=nozero", "memory", "200M", "zeromode=emulate"]).start();
    let mut client = open(&server, Headers::Structured);
    let last = 150 * MIB - 512;
    client.call(&Ask::write(last, [1; 1024])).expect("a reply");
    assert_eq!(client.call(&Ask::write_zeroes(0, 150 * MIB)).expect("a reply").error, None);
    let data = client.call(&Ask::read(last, 1024)).expect("a reply").data;
    assert_eq!(data, [[0; 512], [1; 512]].concat());
}

#[test]
fn requests_of_4_gib_less_one_byte_are_accepted_where_no_data_travels() {
    let server = Server::nbdkit(["memory", "8G"]).start();
    let mut client = open(&server, Headers::Structured);
    client.call(&Ask::write(5, [1; 512])).expect("a reply");
    let longest = u64::from(u32::MAX);
    assert_eq!(client.call(&Ask::write_zeroes(0, longest)).expect("a reply").error, None);
    assert_eq!(client.call(&Ask::trim(1, longest)).expect("a reply").error, None);
    assert_eq!(client.call(&Ask::read(0, 1024)).expect("a reply").data, [0; 1024]);
}

#[test]
fn a_write_longer_than_64_mib_is_refused_and_drained() {
    let server = Server::nbdkit(["memory", "1G"]).start();
    let mut client = open(&server, Headers::Structured);
    let reply = client.call(&Ask::write(0, vec![1; (64 << 20) + 1])).expect("a reply");
    assert!(reply.error.is_some());
    assert_eq!(client.call(&Ask::read(0, 1)).expect("still in step").data, [0]);
}

#[test]
fn a_write_too_long_to_be_drained_ends_the_session() {
    let server = Server::nbdkit(["memory", "8G"]).start();
    let mut client = open(&server, Headers::Structured);
    let request = Request {
        flags: CommandFlags::empty(),
        command: Command::WRITE,
        cookie: 1,
        offset: 0,
        length: u64::from(u32::MAX),
    };
    client.send_raw(&request.encode()).expect("sent");
    client.expect_close().expect("closed");
    assert_still_serves(&server);
}

#[test]
fn wrong_request_magic_ends_the_session() {
    let server = memory();
    for headers in [Headers::Simple, Headers::Structured] {
        let mut client = open(&server, headers);
        client.send_raw(&[0x5a; 28]).expect("sent");
        client.expect_close().expect("closed");
    }
    assert_still_serves(&server);
}

#[test]
fn goodbye_closes_the_connection_without_a_reply() {
    let server = memory();
    let mut client = open(&server, Headers::Structured);
    client.disconnect().expect("sent");
    client.expect_close().expect("closed");
}

/// Debian's nbdkit may refuse what is still outstanding with ESHUTDOWN.
#[test]
fn requests_before_goodbye_are_all_carried_out() {
    if !ours_only("replies to requests that are outstanding at NBD_CMD_DISC") {
        return;
    }
    let server = Server::nbdkit(["--filter=delay", "memory", "1M", "wdelay=20ms"]).start();
    let mut client = open(&server, Headers::Structured);
    for number in 0..20u64 {
        client.send(&Ask::write(number * 512, [9; 512])).expect("sent");
    }
    client.disconnect().expect("sent");
    for _ in 0..20 {
        assert_eq!(client.receive().expect("a reply").error, None);
    }
    client.expect_close().expect("closed");
    let data = open(&server, Headers::Simple).call(&Ask::read(0, 10_240)).expect("a reply").data;
    assert_eq!(data, [9; 10_240]);
}

#[test]
fn a_half_closed_client_gets_its_replies() {
    let server = memory();
    let mut client = open(&server, Headers::Structured);
    for number in 0..10 {
        client.send(&Ask::read(number * 512, 512)).expect("sent");
    }
    client.half_close().expect("half closed");
    for _ in 0..10 {
        assert_eq!(client.receive().expect("a reply").error, None);
    }
    client.expect_close().expect("closed");
}

#[test]
fn requests_in_single_bytes_are_requests() {
    let server = memory();
    let mut client = open(&server, Headers::Structured);
    let request = Request {
        flags: CommandFlags::empty(),
        command: Command::WRITE,
        cookie: 77,
        offset: 10,
        length: 3,
    };
    client.expect_reply_to(&request, b"abc");
    for byte in [&request.encode()[..], b"abc"].concat() {
        client.send_raw(&[byte]).expect("sent");
    }
    assert_eq!(client.receive().expect("a reply").error, None);
    assert_eq!(client.call(&Ask::read(9, 5)).expect("a reply").data, b"\0abc\0");
}

#[test]
fn cookies_are_opaque_and_may_be_reused() {
    let server = memory();
    let mut client = open(&server, Headers::Structured);
    for cookie in [0, u64::MAX, 0, 0x6744_6698_0000_0000, 7, 7] {
        let request = Request {
            flags: CommandFlags::empty(),
            command: Command::READ,
            cookie,
            offset: 0,
            length: 4,
        };
        client.send_request(&request, &[]).expect("sent");
        assert_eq!(client.receive().expect("a reply").cookie, cookie);
    }
}

#[test]
fn clients_share_one_disk() {
    let server = memory();
    let mut first = open(&server, Headers::Structured);
    let mut second = open(&server, Headers::Simple);
    first.call(&Ask::write(0, *b"first")).expect("a reply");
    assert_eq!(second.call(&Ask::read(0, 5)).expect("a reply").data, b"first");
    drop(first);
    second.call(&Ask::write(0, *b"other")).expect("a reply");
    let mut third = open(&server, Headers::Structured);
    assert_eq!(third.call(&Ask::read(0, 5)).expect("a reply").data, b"other");
}

#[test]
fn twenty_clients_at_once_do_not_mix_up_their_bytes() {
    let server = memory();
    let mut clients: Vec<_> = (0..20).map(|_| open(&server, Headers::Structured)).collect();
    for round in 0..10u8 {
        for (number, client) in (0u8..).zip(&mut clients) {
            let data = vec![number ^ round; 4096];
            client.send(&Ask::write(u64::from(number) * 4096, data)).expect("sent");
        }
        for client in &mut clients {
            assert_eq!(client.receive().expect("a reply").error, None);
        }
        for (number, client) in (0u8..).zip(&mut clients) {
            let reply = client.call(&Ask::read(u64::from(number) * 4096, 4096)).expect("a reply");
            assert_eq!(reply.data, vec![number ^ round; 4096]);
        }
    }
}
