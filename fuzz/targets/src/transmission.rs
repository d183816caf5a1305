//! The transmission phase after a good handshake, in both forms of header. The first byte picks the
//! stack and whether the rest is what the client sends, or a list of operations that become
//! requests.
//!
//! A strict client reads the replies, and a model of the disk knows what they must contain.

mod model;
mod requests;

use nbd_protocol::constants::{Command, CommandFlags, InfoType, Opt};
use nbd_protocol::handshake::{InfoRequest, MetaContextRequest, encode_option};
use nbd_protocol::transmission::Request;
use nbdkit_tests::Client;
use nbdkit_tests::client::{Failure, Headers};
use nbdkit_worker::fuzz::Server;

use crate::input::Input;
use crate::session::{self, Replay};
use model::Model;
use requests::{Ending, operations, parse};

/// Most bytes that are sent: each 28 of them can make the server copy a disk.
const MAX_INPUT: usize = 1 << 13;
/// Of the disk, bytes: above the sizes from which reads are sparse or spliced, and no multiple of
/// anything.
const SIZE: u64 = 200_001;
/// What stands at the beginning of the disks that are not empty.
const TEXT: &str = "a disk that begins with a text, so that copying up has something to copy";

/// Requests of 28 bytes, with simple or structured replies.
///
/// # Panics
/// If the server does, or if a reply is wrong.
pub fn compact(data: &[u8]) {
    let headers = if data.first().is_some_and(|byte| byte & 0x40 == 0) {
        Headers::Structured
    } else {
        Headers::Simple
    };
    run(data, headers);
}

/// Requests of 32 bytes, with extended replies.
///
/// # Panics
/// As [`compact`].
pub fn extended(data: &[u8]) {
    run(data, Headers::Extended);
}

/// The stacks, all of a disk of [`SIZE`] bytes.
fn server(choice: u8) -> (Server, Model) {
    let size = ("size", "200001");
    let (filters, plugin, parameters): (&[&str], _, &[_]) = match choice & 7 {
        0 => (&[], "memory", &[size]),
        1 => (&[], "memory", &[size, ("allocator", "zstd")]),
        2 => (&["cow"], "data", &[size, ("raw", TEXT), ("cow-block-size", "4096")]),
        3 => (
            &["cow"],
            "data",
            &[size, ("raw", TEXT), ("cow-on-read", "true"), ("cow-on-cache", "true")],
        ),
        4 => (
            &["truncate", "offset"],
            "memory",
            &[("size", "1M"), ("truncate", "200001"), ("offset", "777"), ("range", "150000")],
        ),
        5 => (&["nozero", "fua", "nocache"], "memory", &[size, ("fuamode", "force")]),
        6 => (
            &["noextents", "nozero", "fua", "log", "stats"],
            "memory",
            &[
                size,
                ("zeromode", "emulate"),
                ("fuamode", "emulate"),
                ("logfile", "/dev/null"),
                ("statsfile", "/dev/null"),
            ],
        ),
        _ => (&["truncate"], "data", &[("raw", TEXT), ("truncate", "200001")]),
    };
    let mut configure = session::configuration(filters, plugin);
    configure.readonly = choice & 8 != 0;
    let mut model = Model::new(SIZE as usize);
    if plugin == "data" {
        model.begin_with(TEXT.as_bytes());
    }
    // Beyond what is below, truncate's disk cannot be written.
    match choice & 7 {
        4 => model.writable_to(150_000),
        7 => model.writable_to(TEXT.len()),
        _ => {}
    }
    (session::server(&configure, parameters), model)
}

fn run(data: &[u8], headers: Headers) {
    let Some((choice, rest)) = data.split_first() else { return };
    let rest = &rest[..rest.len().min(MAX_INPUT)];
    let extended = headers == Headers::Extended;
    let bytes =
        if choice & 0x80 == 0 { rest.to_vec() } else { operations(Input(rest), extended, SIZE) };
    let (server, mut model) = server(*choice);
    let sent = [handshake(headers), bytes.clone()].concat();
    let (_, replies) = session::serve(&server, &sent);

    let mut client = Client::new(Replay(&replies));
    negotiate(&mut client, headers).expect("the handshake is good");
    let offered = client.export().expect("an export is open");
    assert_eq!(offered.0, SIZE);
    let (requests, ending) = parse(&bytes, extended);
    for (request, payload) in requests {
        client.expect_reply_to(&request, payload);
        match client.receive() {
            Ok(reply) => {
                assert_eq!(reply.cookie, request.cookie, "one thread answers in order");
                model.check(&request, payload, &reply, offered.1);
            }
            // What had gathered may be lost when the server hangs up on a client.
            Err(Failure::Closed) if ending == Ending::Violation => break,
            Err(failure) => panic!("{request:?}: {failure:?}"),
        }
    }
    client.expect_close().expect("no more replies than requests");
}

/// What the client sends first.
fn handshake(headers: Headers) -> Vec<u8> {
    let mut bytes = 3_u32.to_be_bytes().to_vec();
    match headers {
        Headers::Simple => {}
        Headers::Structured => encode_option(&mut bytes, Opt::STRUCTURED_REPLY, &[]),
        Headers::Extended => encode_option(&mut bytes, Opt::EXTENDED_HEADERS, &[]),
    }
    let mut payload = Vec::new();
    if headers != Headers::Simple {
        MetaContextRequest::encode(&mut payload, "", &["base:allocation"]);
        encode_option(&mut bytes, Opt::SET_META_CONTEXT, &payload);
    }
    payload.clear();
    InfoRequest::encode(&mut payload, "", &[InfoType::BLOCK_SIZE]);
    encode_option(&mut bytes, Opt::GO, &payload);
    bytes
}

/// A short session that tries an export whatever it is.
pub(crate) fn trial() -> Vec<u8> {
    let mut bytes = handshake(Headers::Structured);
    for (cookie, command) in
        [Command::BLOCK_STATUS, Command::READ, Command::WRITE_ZEROES, Command::TRIM, Command::CACHE]
            .into_iter()
            .enumerate()
    {
        for offset in [0, 512, (1 << 20) - 100] {
            let (flags, length) = (CommandFlags::empty(), 100);
            let request = Request { flags, command, cookie: cookie as u64, offset, length };
            bytes.extend(request.encode());
        }
    }
    bytes
}

/// The handshake once more, to read the replies.
fn negotiate(client: &mut Client<Replay<'_>>, headers: Headers) -> Result<(), Failure> {
    client.handshake()?;
    match headers {
        Headers::Simple => {}
        Headers::Structured => drop(client.structured_replies()?),
        Headers::Extended => drop(client.extended_headers()?),
    }
    if headers != Headers::Simple {
        client.set_meta_context("", &["base:allocation"])?;
    }
    client.go("", &[InfoType::BLOCK_SIZE])?;
    Ok(())
}
