//! What disks are put through, whoever serves them: every kind of request, and very many at once.

use std::collections::HashMap;

use nbd_protocol::constants::{CommandFlags, TransmissionFlags};

use crate::transcript::Session;
use crate::{Ask, Server};

/// What every disk is asked; nothing here depends on its size, as long as that is 64 KiB.
pub fn exercise(s: &mut Session) {
    s.connect();
    s.list();
    s.info("");
    s.block_sizes("");
    s.disconnect();
    s.open();
    s.read(0, 512);
    s.write(0, 512, 0xaa);
    s.write(700, 1000, 0xbb);
    s.read(0, 4096);
    s.ask(&Ask::write_zeroes(256, 512));
    s.ask(&Ask::write_zeroes(0, 16).flags(CommandFlags::NO_HOLE));
    let fast = Ask::write_zeroes(0, 64).flags(CommandFlags::FAST_ZERO);
    s.ask_if(TransmissionFlags::SEND_FAST_ZERO, &fast);
    s.ask_if(TransmissionFlags::SEND_TRIM, &Ask::trim(512, 128));
    s.ask_if(TransmissionFlags::SEND_CACHE, &Ask::cache(0, 512));
    s.ask_if(TransmissionFlags::SEND_FLUSH, &Ask::flush());
    let fua = Ask::write(512, [1; 16]).flags(CommandFlags::FUA);
    s.ask_if(TransmissionFlags::SEND_FUA, &fua);
    s.read(0, 65536);
    s.read(65535, 1);
    s.block_status(0, 65536);
    s.ask(&Ask::block_status(512, 1024).flags(CommandFlags::REQ_ONE));
    s.disconnect();
}

const CLIENTS: u64 = 8;
const DEPTH: u64 = 64;
const ROUNDS: u64 = 12;
const BLOCK: u64 = 4096;

/// Every client writes and reads blocks of its own, 64 requests at a time; no two use the same
/// block.
///
/// # Panics
/// If anything else is read, or the server does not end well.
pub fn stress(arguments: &[&str]) {
    let mut server = Server::nbdkit(arguments).start();
    std::thread::scope(|scope| {
        for number in 0..CLIENTS {
            let server = &server;
            scope.spawn(move || {
                let mut client = server.connect();
                client.handshake().expect("a handshake");
                client.structured_replies().expect("structured replies");
                assert!(client.go("", &[]).expect("an answer").export().is_some());
                let offset = |slot: u64| (slot * CLIENTS + number) * BLOCK;
                let value = |round: u64, slot: u64| (round * 37 + slot * 11 + number) as u8;
                for round in 0..ROUNDS {
                    for slot in 0..DEPTH {
                        let data = vec![value(round, slot); BLOCK as usize];
                        client.send(&Ask::write(offset(slot), data)).expect("sent");
                    }
                    for _ in 0..DEPTH {
                        assert_eq!(client.receive().expect("a reply").error, None);
                    }
                    let slots: HashMap<u64, u64> = (0..DEPTH)
                        .map(|slot| {
                            (client.send(&Ask::read(offset(slot), BLOCK)).expect("sent"), slot)
                        })
                        .collect();
                    for _ in 0..DEPTH {
                        let reply = client.receive().expect("a reply");
                        let expected = value(round, slots[&reply.cookie]);
                        assert!(reply.data.iter().all(|byte| *byte == expected), "round {round}");
                    }
                }
                client.disconnect().expect("gone");
            });
        }
    });
    assert!(server.stop().success());
}
