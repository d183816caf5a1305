//! Valid sessions, mutated: whatever bytes a client sends, the server stays up, serves others, and
//! lets the session end.
//!
//! Deterministic but for timing. `NBDKIT_FUZZ_SEED` (a number) repeats a run,
//! `NBDKIT_FUZZ_SESSIONS` makes it longer, as `make fuzz` does.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nbd_protocol::constants::{Command, CommandFlags, Opt};
use nbd_protocol::handshake::{InfoRequest, MetaContextRequest, encode_option};
use nbd_protocol::transmission::{BlockStatusPayload, Request};
use nbdkit_tests::client::Headers;
use nbdkit_tests::processes::eventually;
use nbdkit_tests::server::ours;
use nbdkit_tests::{Server, uninterrupted};

use super::bystander::{Bystander, Work};

const SESSIONS: u64 = 3200;
const SEED: u64 = 0x4e42_444d_4147_4943;
/// Where the bystander works: no few mutations of a request of 64 MiB at most, or of its offset,
/// reach there and stay inside the export, for a mutated write there would be no fault of the
/// server.
const RESERVED: u64 = 125 << 20;
const SIZE: u64 = 127 << 20;
/// How much of a session's replies is collected before it hangs up.
const COLLECT: usize = 8 << 20;

/// xorshift64*.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 32) as usize % limit.max(1)
    }

    fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }
}

/// What a client sends, message by message.
type Session = Vec<Vec<u8>>;

fn option(option: Opt, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_option(&mut bytes, option, payload);
    bytes
}

/// Sessions that a good client would hold: every option, every command, every form of header.
fn valid_sessions() -> Vec<Session> {
    let mut sessions = Vec::new();
    for headers in [Headers::Simple, Headers::Structured, Headers::Extended] {
        for old_way in [false, true] {
            let (mut go, mut queries) = (Vec::new(), Vec::new());
            InfoRequest::encode(&mut go, "", &[]);
            MetaContextRequest::encode(&mut queries, "", &["base:allocation", "x:y"]);
            let mut session =
                vec![vec![0, 0, 0, 3], option(Opt::LIST, &[]), option(Opt::INFO, &go)];
            session.push(option(Opt::STARTTLS, &[]));
            match headers {
                Headers::Simple => {}
                Headers::Structured => session.push(option(Opt::STRUCTURED_REPLY, &[])),
                Headers::Extended => session.push(option(Opt::EXTENDED_HEADERS, &[])),
            }
            session.push(option(Opt::LIST_META_CONTEXT, &queries));
            session.push(option(Opt::SET_META_CONTEXT, &queries));
            session.push(if old_way {
                option(Opt::EXPORT_NAME, b"")
            } else {
                option(Opt::GO, &go)
            });
            session.extend(requests(headers));
            sessions.push(session);
        }
    }
    sessions.push(vec![vec![0, 0, 0, 3], option(Opt::ABORT, &[])]);
    sessions
}

fn requests(headers: Headers) -> Session {
    let none = CommandFlags::empty();
    let mut filter = Vec::new();
    BlockStatusPayload::encode(&mut filter, 65536, &[1]);
    let data = vec![0x55; 4096];
    let extended = headers == Headers::Extended;
    let sized = if extended { CommandFlags::PAYLOAD_LEN } else { none };
    let mut all: Vec<(Command, CommandFlags, u64, u64, &[u8])> = vec![
        (Command::READ, none, 0, 4096, &[]),
        (Command::READ, none, 4096, 300_000, &[]),
        (Command::WRITE, sized, 8192, 4096, &data),
        (Command::WRITE, sized | CommandFlags::FUA, 100, 1000, &data[..1000]),
        (Command::FLUSH, none, 0, 0, &[]),
        (Command::TRIM, none, 0, 65536, &[]),
        (Command::CACHE, none, 0, 65536, &[]),
        (Command::WRITE_ZEROES, CommandFlags::NO_HOLE, 65536, 65536, &[]),
        (Command::WRITE_ZEROES, CommandFlags::FAST_ZERO, 1 << 20, 65536, &[]),
    ];
    if headers != Headers::Simple {
        all.push((Command::READ, CommandFlags::DF, 0, 65536, &[]));
        all.push((Command::BLOCK_STATUS, none, 0, 1 << 20, &[]));
        all.push((Command::BLOCK_STATUS, CommandFlags::REQ_ONE, 0, 1 << 20, &[]));
    }
    if extended {
        all.push((Command::BLOCK_STATUS, sized, 0, filter.len() as u64, &filter));
    }
    all.push((Command::DISC, none, 0, 0, &[]));
    let encode = |(cookie, it): (usize, &(Command, CommandFlags, u64, u64, &[u8]))| {
        let (command, flags, offset, length, payload) = *it;
        let request = Request { flags, command, cookie: cookie as u64, offset, length };
        let header =
            if extended { request.encode_extended().to_vec() } else { request.encode().to_vec() };
        [&header[..], payload].concat()
    };
    all.iter().enumerate().map(encode).collect()
}

