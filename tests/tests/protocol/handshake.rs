//! Greetings and option haggling.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use nbd_protocol::constants::{ClientFlags, HandshakeFlags, InfoType, Opt, Rep, TransmissionFlags};
use nbd_protocol::handshake::Greeting;
use nbdkit_tests::client::{Failure, OwnedInfo};
use nbdkit_tests::{Ask, Server};

use super::{MIB, assert_still_serves, haggling, memory, ours_only};

#[test]
fn greeting_offers_fixed_newstyle_and_no_zeroes() {
    let server = memory();
    let greeting = server.connect().greeting().expect("a greeting");
    assert_eq!(greeting, Greeting::Newstyle { flags: HandshakeFlags::all() });
}

#[test]
fn export_name_is_followed_by_124_zeroes_unless_declined() {
    let server = memory();
    for flags in [ClientFlags::FIXED_NEWSTYLE, ClientFlags::all()] {
        let mut client = server.connect();
        client.greeting().expect("a greeting");
        client.send_client_flags(flags).expect("sent");
        let reply = client.export_name("").expect("a reply");
        assert_eq!(reply.size, MIB);
        assert!(reply.flags.contains(TransmissionFlags::HAS_FLAGS));
        // The stream is in step only if the number of zeroes was right.
        let read = client.call(&Ask::read(0, 512)).expect("a reply");
        assert_eq!(read.data, [0; 512]);
    }
}

#[test]
fn unknown_client_flags_end_the_session() {
    let server = memory();
    for flags in [1 << 2, 1 << 31, u32::MAX] {
        let mut client = server.connect();
        client.greeting().expect("a greeting");
        client.send_client_flags(ClientFlags::from_bits_retain(flags)).expect("sent");
        client.expect_close().expect("closed");
    }
    assert_still_serves(&server);
}

#[test]
fn list_names_the_default_export() {
    let server = memory();
    let answer = haggling(&server).list().expect("a reply");
    assert_eq!(answer.end.reply, Rep::ACK);
    assert_eq!(answer.exports, [(String::new(), String::new())]);
}

#[test]
fn list_with_data_is_invalid_and_leaves_the_stream_in_step() {
    let server = memory();
    let mut client = haggling(&server);
    let reply = client.simple_option(Opt::LIST, b"data").expect("a reply");
    assert_eq!(reply.reply, Rep::ERR_INVALID);
    assert_eq!(client.list().expect("a reply").end.reply, Rep::ACK);
}

#[test]
fn info_describes_without_opening() {
    let server = memory();
    let mut client = haggling(&server);
    for _ in 0..3 {
        let answer = client.info("", &[]).expect("a reply");
        assert_eq!(answer.end.reply, Rep::ACK);
        assert_eq!(answer.export().map(|(size, _)| size), Some(MIB));
    }
    assert_eq!(client.go("", &[]).expect("a reply").end.reply, Rep::ACK);
}

#[test]
fn info_of_one_export_and_go_to_another() {
    let server = Server::nbdkit(["info"]).start();
    let mut client = haggling(&server);
    let size = |answer: &nbdkit_tests::client::InfoAnswer| answer.export().map(|(size, _)| size);
    assert_eq!(size(&client.info("four", &[]).expect("a reply")), Some(4));
    assert_eq!(size(&client.info("sixsix", &[]).expect("a reply")), Some(6));
    assert_eq!(size(&client.go("abc", &[]).expect("a reply")), Some(3));
    assert_eq!(client.call(&Ask::read(0, 3)).expect("a reply").data, b"abc");
}

#[test]
fn the_canonical_name_is_sent_when_asked_for() {
    let server = memory();
    let mut client = haggling(&server);
    let answer = client.info("disk", &[InfoType::NAME]).expect("a reply");
    assert!(answer.infos.contains(&OwnedInfo::Name("disk".to_owned())), "{answer}");
}

