//! The NBD protocol against a real server, by a client that knows every rule and breaks any: each
//! test says in its name what the server does.
//!
//! What Debian's nbdkit can do was checked against it (`NBDKIT_UNDER_TEST=debian`); what only ours
//! can do, or where Debian's is known to crash, begins with [`ours_only`].

mod extended;
mod handshake;
mod hostile;
mod meta;
mod reads;
mod requests;
mod writes;

use std::os::unix::net::UnixStream;

use nbd_protocol::constants::Rep;
use nbdkit_tests::binary::Binary;
use nbdkit_tests::client::Headers;
use nbdkit_tests::{Client, Server};

const MIB: u64 = 1 << 20;

/// A connection to a server under test.
type Connection = Client<UnixStream>;

/// A RAM disk of 1 MiB.
fn memory() -> Server {
    Server::nbdkit(["memory", "1M"]).start()
}

/// False, with a note, when the server under test is Debian's, which lacks what the test is about.
fn ours_only(what: &str) -> bool {
    let ours = Binary::under_test().is_ours();
    if !ours {
        eprintln!("SKIPPED: Debian's nbdkit lacks {what}");
    }
    ours
}

/// A connection after the greeting.
fn haggling(server: &Server) -> Connection {
    let mut client = server.connect();
    client.handshake().expect("a fixed newstyle handshake");
    client
}

/// A connection in the transmission phase with these headers, and with `base:allocation` if they
/// permit it.
fn open(server: &Server, headers: Headers) -> Connection {
    let mut client = haggling(server);
    let negotiated = match headers {
        Headers::Simple => None,
        Headers::Structured => Some(client.structured_replies().expect("a reply").reply),
        Headers::Extended => Some(client.extended_headers().expect("a reply").reply),
    };
    if let Some(reply) = negotiated {
        assert_eq!(reply, Rep::ACK);
        let answer = client.set_meta_context("", &["base:allocation"]).expect("a reply");
        assert_eq!(answer.contexts.len(), 1);
    }
    let answer = client.go("", &[]).expect("a reply");
    assert_eq!(answer.end.reply, Rep::ACK);
    client
}

/// The server still serves: the last step of every test that mistreats it.
fn assert_still_serves(server: &Server) {
    let mut client = open(server, Headers::Structured);
    let reply = client.call(&nbdkit_tests::Ask::read(0, 1)).expect("a reply");
    assert_eq!(reply.error, None);
    client.disconnect().expect("still connected");
}
