//! The bytes of the messages, and what becomes of other bytes.

use std::ffi::OsString;

use super::*;
use crate::codec::{decode, encode};
use crate::ids::StackId;
use crate::keys::{KeyAnswer, KeyRequest};
use crate::status::WorkerExit;

/// The start of every session. If these bytes change, so must `VERSION`.
#[test]
fn the_hello_keeps_its_bytes() {
    let hello = Hello { version: 1, build: "b".to_owned() };
    let bytes = [0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, b'b'];
    assert_eq!(encode(&ToTemplate::Hello(hello.clone())).unwrap(), bytes);
    assert_eq!(encode(&FromTemplate::Hello(hello)).unwrap(), bytes);
}

/// The position of a variant is its number on the wire.
#[test]
fn variants_keep_their_order() {
    let first = |bytes: Option<Vec<u8>>| bytes.unwrap()[0];
    let parameter = Parameter { key: None, value: OsString::new(), applies: Applies::Always };
    let service = EnterService { user: None, group: None, background: false, forked: false };
    assert_eq!(first(encode(&ToTemplate::Parameter(parameter))), 2);
    assert_eq!(first(encode(&ToTemplate::ConfigureEnd)), 3);
    assert_eq!(first(encode(&ToTemplate::EnterService(service))), 4);
    assert_eq!(first(encode(&ToTemplate::Quiesce)), 6);
    assert_eq!(first(encode(&FromTemplate::Failed)), 2);
    assert_eq!(first(encode(&FromTemplate::Ready)), 4);
    assert_eq!(first(encode(&FromTemplate::Forked { connection: 1, pid: 1 })), 5);
    assert_eq!(first(encode(&FromTemplate::Exited { connection: 1, exit: WorkerExit::Clean })), 6);
    assert_eq!(first(encode(&FromTemplate::Shutdown)), 7);
    assert_eq!(first(encode(&FromWorker::Shutdown)), 1);
    assert_eq!(
        first(encode(&FromWorker::Serving {
            stack: StackId::ONLY,
            export: String::new(),
            tls_dn: None
        })),
        2
    );
    assert_eq!(first(encode(&FromTemplate::Refused { syscall: 0 })), 8);
    assert_eq!(first(encode(&FromWorker::Refused { syscall: 0 })), 3);
    let serving = FromTemplate::Serving {
        connection: 1,
        stack: StackId::ONLY,
        export: String::new(),
        tls_dn: None,
    };
    assert_eq!(first(encode(&serving)), 10);
    assert_eq!(first(encode(&ToTemplate::Disconnect { connection: 1 })), 9);
    assert_eq!(first(encode(&ToWorker::Quiesce)), 0);
    let (request, answer) = (KeyRequest::Psk { identity: vec![] }, KeyAnswer::Denied);
    assert_eq!(encode(&request).unwrap()[0], 1);
    assert_eq!(encode(&answer).unwrap()[0], 2);
    assert_eq!(first(encode(&FromWorker::Key(request.clone()))), 4);
    assert_eq!(first(encode(&ToWorker::Key(answer.clone()))), 1);
    assert_eq!(
        first(encode(&FromTemplate::Broker { stack: StackId::ONLY, pid: 1, always: false })),
        11
    );
    assert_eq!(first(encode(&FromWorker::Broker { stack: StackId::ONLY })), 5);
    assert_eq!(first(encode(&ToWorker::Broker)), 2);
    assert_eq!(first(encode(&FromTemplate::Key { connection: 1, request })), 9);
    assert_eq!(first(encode(&ToTemplate::Key { connection: 1, answer })), 8);
}

/// Where the numbers of stacks and keys are. If these bytes change, so must `VERSION`.
#[test]
fn ids_keep_their_place() {
    let (stack, key) = (StackId(7), crate::ids::KeyId(9));
    let export = || "x".to_owned();
    let name = [1, 0, 0, 0, 0, 0, 0, 0, b'x'];
    let serving = encode(&FromWorker::Serving { stack, export: export(), tls_dn: None }).unwrap();
    assert_eq!(serving, [&[2, 0, 0, 0, 7, 0, 0, 0][..], &name, &[0]].concat());
    let tls_dn = Some(export());
    let serving = FromTemplate::Serving { connection: 3, stack, export: export(), tls_dn };
    let start = [10, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0];
    assert_eq!(encode(&serving).unwrap(), [&start[..], &name, &[1], &name].concat());
    let broker = FromTemplate::Broker { stack, pid: 2, always: true };
    assert_eq!(encode(&broker).unwrap(), [11, 0, 0, 0, 7, 0, 0, 0, 2, 0, 0, 0, 1]);
    assert_eq!(encode(&FromWorker::Broker { stack }).unwrap(), [5, 0, 0, 0, 7, 0, 0, 0]);
    let request = KeyRequest::Sign { key, scheme: 0x0807, message: vec![b'A'] };
    let start = [4, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 7, 8];
    let sign = encode(&FromWorker::Key(request)).unwrap();
    assert_eq!(sign, [&start[..], &[1, 0, 0, 0, 0, 0, 0, 0, b'A']].concat());
}

