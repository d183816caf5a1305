//! The handshake phase, free-form: the first byte picks the server, the rest is what the client
//! sends.

use nbd_protocol::constants::{ClientFlags, HandshakeFlags, MAX_STRING, Opt, Rep};
use nbd_protocol::handshake::{
    Greeting, Info, MetaContextReply, NEWSTYLE_GREETING_LENGTH, OLDSTYLE_GREETING_LENGTH,
    OptionHeader, OptionReplyHeader, ServerReply, error_message,
};
use nbdkit_ipc::WorkerExit;
use nbdkit_worker::fuzz::Server;

use crate::input::Input;
use crate::session;

/// Payloads up to here are answered; longer ones are skipped or end the session, which the input is
/// too short for.
const MAX_INPUT: usize = 1 << 16;

fn server(choice: u8) -> (Server, bool) {
    let (filters, plugin, parameters): (&[&str], _, &[_]) = match choice & 7 {
        0 => (&[], "memory", &[("size", "100000")]),
        1 => (&[], "info", &[]),
        2 => {
            (&["exportname"], "memory", &[("size", "1M"), ("exportname", "a"), ("exportname", "b")])
        }
        3 => (
            &["exportname"],
            "memory",
            &[("size", "1M"), ("exportname", "a"), ("exportname-strict", "true")],
        ),
        4 => (&["cow"], "data", &[("raw", "some text")]),
        5 => (&["log"], "memory", &[("size", "1M"), ("logfile", "/dev/null")]),
        // Requests on other threads.
        6 => (&[], "memory", &[("size", "1M"), ("allocator", "zstd")]),
        _ => (&["noextents", "nozero", "fua"], "null", &[("size", "4E")]),
    };
    let mut configure = session::configuration(filters, plugin);
    configure.threads = 4;
    configure.readonly = choice & 8 != 0;
    configure.protocol.structured_replies = choice & 16 == 0;
    configure.protocol.meta_contexts = choice & 32 == 0;
    configure.protocol.mask_handshake = if choice & 64 == 0 { u32::MAX } else { 1 };
    configure.protocol.oldstyle = choice & 128 != 0;
    (session::server(&configure, parameters), configure.protocol.oldstyle)
}

/// The target.
///
/// # Panics
/// If the server does, or if its replies are not those of a handshake.
pub fn target(data: &[u8]) {
    let Some((choice, bytes)) = data.split_first() else { return };
    let bytes = &bytes[..bytes.len().min(MAX_INPUT)];
    let (server, oldstyle) = server(*choice);
    let (exit, replies) = session::serve(&server, bytes);
    let mut replies = Input(&replies);
    if oldstyle {
        if exit == WorkerExit::Refused {
            return assert!(replies.is_empty(), "a greeting and a refusal");
        }
        let greeting = replies.bytes(OLDSTYLE_GREETING_LENGTH);
        let greeting = greeting.try_into().expect("the greeting comes at once");
        Greeting::decode_oldstyle(&greeting).expect("a greeting");
        return;
    }
    let greeting = replies.bytes(NEWSTYLE_GREETING_LENGTH);
    let greeting = greeting.try_into().expect("the greeting comes at once");
    let Ok(Greeting::Newstyle { flags }) = Greeting::decode_newstyle(&greeting) else {
        panic!("no greeting");
    };
    let mut bytes = Input(bytes);
    let client = match bytes.bytes(4).try_into() {
        Ok(client) => ClientFlags::from_bits_retain(u32::from_be_bytes(client)),
        Err(_) => return assert!(replies.is_empty(), "replies to nothing"),
    };
    options(bytes, &mut replies, flags, client, exit);
}

/// Holds the replies against the options.
fn options(
    mut bytes: Input<'_>,
    replies: &mut Input<'_>,
    flags: HandshakeFlags,
    client: ClientFlags,
    exit: WorkerExit,
) {
    let no_zeroes =
        flags.contains(HandshakeFlags::NO_ZEROES) && client.contains(ClientFlags::NO_ZEROES);
    while let Ok(header) = bytes.bytes(OptionHeader::LENGTH).try_into() {
        let Ok(OptionHeader { option, length }) = OptionHeader::decode(&header) else { break };
        if bytes.bytes(length as usize).len() < length as usize {
            break;
        }
        if replies.is_empty() {
            assert_ne!(exit, WorkerExit::Clean, "{option} was not answered");
            return;
        }
        if option == Opt::EXPORT_NAME {
            let length = if no_zeroes { 10 } else { 134 };
            assert_eq!(replies.bytes(length).len(), length, "{option}");
            return;
        }
        let last = replies_to(option, replies);
        if option == Opt::GO && last == Rep::ACK {
            return;
        }
        if option == Opt::ABORT {
            break;
        }
    }
    assert!(replies.is_empty(), "replies to nothing");
}

/// Reads the replies to one option; the last.
fn replies_to(option: Opt, replies: &mut Input<'_>) -> Rep {
    loop {
        let header = replies.bytes(OptionReplyHeader::LENGTH);
        let header = header.try_into().expect("replies come whole");
        let header = OptionReplyHeader::decode(&header).expect("a reply's magic");
        assert_eq!(header.option, option);
        let payload = replies.bytes(header.length as usize);
        assert_eq!(payload.len(), header.length as usize, "replies come whole");
        match header.reply {
            Rep::SERVER => drop(ServerReply::decode(payload).expect("an export")),
            Rep::INFO => drop(Info::decode(payload).expect("information")),
            Rep::META_CONTEXT => drop(MetaContextReply::decode(payload).expect("a context")),
            Rep::ACK => {
                assert!(payload.is_empty(), "{option}: NBD_REP_ACK with a payload");
                return Rep::ACK;
            }
            error => {
                assert!(error.is_error(), "{option}: {error}");
                let message = error_message(payload).expect("a text");
                assert!(message.len() <= MAX_STRING, "{option}: a message too long");
                return error;
            }
        }
    }
}
