//! Many clients with many requests each, all at once, in one process: what is read is what was written.

use std::collections::HashMap;

use nbdkit_tests::{Ask, Server};

use crate::support::{compile, debian_or_skip, open};

const CLIENTS: u64 = 8;
const DEPTH: u64 = 64;
const ROUNDS: u64 = 12;
const BLOCK: u64 = 4096;

/// Every client writes and reads blocks of its own, 64 requests at a time; no two use the same block.
fn stress(arguments: &[&str]) {
    let mut server = Server::nbdkit(arguments).start();
    std::thread::scope(|scope| {
        for number in 0..CLIENTS {
            let server = &server;
            scope.spawn(move || {
                let mut client = server.connect();
                open(&mut client);
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

#[test]
fn eight_clients_64_deep_on_debians_memory_plugin() {
    if let Some(plugin) = debian_or_skip("memory") {
        stress(&[&plugin, "2M"]);
    }
}

#[test]
fn eight_clients_64_deep_on_debians_malloc_allocator() {
    if let Some(plugin) = debian_or_skip("memory") {
        stress(&[&plugin, "2M", "allocator=malloc"]);
    }
}

#[test]
fn eight_clients_64_deep_on_a_plugin_that_makes_strings() {
    stress(&[&compile("strings.c", &[])]);
}
