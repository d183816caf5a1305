//! The protocol before and after NBD_OPT_STARTTLS. NBD protocol, "TLS support".

use std::time::{Duration, Instant};

use nbd_protocol::constants::{Opt, Rep};
use nbd_protocol::handshake::encode_option;
use nbdkit_tests::Ask;
use nbdkit_tests::client::{Failure, Headers};

use super::Pki;

#[test]
fn what_was_negotiated_in_the_clear_is_forgotten() {
    let Some(pki) = Pki::new() else { return };
    for isolation in ["--isolation=connection", "--isolation=shared"] {
        let server = pki.server(&[isolation, "--tls=on", "memory", "1M"]).start();
        for headers in [Headers::Structured, Headers::Extended] {
            let mut client = server.connect();
            client.handshake().expect("a greeting");
            match headers {
                Headers::Extended => client.extended_headers().expect("a reply"),
                _ => client.structured_replies().expect("a reply"),
            };
            let selected = client.set_meta_context("", &["base:allocation"]).expect("a reply");
            assert_eq!(selected.contexts.len(), 1);
            let mut client = client.starttls(pki.authority.client_config(None)).expect("TLS");
            // The context is gone, and so is the right to set one.
            let again = client.set_meta_context("", &["base:allocation"]).expect("a reply");
            assert_eq!(again.end.reply, Rep::ERR_INVALID, "{headers:?}");
            client.go("", &[]).expect("a reply");
            // A structured or extended reply would be a violation to this client, which expects
            // simple ones.
            let reply = client.call(&Ask::read(0, 512)).expect("a simple reply");
            assert_eq!(reply.data, [0; 512]);
        }
    }
}

#[test]
fn a_second_starttls_is_refused() {
    let Some(pki) = Pki::new() else { return };
    let server = pki.server(&["--tls=on", "memory", "1M"]).start();
    let mut client = server.connect();
    client.handshake().expect("a greeting");
    let mut client = client.starttls(pki.authority.client_config(None)).expect("TLS");
    let reply = client.simple_option(Opt::STARTTLS, &[]).expect("a reply");
    assert_eq!(reply.reply, Rep::ERR_INVALID);
    client.go("", &[]).expect("it goes on");
}

#[test]
fn require_permits_nothing_before_starttls() {
    let Some(pki) = Pki::new() else { return };
    let server = pki.server(&["--tls=require", "memory", "1M"]).start();
    let mut client = server.connect();
    client.handshake().expect("a greeting");
    for (option, payload) in [
        (Opt::LIST, &b""[..]),
        (Opt::INFO, b"\0\0\0\0\0\0"),
        (Opt::GO, b"\0\0\0\0\0\0"),
        (Opt::STRUCTURED_REPLY, b""),
        (Opt::EXTENDED_HEADERS, b""),
        (Opt::SET_META_CONTEXT, b"\0\0\0\0\0\0\0\0"),
        (Opt(77), &[1; 1000]),
    ] {
        let reply = client.simple_option(option, payload).expect("a reply");
        assert_eq!(reply.reply, Rep::ERR_TLS_REQD, "{option}");
    }
    let reply = client.simple_option(Opt::STARTTLS, b"data").expect("a reply");
    assert_eq!(reply.reply, Rep::ERR_INVALID);
    let mut client = client.starttls(pki.authority.client_config(None)).expect("TLS");
    client.go("", &[]).expect("an export");

    let mut client = server.connect();
    client.handshake().expect("a greeting");
    let mut option = Vec::new();
    encode_option(&mut option, Opt::EXPORT_NAME, b"");
    client.send_raw(&option).expect("sent");
    client.expect_close().expect("there is no other way to refuse");

    let mut client = server.connect();
    client.handshake().expect("a greeting");
    client.abort().expect("this is permitted");
}

#[test]
fn the_deadline_covers_the_tls_handshake() {
    let Some(pki) = Pki::new() else { return };
    let server = pki.server(&["--timeout=300ms", "--tls=require", "memory", "1M"]).start();
    // A ClientHello that never ends, and none at all.
    for hello in [&b"\x16\x03\x01\x02\x00"[..], b""] {
        let mut client = server.connect();
        client.handshake().expect("a greeting");
        assert_eq!(client.simple_option(Opt::STARTTLS, &[]).expect("a reply").reply, Rep::ACK);
        let began = Instant::now();
        client.send_raw(hello).expect("sent");
        client.expect_close().expect("disconnected");
        assert!(began.elapsed() < Duration::from_secs(10));
    }
    let _ = server.wait_for_stderr("handshake not finished in time");
}

#[test]
fn what_is_no_tls_ends_one_connection_with_a_line() {
    let Some(pki) = Pki::new() else { return };
    let server = pki.server(&["--tls=require", "memory", "1M"]).start();
    let mut client = server.connect();
    client.handshake().expect("a greeting");
    assert_eq!(client.simple_option(Opt::STARTTLS, &[]).expect("a reply").reply, Rep::ACK);
    client.send_raw(b"IHAVEOPT\0\0\0\x03\0\0\0\0").expect("sent");
    // An alert, and then the end.
    loop {
        match client.receive_raw(1) {
            Ok(_) => {}
            Err(Failure::Closed) => break,
            Err(failure) => panic!("{failure}"),
        }
    }
    let line = server.wait_for_stderr("TLS: ");
    assert!(line.contains("error"), "{line}");
    let mut client = server.connect();
    client.handshake().expect("a greeting");
    assert!(client.starttls(pki.authority.client_config(None)).is_ok());
}

#[test]
fn the_end_is_announced() {
    let Some(pki) = Pki::new() else { return };
    let server = pki.server(&["--tls=require", "memory", "1M"]).start();
    let mut client = server.connect();
    client.handshake().expect("a greeting");
    let mut client = client.starttls(pki.authority.client_config(None)).expect("TLS");
    client.go("", &[]).expect("an export");
    client.disconnect().expect("sent");
    // rustls tells an orderly end (0) from a cut connection (UnexpectedEof, which would be Cut).
    client.expect_close().expect("an orderly end");
}

/// Threads that cannot send, because the client does not read, do not keep the server from reading.
#[test]
fn requests_are_read_while_replies_wait() {
    let Some(pki) = Pki::new() else { return };
    let arguments = ["--tls=require", "--filter=delay", "memory", "64M", "rdelay=20ms"];
    let server = pki.server(&arguments).start();
    let mut client = server.connect();
    client.handshake().expect("a greeting");
    let mut client = client.starttls(pki.authority.client_config(None)).expect("TLS");
    client.go("", &[]).expect("an export");
    // More than any socket's buffers hold.
    for n in 0..8 {
        client.send(&Ask::read(n << 22, 4 << 20)).expect("sent");
    }
    std::thread::sleep(Duration::from_millis(300));
    for n in 0..6 {
        client.send(&Ask::write((32 + n) << 20, vec![n as u8 + 1; 1 << 20])).expect("sent");
    }
    for _ in 0..14 {
        assert_eq!(client.receive().expect("a reply").error, None);
    }
    let reply = client.call(&Ask::read(35 << 20, 4096)).expect("a reply");
    assert_eq!(reply.data, [4; 4096]);
}
