//! Clients and accidents that mean harm: each attack runs while a well-behaved client works on the
//! same server, whose answers must stay right. How long the slowest of them took is printed, not
//! judged: the machine may be busy.
//!
//! - `admission`: who is let in; `newcomers`: how soon; `memory`: what a client can make a worker
//!   hold; `floods`: what it can make it do
//! - `logs`: what clients can do to the log; `killing`: how the listener ends workers; `replacing`:
//!   when a template cannot be
//! - `history`: nbdkit's security history, by name; `faults`: kill -9, full disks; `fuzz`: mutated
//!   sessions
//!
//! Ours only: Debian's nbdkit is one process, and is known to fall to some of this.

mod admission;
mod bystander;
mod faults;
mod floods;
mod fuzz;
mod history;
mod killing;
mod logs;
mod memory;
mod newcomers;
mod processes;
mod replacing;

use std::os::unix::net::UnixStream;

use nbd_protocol::constants::Rep;
use nbdkit_tests::client::Headers;
use nbdkit_tests::{Ask, Client, Server};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

type Connection = Client<UnixStream>;

/// A connection after the greeting.
fn haggling(server: &Server) -> Connection {
    let mut client = server.connect();
    client.handshake().expect("a greeting");
    client
}

/// A connection to the default export, with `base:allocation` if the headers permit it.
fn open(server: &Server, headers: Headers) -> Connection {
    let mut client = haggling(server);
    let reply = match headers {
        Headers::Simple => None,
        Headers::Structured => Some(client.structured_replies().expect("a reply").reply),
        Headers::Extended => Some(client.extended_headers().expect("a reply").reply),
    };
    if let Some(reply) = reply {
        assert_eq!(reply, Rep::ACK);
        client.set_meta_context("", &["base:allocation"]).expect("a reply");
    }
    assert_eq!(client.go("", &[]).expect("a reply").end.reply, Rep::ACK);
    client
}

/// A request that must succeed; what it read.
fn succeed(client: &mut Connection, ask: &Ask) -> Vec<u8> {
    let reply = client.call(ask).expect("a reply");
    assert_eq!(reply.error, None, "{ask:?}");
    reply.data
}