#[test]
fn descriptions_and_block_sizes_are_sent_when_asked_for() {
    let server = Server::nbdkit([
        "eval",
        "get_size=echo 1M",
        "pread=exit 1",
        "export_description=echo a description",
        "block_size=echo 512 4096 65536",
    ])
    .start();
    let mut client = haggling(&server);
    let wanted = [InfoType::DESCRIPTION, InfoType::BLOCK_SIZE];
    let answer = client.info("", &wanted).expect("a reply");
    assert!(answer.infos.contains(&OwnedInfo::Description("a description".to_owned())));
    let sizes = answer.block_sizes().expect("block sizes");
    assert_eq!((sizes.minimum, sizes.preferred, sizes.maximum), (512, 4096, 65536));
}

#[test]
fn unknown_options_are_unsupported_and_skipped_whole() {
    let server = memory();
    let mut client = haggling(&server);
    for (option, length) in [(0, 0), (4, 4), (12, 1), (77, 5000), (u32::MAX, 40)] {
        let reply = client.simple_option(Opt(option), &vec![0xff; length]).expect("a reply");
        assert_eq!(reply.reply, Rep::ERR_UNSUP, "option {option}");
    }
    assert_eq!(client.go("", &[]).expect("a reply").end.reply, Rep::ACK);
}

#[test]
fn refusals_of_options_carry_a_message_for_people() {
    if !ours_only("messages in option replies") {
        return;
    }
    let server = memory();
    let mut client = haggling(&server);
    for (option, payload) in
        [(Opt(77), &b""[..]), (Opt::LIST, b"x"), (Opt::GO, b""), (Opt::STARTTLS, b"")]
    {
        let reply = client.simple_option(option, payload).expect("a reply");
        assert!(reply.reply.is_error());
        assert!(!reply.message().is_empty(), "{option}");
        assert!(!reply.message().contains(char::is_control), "{option}");
    }
}

#[test]
fn starttls_is_refused_when_there_is_no_tls() {
    let server = memory();
    let mut client = haggling(&server);
    let reply = client.simple_option(Opt::STARTTLS, &[]).expect("a reply").reply;
    assert!(matches!(reply, Rep::ERR_POLICY | Rep::ERR_UNSUP | Rep::ERR_PLATFORM), "{reply}");
    assert_eq!(client.go("", &[]).expect("a reply").end.reply, Rep::ACK);
}

#[test]
fn abort_is_acknowledged_and_ends_the_session() {
    let server = memory();
    let mut client = haggling(&server);
    assert_eq!(client.abort().expect("a reply").map(|reply| reply.reply), Some(Rep::ACK));
    client.expect_close().expect("closed");
}

#[test]
fn a_client_that_does_not_wait_for_the_acknowledgement_of_abort_is_no_error() {
    if !ours_only("what is logged") {
        return;
    }
    let server = Server::nbdkit(["-v", "memory", "1M"]).start();
    let mut client = UnixStream::connect(server.socket()).expect("connected");
    client.read_exact(&mut [0; 18]).expect("a greeting");
    // From here on, what the server sends to this client is EPIPE.
    client.shutdown(Shutdown::Read).expect("shut down");
    client.write_all(b"\0\0\0\x03IHAVEOPT\0\0\0\x02\0\0\0\0").expect("sent");
    let _ = server.wait_for_stderr("connection ended");
    let log = server.stderr_text();
    assert!(!log.contains("error:"), "{log}");
}

#[test]
fn wrong_option_magic_ends_the_session() {
    let server = memory();
    let mut client = haggling(&server);
    client.send_raw(b"IHAVEOPX\0\0\0\x03\0\0\0\0").expect("sent");
    client.expect_close().expect("closed");
    assert_still_serves(&server);
}

