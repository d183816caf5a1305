//! Options that change what is offered to clients: `-r`, `-e`, `-o`, `-n`, `--mask-handshake`,
//! `--no-sr`, `--no-mc`.

use nbd_protocol::constants::{HandshakeFlags, Opt, Rep, TransmissionFlags};
use nbd_protocol::handshake::Greeting;
use nbdkit_tests::{Ask, Server};

use crate::support::{assert_serves, debian_lacks, open};

fn greeting(options: &[&str]) -> Greeting {
    let server = Server::nbdkit(options).args(["memory", "1M"]).start();
    server.connect().greeting().expect("a greeting")
}

fn flags(options: &[&str]) -> HandshakeFlags {
    match greeting(options) {
        Greeting::Newstyle { flags } => flags,
        oldstyle @ Greeting::Oldstyle { .. } => panic!("{oldstyle:?}"),
    }
}

#[test]
fn a_read_only_server_says_so_and_refuses_writes() {
    for option in ["-r", "--readonly", "--read-only"] {
        let server = Server::nbdkit([option, "memory", "1M"]).start();
        let mut client = server.connect();
        open(&mut client);
        assert!(client.offers(TransmissionFlags::READ_ONLY), "{option}");
        assert!(!client.offers(TransmissionFlags::SEND_TRIM), "{option}");
        let reply = client.call(&Ask::write(0, *b"x")).expect("a reply");
        assert!(reply.error.is_some(), "{option}");
        assert_eq!(client.call(&Ask::read(0, 1)).expect("a reply").data, [0], "{option}");
    }
    let server = Server::nbdkit(["memory", "1M"]).start();
    let mut client = server.connect();
    open(&mut client);
    assert!(!client.offers(TransmissionFlags::READ_ONLY));
}

#[test]
fn the_export_name_changes_nothing_that_is_served() {
    let server = Server::nbdkit(["-e", "other", "memory", "1M"]).start();
    for export in ["", "other", "third"] {
        let mut client = server.connect();
        client.handshake().expect("a greeting");
        assert_eq!(client.go(export, &[]).expect("a reply").end.reply, Rep::ACK, "{export}");
    }
    let mut client = server.connect();
    client.handshake().expect("a greeting");
    let names: Vec<String> =
        client.list().expect("a list").exports.into_iter().map(|(name, _)| name).collect();
    assert!(!names.contains(&"other".to_owned()), "{names:?}");
}

#[test]
fn oldstyle_greets_with_the_size_and_serves_at_once() {
    for option in ["-o", "--oldstyle", "--old-style"] {
        let server = Server::nbdkit([option, "memory", "1M"]).start();
        let mut client = server.connect();
        let Greeting::Oldstyle { size, .. } = client.greeting().expect("a greeting") else {
            panic!("{option} gives a newstyle greeting");
        };
        assert_eq!(size, 1 << 20);
        assert_eq!(client.call(&Ask::write(5, *b"old")).expect("a reply").error, None);
        assert_eq!(client.call(&Ask::read(4, 5)).expect("a reply").data, b"\0old\0");
        client.disconnect().expect("sent");
        client.expect_close().expect("closed");
    }
}

#[test]
fn oldstyle_can_be_read_only() {
    let Greeting::Oldstyle { flags, .. } = greeting(&["-o", "-r"]) else {
        panic!("a newstyle greeting");
    };
    assert!(flags.contains(TransmissionFlags::READ_ONLY));
}

#[test]
fn newstyle_is_the_default_and_the_last_style_wins() {
    let both = HandshakeFlags::FIXED_NEWSTYLE | HandshakeFlags::NO_ZEROES;
    for options in [&[][..], &["-n"], &["--newstyle"], &["--new-style"], &["-o", "-n"]] {
        assert_eq!(flags(options), both, "{options:?}");
    }
    assert!(matches!(greeting(&["-n", "-o"]), Greeting::Oldstyle { .. }));
}

