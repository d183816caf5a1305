//! Work that a client can cause: many small things, as fast as it can send them.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use nbd_protocol::constants::{Command, CommandFlags, Opt};
use nbd_protocol::handshake::{MetaContextRequest, encode_option};
use nbd_protocol::transmission::Request;
use nbdkit_tests::client::Headers;
use nbdkit_tests::server::ours;

use super::bystander::{Bystander, Work};
use super::processes::{peak_kib, worker_of};
use super::{KIB, MIB, haggling, open};

/// Sends as much as the server takes in a while, collecting whatever it answers or, if not,
/// nothing.
fn pour(stream: &mut std::os::unix::net::UnixStream, bytes: &[u8], collect: bool) -> usize {
    let end = Instant::now() + Duration::from_secs(1);
    stream.set_nonblocking(true).expect("set");
    let (mut sent, mut at, mut sink) = (0, 0, [0; 65536]);
    while Instant::now() < end {
        let wrote = stream.write(&bytes[at..]).unwrap_or(0);
        sent += wrote;
        at = (at + wrote) % bytes.len();
        let read = if collect { stream.read(&mut sink).unwrap_or(0) } else { 0 };
        if wrote + read == 0 {
            std::thread::sleep(Duration::from_micros(200));
        }
    }
    sent
}

#[test]
fn a_flood_of_every_option() {
    let server = ours(&["memory", "64M"]).start();
    let bystander = Bystander::start(&server, "flood of options", Work::Writes(MIB));
    let mut bytes = Vec::new();
    let mut queries = Vec::new();
    MetaContextRequest::encode(&mut queries, "", &["base:allocation"; 200]);
    for option in [Opt::LIST, Opt::STARTTLS, Opt::STRUCTURED_REPLY, Opt(77)] {
        encode_option(&mut bytes, option, &[]);
    }
    encode_option(&mut bytes, Opt::INFO, b"\0\0\0\0\0\0");
    encode_option(&mut bytes, Opt::LIST_META_CONTEXT, &queries);
    encode_option(&mut bytes, Opt::SET_META_CONTEXT, &queries);
    encode_option(&mut bytes, Opt(78), &[1; 4000]);
    for collect in [true, false] {
        let (worker, mut client) = worker_of(&server, || haggling(&server));
        let sent = pour(client.transport(), &bytes, collect);
        let peak = peak_kib(worker) / KIB;
        println!("flood of options: {sent} bytes, collected {collect}: at most {peak} MiB");
        assert!(peak < 16, "{peak} MiB");
    }
    bystander.finish();
}

#[test]
fn a_flood_of_requests_good_and_bad() {
    for plugin in ["memory", "file"] {
        let (parameter, name) =
            if plugin == "file" { ("{dir}/disk", "flood, file") } else { ("64M", "flood, memory") };
        let builder = ours(&[plugin, parameter]);
        std::fs::write(builder.dir().join("disk"), vec![0; 64 << 20]).expect("written");
        let server = builder.start();
        let bystander = Bystander::start(&server, name, Work::Writes(60 * MIB));
        let mut bytes = Vec::new();
        for (command, offset, length) in [
            (Command::READ, 0, 512),
            (Command::READ, u64::MAX, 512),
            (Command::BLOCK_STATUS, 0, 64 << 20),
            (Command::CACHE, 0, 4096),
            (Command::TRIM, 0, 4096),
            (Command::WRITE_ZEROES, 8192, 4096),
            (Command::FLUSH, 0, 0),
            (Command(44), 0, 0),
            (Command::READ, 4096, 65536),
        ] {
            let flags = CommandFlags::empty();
            let request = Request { flags, command, cookie: 9, offset, length };
            bytes.extend_from_slice(&request.encode());
        }
        for collect in [true, false] {
            let (worker, mut client) = worker_of(&server, || open(&server, Headers::Structured));
            let sent = pour(client.transport(), &bytes, collect);
            let peak = peak_kib(worker) / KIB;
            println!("{name}: {sent} bytes, collected {collect}: at most {peak} MiB");
            assert!(peak < 96, "{peak} MiB");
        }
        bystander.finish();
        // What a client does wrong is worth a line, but not all the lines that it would like.
        let lines = server.stderr_text().lines().count();
        assert!(lines < 1000, "{name}: {lines} lines of log");
    }
}