#[test]
fn malformed_go_is_invalid_and_the_next_go_succeeds() {
    let server = memory();
    let mut client = haggling(&server);
    let malformed: [&[u8]; 8] = [
        b"",
        b"\0\0\0\0",
        b"\0\0\0\0\0",
        b"\0\0\0\0\0\x01",
        b"\0\0\0\0\0\0\0",
        b"\0\0\0\x01\0\0",
        b"\xff\xff\xff\xff\0\0",
        b"\0\0\0\x03a\0b\0\0",
    ];
    for payload in malformed {
        let reply = client.simple_option(Opt::GO, payload).expect("a reply");
        assert_eq!(reply.reply, Rep::ERR_INVALID, "{payload:02x?}");
    }
    assert_eq!(client.go("", &[]).expect("a reply").end.reply, Rep::ACK);
}

#[test]
fn an_export_name_of_4096_bytes_is_accepted_and_of_4097_is_not() {
    let server = memory();
    let mut client = haggling(&server);
    let longest = "n".repeat(4096);
    assert_eq!(client.info(&longest, &[]).expect("a reply").end.reply, Rep::ACK);
    let mut payload = 4097u32.to_be_bytes().to_vec();
    payload.extend([b'n'; 4097]);
    payload.extend([0, 0]);
    let reply = client.simple_option(Opt::INFO, &payload).expect("a reply");
    assert!(reply.reply.is_error(), "{reply}");
    assert_eq!(client.go(&longest, &[]).expect("a reply").end.reply, Rep::ACK);
    let mut client = haggling(&server);
    assert!(client.export_name([b'n'; 4097]).is_err());
    assert_still_serves(&server);
}

#[test]
fn an_export_name_that_is_not_utf8_is_refused() {
    if !ours_only("a check of export names for UTF-8") {
        return;
    }
    let server = memory();
    let mut client = haggling(&server);
    let reply = client.simple_option(Opt::INFO, b"\0\0\0\x02\xff\xfe\0\0").expect("a reply");
    assert_eq!(reply.reply, Rep::ERR_INVALID);
    assert!(haggling(&server).export_name(b"\xff\xfe").is_err());
}

#[test]
fn a_missing_export_is_unknown_and_another_may_be_chosen() {
    let builder = Server::nbdkit(["file", "dir={dir}/disks"]);
    std::fs::create_dir(builder.dir().join("disks")).expect("made");
    std::fs::write(builder.dir().join("disks/one"), [7; 512]).expect("written");
    let server = builder.start();
    let mut client = haggling(&server);
    for name in ["missing", "", "../pid", "one/", "./one", ".", ".."] {
        assert_eq!(client.info(name, &[]).expect("a reply").end.reply, Rep::ERR_UNKNOWN, "{name}");
        assert_eq!(client.go(name, &[]).expect("a reply").end.reply, Rep::ERR_UNKNOWN, "{name}");
    }
    assert_eq!(client.go("one", &[]).expect("a reply").end.reply, Rep::ACK);
    assert_eq!(client.call(&Ask::read(0, 512)).expect("a reply").data, [7; 512]);
    assert!(matches!(haggling(&server).export_name("missing"), Err(Failure::Closed)));
}

#[test]
fn a_second_structured_reply_option_is_invalid() {
    if !ours_only("the refusal of a second NBD_OPT_STRUCTURED_REPLY") {
        return;
    }
    let server = memory();
    let mut client = haggling(&server);
    assert_eq!(client.structured_replies().expect("a reply").reply, Rep::ACK);
    assert_eq!(client.structured_replies().expect("a reply").reply, Rep::ERR_INVALID);
    assert_eq!(client.go("", &[]).expect("a reply").end.reply, Rep::ACK);
    assert_eq!(client.call(&Ask::read(0, 1)).expect("a structured reply").error, None);
}

#[test]
fn df_is_offered_only_with_structured_replies() {
    let server = memory();
    let mut client = haggling(&server);
    let offers_df = |answer: &nbdkit_tests::client::InfoAnswer| {
        answer.export().is_some_and(|(_, flags)| flags.contains(TransmissionFlags::SEND_DF))
    };
    assert!(!offers_df(&client.info("", &[]).expect("a reply")));
    client.structured_replies().expect("a reply");
    assert!(offers_df(&client.info("", &[]).expect("a reply")));
}

