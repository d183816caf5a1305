//! Clients that mean harm, or do it: only their own session may suffer.

use std::time::Duration;

use nbd_protocol::constants::{Command, CommandFlags, Opt};
use nbd_protocol::handshake::{InfoRequest, MetaContextRequest};
use nbd_protocol::transmission::Request;
use nbdkit_tests::client::{Failure, Headers, Transport};
use nbdkit_tests::{Ask, Server};

use super::{assert_still_serves, haggling, memory, open, ours_only};

/// xorshift64*: the same hostile bytes in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn bytes(&mut self, length: u64) -> Vec<u8> {
        (0..length).map(|_| self.next().to_be_bytes()[0]).collect()
    }
}

/// A payload that suits the option more often than not.
fn payload(random: &mut Random, option: Opt) -> Vec<u8> {
    let mut payload = Vec::new();
    match (option, random.below(4)) {
        (_, 0) => {
            let length = random.below(40);
            payload = random.bytes(length);
        }
        (Opt::INFO | Opt::GO, 1..) => {
            InfoRequest::encode(&mut payload, ["", "disk"][random.below(2) as usize], &[]);
        }
        (Opt::LIST_META_CONTEXT | Opt::SET_META_CONTEXT, 1..) => {
            MetaContextRequest::encode(&mut payload, "", &["base:allocation", "x:y"]);
        }
        _ => {}
    }
    payload
}

/// CVE-2019-14851: a server that fell over options in an order that nobody had thought of.
#[test]
fn any_sequence_of_options_is_answered_or_ends_only_that_session() {
    let server = memory();
    let mut random = Random(0x2019_1485_1000_0001);
    for _ in 0..200 {
        let mut client = haggling(&server);
        for _ in 0..8 {
            // GO is left to the end, where a success is welcome.
            let option = Opt([1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 99][random.below(12) as usize]);
            let payload = payload(&mut random, option);
            if option == Opt::EXPORT_NAME {
                // Opens an export, or closes; either way haggling is over.
                let _ = client.export_name(&payload);
                break;
            }
            match client.option(option, &payload) {
                Ok(_) => {}
                Err(Failure::Closed) => break,
                Err(failure) => panic!("{option} {payload:02x?}: {failure}"),
            }
            if option == Opt::ABORT {
                break;
            }
        }
    }
    assert_still_serves(&server);
}

#[test]
fn hanging_up_at_any_byte_of_the_handshake_harms_nobody() {
    let server = memory();
    let whole = b"\0\0\0\x03IHAVEOPT\0\0\0\x08\0\0\0\0IHAVEOPT\0\0\0\x07\0\0\0\x06\0\0\0\0\0\0";
    for cut in 0..whole.len() {
        let mut client = server.connect();
        client.send_raw(&whole[..cut]).expect("sent");
    }
    assert_still_serves(&server);
}

#[test]
fn hanging_up_at_any_byte_of_a_request_harms_nobody() {
    let server = memory();
    let request = Request {
        flags: CommandFlags::empty(),
        command: Command::WRITE,
        cookie: 1,
        offset: 0,
        length: 4,
    };
    let whole = [&request.encode()[..], b"data"].concat();
    for cut in 0..whole.len() {
        let mut client = open(&server, Headers::Structured);
        client.send_raw(&whole[..cut]).expect("sent");
    }
    assert_still_serves(&server);
}

/// Debian's nbdkit 1.32 ends by an assertion, for all its clients.
#[test]
fn hanging_up_with_replies_on_the_way_harms_nobody() {
    if !ours_only("an orderly end when a client hangs up") {
        return;
    }
    let server = Server::nbdkit(["memory", "16M"]).start();
    for _ in 0..20 {
        let mut client = open(&server, Headers::Structured);
        for _ in 0..16 {
            client.send(&Ask::read(0, 1 << 20)).expect("sent");
        }
    }
    assert_still_serves(&server);
}

#[test]
fn random_bytes_instead_of_requests_end_only_that_session() {
    let server = memory();
    let mut random = Random(42);
    for _ in 0..50 {
        let mut client = open(&server, Headers::Structured);
        let length = 28 + random.below(200);
        let bytes = random.bytes(length);
        match client.send_raw(&bytes) {
            Ok(()) => client.expect_close().expect("closed"),
            Err(failure) => assert!(matches!(failure, Failure::Closed)),
        }
    }
    assert_still_serves(&server);
}

#[test]
fn random_requests_with_good_magic_are_answered() {
    let server = memory();
    let mut random = Random(7);
    let mut client = open(&server, Headers::Structured);
    for _ in 0..2000 {
        let command = Command(u16::try_from(random.below(12)).expect("small"));
        if command == Command::DISC {
            continue;
        }
        let flags = CommandFlags::from_bits_retain(1 << random.below(16) & 0x801f);
        let offset =
            [0, 512, (1 << 20) - 1, 1 << 20, u64::MAX, random.next()][random.below(6) as usize];
        let length = [0, 1, 512, 65536, 1 << 20, 0xffff_ffff][random.below(6) as usize];
        let ask = match command {
            Command::WRITE => Ask::write(offset, vec![1; length.min(1 << 20) as usize]),
            _ => Ask::new(command, offset, length),
        };
        client.call(&ask.flags(flags)).expect("a reply");
    }
    assert_still_serves(&server);
}

#[test]
fn an_option_longer_than_any_is_refused_without_waiting_for_it() {
    let server = memory();
    let mut client = haggling(&server);
    client.send_raw(b"IHAVEOPT\0\0\0\x07\xff\xff\xff\xff").expect("sent");
    // An error reply is as good as a hang-up, but the server must not wait for 4 GiB.
    client.transport().set_timeout(Duration::from_secs(5)).expect("set");
    match client.receive_option_reply() {
        Ok(reply) => assert!(reply.reply.is_error()),
        Err(failure) => assert!(matches!(failure, Failure::Closed), "{failure}"),
    }
    assert_still_serves(&server);
}

#[test]
fn silent_clients_do_not_keep_others_out() {
    let server = memory();
    let _silent: Vec<_> = (0..50).map(|_| server.connect()).collect();
    let _haggling: Vec<_> = (0..20).map(|_| haggling(&server)).collect();
    assert_still_serves(&server);
}

#[test]
fn a_client_that_never_reads_does_not_keep_others_waiting() {
    let server = Server::nbdkit(["pattern", "16M"]).start();
    let mut greedy = open(&server, Headers::Structured);
    greedy.transport().set_timeout(Duration::from_millis(300)).expect("set");
    for _ in 0..64 {
        // Full pipes make the send time out, which is as far as this client gets.
        if greedy.send(&Ask::read(0, 8 << 20)).is_err() {
            break;
        }
    }
    assert_still_serves(&server);
}

/// Debian's nbdkit waits for clients that are still haggling.
#[test]
fn the_server_stops_with_clients_connected() {
    if !ours_only("an end to haggling when the server stops") {
        return;
    }
    let mut server = memory();
    let _idle = open(&server, Headers::Structured);
    let _haggling = haggling(&server);
    let _silent = server.connect();
    let status = server.stop();
    assert!(status.success(), "{status}");
}