#[test]
fn masked_handshake_flags_are_not_offered() {
    for (mask, expected) in [
        ("0", HandshakeFlags::empty()),
        ("1", HandshakeFlags::FIXED_NEWSTYLE),
        ("2", HandshakeFlags::NO_ZEROES),
        ("3", HandshakeFlags::FIXED_NEWSTYLE | HandshakeFlags::NO_ZEROES),
        ("0x1", HandshakeFlags::FIXED_NEWSTYLE),
        ("0xfffffffc", HandshakeFlags::empty()),
    ] {
        assert_eq!(flags(&["--mask-handshake", mask]), expected, "{mask}");
    }
}

#[test]
fn without_any_handshake_flag_a_client_can_still_name_an_export() {
    let server = Server::nbdkit(["--mask-handshake=0", "memory", "1M"]).start();
    let mut client = server.connect();
    client.handshake().expect("a greeting");
    // 124 zeroes follow, which the client checks.
    assert_eq!(client.export_name("").expect("a reply").size, 1 << 20);
    assert_eq!(client.call(&Ask::read(0, 512)).expect("a reply").data, [0; 512]);
}

#[test]
fn without_structured_replies_there_is_no_block_status() {
    let options: &[&str] = if debian_lacks("--no-structured-replies") {
        &["--no-sr"]
    } else {
        &["--no-sr", "--no-structured-replies"]
    };
    for option in options {
        let server = Server::nbdkit([option, "memory", "1M"]).start();
        let mut client = server.connect();
        client.handshake().expect("a greeting");
        assert_eq!(client.structured_replies().expect("a reply").reply, Rep::ERR_UNSUP);
        let answer = client.set_meta_context("", &["base:allocation"]).expect("a reply");
        assert!(answer.end.reply.is_error(), "{option}");
        assert_eq!(client.go("", &[]).expect("a reply").end.reply, Rep::ACK);
        assert_eq!(client.call(&Ask::read(0, 512)).expect("a reply").data, [0; 512]);
    }
}

#[test]
fn without_meta_contexts_there_are_structured_replies_only() {
    if debian_lacks("--no-mc") {
        return;
    }
    for option in ["--no-mc", "--no-meta-contexts"] {
        let server = Server::nbdkit([option, "memory", "1M"]).start();
        let mut client = server.connect();
        client.handshake().expect("a greeting");
        assert_eq!(client.structured_replies().expect("a reply").reply, Rep::ACK);
        let answer = client.list_meta_context("", &[]).expect("a reply");
        assert_eq!(answer.end.reply, Rep::ERR_UNSUP, "{option}");
        let answer = client.set_meta_context("", &["base:allocation"]).expect("a reply");
        assert_eq!(answer.end.reply, Rep::ERR_UNSUP, "{option}");
        assert_eq!(client.go("", &[]).expect("a reply").end.reply, Rep::ACK);
        assert_eq!(client.call(&Ask::read(0, 512)).expect("a reply").data, [0; 512]);
        let refused = client.call(&Ask::block_status(0, 512)).expect("a reply");
        assert!(refused.error.is_some(), "{option}");
    }
}

#[test]
fn without_meta_contexts_even_a_malformed_question_keeps_the_connection() {
    if debian_lacks("--no-mc") {
        return;
    }
    let server = Server::nbdkit(["--no-mc", "memory", "1M"]).start();
    let mut client = server.connect();
    client.handshake().expect("a greeting");
    // The payload is read and thrown away before the refusal.
    for payload in [&[][..], &[0xff; 3], &[0xff; 1000]] {
        let reply = client.simple_option(Opt::SET_META_CONTEXT, payload).expect("a reply");
        assert_eq!(reply.reply, Rep::ERR_UNSUP);
    }
    assert_eq!(client.go("", &[]).expect("a reply").end.reply, Rep::ACK);
}

#[test]
fn options_may_come_anywhere_among_the_arguments() {
    let server = Server::nbdkit(["memory", "-r", "1M", "--no-sr"]).start();
    assert_serves(&mut server.connect());
    let mut client = server.connect();
    client.handshake().expect("a greeting");
    assert_eq!(client.structured_replies().expect("a reply").reply, Rep::ERR_UNSUP);
    assert_eq!(client.go("", &[]).expect("a reply").end.reply, Rep::ACK);
    assert!(client.offers(TransmissionFlags::READ_ONLY));
}