#[test]
fn without_fixed_newstyle_only_export_name_works() {
    let server = Server::nbdkit(["--mask-handshake=0", "memory", "1M"]).start();
    let mut client = server.connect();
    assert_eq!(client.handshake().expect("a greeting"), HandshakeFlags::empty());
    let listed = client.list();
    assert!(listed.map_or(true, |answer| answer.end.reply.is_error()));
    let mut client = haggling(&server);
    assert_eq!(client.export_name("").expect("a reply").size, MIB);
}

#[test]
fn oldstyle_begins_transmission_at_once() {
    let server = Server::nbdkit(["-o", "memory", "1M"]).start();
    let mut client = server.connect();
    let Greeting::Oldstyle { size, flags } = client.greeting().expect("a greeting") else {
        panic!("a newstyle greeting");
    };
    assert_eq!(size, MIB);
    assert!(flags.contains(TransmissionFlags::HAS_FLAGS));
    assert_eq!(client.call(&Ask::write(5, *b"old")).expect("a reply").error, None);
    assert_eq!(client.call(&Ask::read(4, 5)).expect("a reply").data, b"\0old\0");
}

#[test]
fn no_sr_refuses_structured_replies() {
    let server = Server::nbdkit(["--no-sr", "memory", "1M"]).start();
    let mut client = haggling(&server);
    assert_eq!(client.structured_replies().expect("a reply").reply, Rep::ERR_UNSUP);
    assert_eq!(client.extended_headers().expect("a reply").reply, Rep::ERR_UNSUP);
    assert_eq!(client.go("", &[]).expect("a reply").end.reply, Rep::ACK);
    assert_eq!(client.call(&Ask::read(0, 4)).expect("a simple reply").data, [0; 4]);
}

#[test]
fn no_mc_hides_meta_contexts() {
    if !ours_only("--no-mc") {
        return;
    }
    let server = Server::nbdkit(["--no-mc", "memory", "1M"]).start();
    let mut client = haggling(&server);
    client.structured_replies().expect("a reply");
    let listed = client.list_meta_context("", &[]).expect("a reply");
    assert_eq!(listed.end.reply, Rep::ERR_UNSUP);
    let set = client.set_meta_context("", &["base:allocation"]).expect("a reply");
    assert_eq!(set.end.reply, Rep::ERR_UNSUP);
    assert_eq!(client.go("", &[]).expect("a reply").end.reply, Rep::ACK);
}

#[test]
fn options_sent_in_one_packet_are_answered_one_after_the_other() {
    let server = memory();
    let mut client = haggling(&server);
    let mut bytes = Vec::new();
    for option in [Opt::LIST, Opt(77), Opt::STRUCTURED_REPLY] {
        nbd_protocol::handshake::encode_option(&mut bytes, option, &[]);
    }
    client.send_raw(&bytes).expect("sent");
    let replies: Vec<(Opt, Rep)> = (0..4)
        .map(|_| client.receive_option_reply().expect("a reply"))
        .map(|reply| (reply.option, reply.reply))
        .collect();
    let expected = [
        (Opt::LIST, Rep::SERVER),
        (Opt::LIST, Rep::ACK),
        (Opt(77), Rep::ERR_UNSUP),
        (Opt::STRUCTURED_REPLY, Rep::ACK),
    ];
    assert_eq!(replies, expected);
}

#[test]
fn a_handshake_of_single_bytes_is_a_handshake() {
    let server = memory();
    let mut client = server.connect();
    client.greeting().expect("a greeting");
    for byte in b"\0\0\0\x03IHAVEOPT\0\0\0\x07\0\0\0\x06\0\0\0\0\0\0" {
        client.send_raw(&[*byte]).expect("sent");
    }
    let info = client.receive_option_reply().expect("a reply");
    assert_eq!((info.option, info.reply), (Opt::GO, Rep::INFO));
    assert_eq!(client.receive_option_reply().expect("a reply").reply, Rep::ACK);
}