/// Numbers at which code tends to go wrong.
const EDGES: [u64; 14] = [
    0,
    1,
    0x7f,
    0xff,
    0xffff,
    0x1_0000,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x1_0000_0000,
    64 << 20,
    (64 << 20) + 1,
    i64::MAX as u64,
    u64::MAX,
];

fn mutate(random: &mut Random, session: &mut Session, others: &[Session]) {
    for _ in 0..=random.below(4) {
        let at = random.below(session.len());
        match random.below(9) {
            0 => drop(session.remove(at)),
            1 => session.insert(at, session[at].clone()),
            2 => {
                let other = random.below(session.len());
                session.swap(at, other);
            }
            3 => {
                let stranger = random.pick(others).clone();
                session.insert(at, random.pick(&stranger).clone());
            }
            4 => {
                let length = random.below(session[at].len());
                session[at].truncate(length);
            }
            5 => {
                let noise: Vec<u8> = (0..random.below(64)).map(|_| random.next() as u8).collect();
                session[at].extend(noise);
            }
            6 => {
                let bit = random.below(session[at].len() * 8);
                if let Some(byte) = session[at].get_mut(bit / 8) {
                    *byte ^= 1 << (bit % 8);
                }
            }
            // A field of 2, 4 or 8 bytes.
            _ => {
                let width = *random.pick(&[2, 4, 8]);
                let value = random.pick(&EDGES).wrapping_sub(random.next() & 1).to_be_bytes();
                let start = random.below(session[at].len() / 2 + 1) * 2;
                if let Some(field) = session[at].get_mut(start..start + width) {
                    field.copy_from_slice(&value[8 - width..]);
                }
            }
        }
        if session.is_empty() {
            session.push(Vec::new());
        }
    }
}

/// Sends everything, takes what comes, and waits for the end; false if it hung up first because
/// there was too much.
fn play(socket: &Path, session: &Session) -> bool {
    let mut stream = UnixStream::connect(socket).expect("the server accepts");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("set");
    stream.set_write_timeout(Some(Duration::from_millis(500))).expect("set");
    // A client that does not read may find its writes blocked, or the connection gone: both are
    // fine.
    let sent = stream.write_all(&session.concat()).is_ok();
    let _ = stream.shutdown(Shutdown::Write);
    let (mut taken, mut buffer) = (0, vec![0; 65536]);
    loop {
        match uninterrupted(|| stream.read(&mut buffer)) {
            Ok(0) => return true,
            Ok(_) if taken > COLLECT || (!sent && taken > 0) => return false,
            Ok(count) => taken += count,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return true,
            Err(error) => panic!("the session did not end: {error}"),
        }
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().expect(name))
}

#[test]
fn mutated_sessions_harm_nobody() {
    let seed = number("NBDKIT_FUZZ_SEED", SEED);
    let sessions = number("NBDKIT_FUZZ_SESSIONS", SESSIONS);
    let started = Instant::now();
    let servers = [
        ("fuzz, memory", &["memory", "127M"][..]),
        ("fuzz, file", &["file", "{dir}/disk"]),
        ("fuzz, filters", &["--filter=cow", "--filter=log", "memory", "127M", "logfile={dir}/log"]),
        ("fuzz, shared", &["--isolation=shared", "memory", "127M"]),
    ]
    .map(|(name, arguments)| {
        let builder = ours(arguments);
        let disk = std::fs::File::create(builder.dir().join("disk")).expect("created");
        (&disk).write_all(&[1; 1 << 20]).expect("written");
        disk.set_len(SIZE).expect("resized");
        (name, builder.start())
    });
    let valid = valid_sessions();
    for (index, (name, mut server)) in servers.into_iter().enumerate() {
        let mut random = Random((seed ^ index as u64) | 1);
        let bystander = Bystander::start(&server, name, Work::Writes(RESERVED));
        for session in &valid {
            assert!(play(server.socket(), session), "{name}: a valid session");
        }
        let mut ended = 0;
        for _ in 0..sessions / 4 {
            let mut session = random.pick(&valid).clone();
            mutate(&mut random, &mut session, &valid);
            ended += u64::from(play(server.socket(), &session));
        }
        println!("{name}: seed {seed}, {} sessions, {ended} to their end", sessions / 4);
        bystander.finish();
        assert_in_order(name, &mut server);
    }
    println!("{sessions} mutated sessions in {:.1?}", started.elapsed());
}

/// Nothing panicked, nothing was killed, nobody is left, and the server ends as it should.
fn assert_in_order(name: &str, server: &mut Server) {
    eventually("all workers end", || server.workers().is_empty());
    assert!(server.stop().success(), "{name}");
    let text = server.stderr_text_after_end();
    for trouble in ["panic", "killed by signal", "exited with status", "protocol violation"] {
        assert!(!text.contains(trouble), "{name}: {text}");
    }
}