/// Types that the command line and plugins have too. If these bytes change, so must `VERSION`.
#[test]
fn shared_types_keep_their_bytes() {
    let number = |bytes: Option<Vec<u8>>| {
        let bytes = bytes.unwrap();
        (bytes[0], bytes.len())
    };
    assert_eq!(number(encode(&Isolation::Connection)), (0, 4));
    assert_eq!(number(encode(&Isolation::Shared)), (1, 4));
    let sandboxes = [Sandbox::Strict, Sandbox::Compat, Sandbox::Off, Sandbox::Programs];
    assert_eq!(sandboxes.map(|it| encode(&it).unwrap()[0]), [0, 1, 2, 3]);
    let peer = |address| Peer {
        address,
        credentials: Some((1, 2, 3)),
        security_context: Some("x".to_owned()),
    };
    let end = [&[1, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0][..], &[1, 1, 0, 0, 0, 0, 0, 0, 0, b'x']];
    let end = end.concat();
    for (address, start) in [
        (
            PeerAddress::Inet(([127, 0, 0, 1], 7).into()),
            &[0, 0, 0, 0, 0, 0, 0, 0, 127, 0, 0, 1, 7, 0][..],
        ),
        (PeerAddress::Unix, &[1, 0, 0, 0]),
        (PeerAddress::Vsock { cid: 2, port: 7 }, &[2, 0, 0, 0, 2, 0, 0, 0, 7, 0, 0, 0]),
        (PeerAddress::Unknown, &[3, 0, 0, 0]),
    ] {
        assert_eq!(encode(&peer(address)).unwrap(), [start, &end].concat());
    }
}

/// If these bytes change, so must `VERSION`.
#[test]
fn totals_keep_their_bytes() {
    let totals = Totals { read: 0x0102, written: 3 };
    let numbers = [2, 1, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0];
    let worker = [&[6, 0, 0, 0][..], &numbers].concat();
    assert_eq!(encode(&FromWorker::Totals(totals)).unwrap(), worker);
    let template = [&[12, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0][..], &numbers].concat();
    assert_eq!(encode(&FromTemplate::Totals { connection: 7, totals }).unwrap(), template);
}

/// If these bytes change, so must `VERSION`.
#[test]
fn parking_keeps_its_bytes() {
    let state = ParkedState::of(&7_u8).unwrap();
    let parked = [1, 0, 0, 0, 0, 0, 0, 0, 7];
    let totals = Totals { read: 2, written: 3 };
    let numbers = [2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0];
    let park = FromWorker::Park { state: state.clone(), totals };
    assert_eq!(encode(&park).unwrap(), [&[7, 0, 0, 0][..], &parked, &numbers].concat());
    let peer = Peer { address: PeerAddress::Unix, credentials: None, security_context: None };
    let serve = |park_after, parked| {
        let peer = peer.clone();
        let (connection, stack, broker) = (9, StackId::ONLY, true);
        ToTemplate::Serve(Serve { connection, stack, peer, broker, park_after, parked })
    };
    let start = [5, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1];
    assert_eq!(encode(&serve(None, None)).unwrap(), [&start[..], &[0, 0]].concat());
    let after = [1, 4, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0];
    let time = std::time::Duration::new(4, 5);
    let bytes = [&start[..], &after, &[1], &parked].concat();
    assert_eq!(encode(&serve(Some(time), Some(state))).unwrap(), bytes);
}

#[test]
fn levels_keep_their_order() {
    for (number, level) in
        [Level::Error, Level::Warning, Level::Notice, Level::Debug].into_iter().enumerate()
    {
        assert_eq!(usize::from(encode(&level).unwrap()[0]), number);
    }
}

#[test]
fn random_bytes_decode_to_nothing_or_to_their_message() {
    // xorshift: the same noise in every run.
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for _ in 0..20_000 {
        let length = (next() % 64) as usize;
        let mut noise: Vec<u8> = (0..length).map(|_| next() as u8).collect();
        if let Some(byte) = noise.first_mut() {
            *byte %= 10;
            for byte in noise.iter_mut().skip(1).take(3) {
                *byte = 0;
            }
        }
        if let Some(message) = decode::<FromTemplate>(&noise) {
            assert_eq!(encode(&message).unwrap(), noise);
        }
        let _ = decode::<FromWorker>(&noise);
        let _ = decode::<ToTemplate>(&noise);
    }
}

#[test]
fn another_build_is_refused_with_both_names() {
    let (ours, digit) = (Hello::ours(), if crate::BUILD.ends_with('0') { "1" } else { "0" });
    let other = [&crate::BUILD[..crate::BUILD.len() - 1], digit].concat();
    let error = Hello { build: other.clone(), ..ours }.check().unwrap_err();
    assert!(error.contains(crate::BUILD) && error.contains(&other), "{error}");
    let error = Hello { version: 1, build: "evil\x1b[2J".to_owned() }.check().unwrap_err();
    assert!(error.contains("evil\\u{1b}[2J"), "{error}");
    assert!(Hello::ours().check().is_ok());
}
