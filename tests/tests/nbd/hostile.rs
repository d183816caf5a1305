//! Upstream servers that lie: every malformed reply is an error of the requests that wait, and the
//! end of nothing but the connection.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread::JoinHandle;

use nbd_protocol::constants::{
    BASE_ALLOCATION, ChunkType, HandshakeFlags, Opt, Rep, ReplyFlags, TransmissionFlags,
};
use nbd_protocol::handshake::{
    Greeting, Info, MetaContextReply, OptionHeader, encode_option_reply,
};
use nbd_protocol::transmission::{Request, SimpleReply, StructuredReplyChunk};
use nbdkit_tests::server::{Server, ours};
use nbdkit_tests::{Ask, TempDir};

/// What the server does with one connection, once it has accepted it.
type Act = fn(&mut UnixStream) -> std::io::Result<()>;

/// A server that does the same with every connection.
struct Liar {
    path: PathBuf,
    _dir: TempDir,
    _thread: JoinHandle<()>,
}

impl Liar {
    fn new(act: Act) -> Liar {
        let dir = TempDir::new();
        let path = dir.join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        // It ends with the test's process: nobody connects any more.
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || {
                    let mut stream = stream;
                    let _ = act(&mut stream);
                    // Kept open: the end of the connection would be an error by itself.
                    let _ = std::io::copy(&mut stream, &mut std::io::sink());
                });
            }
        });
        Liar { path, _dir: dir, _thread: thread }
    }

    fn client_of(&self, more: &[&str]) -> Server {
        let socket = format!("socket={}", self.path.display());
        ours(&[&["nbd", &socket], more].concat()).start()
    }
}

/// The option that comes next, and its payload.
fn option(stream: &mut UnixStream) -> std::io::Result<Opt> {
    let mut header = [0; OptionHeader::LENGTH];
    stream.read_exact(&mut header)?;
    let header = OptionHeader::decode(&header).unwrap();
    stream.read_exact(&mut vec![0; header.length as usize])?;
    Ok(header.option)
}

const FLAGS: TransmissionFlags = TransmissionFlags::HAS_FLAGS.union(TransmissionFlags::SEND_FLUSH);

/// Greets, and answers options up to this one.
fn haggle_until(stream: &mut UnixStream, last: Opt) -> std::io::Result<()> {
    stream.write_all(&Greeting::encode_newstyle(HandshakeFlags::all()))?;
    stream.read_exact(&mut [0; 4])?;
    loop {
        let option = option(stream)?;
        if option == last {
            return Ok(());
        }
        let mut reply = Vec::new();
        match option {
            Opt::STRUCTURED_REPLY => {}
            Opt::SET_META_CONTEXT => {
                let mut payload = Vec::new();
                MetaContextReply { id: 7, name: BASE_ALLOCATION }.encode(&mut payload);
                encode_option_reply(&mut reply, option, Rep::META_CONTEXT, &payload);
            }
            Opt::GO => {
                let mut payload = Vec::new();
                Info::Export { size: 1 << 20, flags: FLAGS }.encode(&mut payload);
                encode_option_reply(&mut reply, option, Rep::INFO, &payload);
            }
            _ => {
                encode_option_reply(&mut reply, option, Rep::ERR_UNSUP, b"");
                stream.write_all(&reply)?;
                continue;
            }
        }
        encode_option_reply(&mut reply, option, Rep::ACK, b"");
        stream.write_all(&reply)?;
        if option == Opt::GO {
            return Ok(());
        }
    }
}

/// Transmits until a request comes; its cookie.
fn request(stream: &mut UnixStream) -> std::io::Result<u64> {
    haggle_until(stream, Opt(u32::MAX))?;
    next_request(stream)
}

fn next_request(stream: &mut UnixStream) -> std::io::Result<u64> {
    let mut request = [0; Request::LENGTH];
    stream.read_exact(&mut request)?;
    Ok(Request::decode(&request).unwrap().cookie)
}

fn chunk(cookie: u64, chunk_type: ChunkType, flags: ReplyFlags, payload: &[u8]) -> Vec<u8> {
    let length = payload.len() as u32;
    let mut bytes = StructuredReplyChunk { flags, chunk_type, cookie, length }.encode().to_vec();
    bytes.extend(payload);
    bytes
}

fn reply(bytes: Vec<u8>) -> impl FnOnce(&mut UnixStream) -> std::io::Result<()> {
    move |stream| stream.write_all(&bytes)
}

#[test]
fn a_lie_in_the_handshake_refuses_the_client() {
    const LIES: &[(&str, Act)] = &[
        ("no greeting of NBD", |s| s.write_all(&[b'x'; 200])),
        ("the end", |s| s.shutdown(std::net::Shutdown::Both)),
        ("half a greeting", |s| {
            s.write_all(b"NBDMAGICIHAVE")?;
            s.shutdown(std::net::Shutdown::Both)
        }),
        ("an oldstyle disk beyond all bounds", |s| {
            s.write_all(&Greeting::encode_oldstyle(u64::MAX, FLAGS))
        }),
        ("a reply to another option", |s| {
            haggle_until(s, Opt::EXTENDED_HEADERS)?;
            let mut bytes = Vec::new();
            encode_option_reply(&mut bytes, Opt::LIST, Rep::ACK, b"");
            s.write_all(&bytes)
        }),
        ("an endless reply", |s| {
            haggle_until(s, Opt::GO)?;
            let mut bytes = Vec::new();
            encode_option_reply(&mut bytes, Opt::GO, Rep::INFO, &[0; 100_000]);
            s.write_all(&bytes)
        }),
        ("endless replies", |s| {
            haggle_until(s, Opt::GO)?;
            let mut bytes = Vec::new();
            encode_option_reply(&mut bytes, Opt::GO, Rep::INFO, b"\0\x09");
            loop {
                s.write_all(&bytes)?;
            }
        }),
        ("no export", |s| {
            haggle_until(s, Opt::GO)?;
            let mut bytes = Vec::new();
            encode_option_reply(&mut bytes, Opt::GO, Rep::ACK, b"");
            s.write_all(&bytes)
        }),
        ("block sizes that make no sense", |s| {
            haggle_until(s, Opt::GO)?;
            let mut bytes = Vec::new();
            let sizes = b"\0\x03\0\0\0\x03\0\0\0\0\xff\0\0\0";
            encode_option_reply(&mut bytes, Opt::GO, Rep::INFO, sizes);
            let mut export = Vec::new();
            Info::Export { size: 1 << 20, flags: FLAGS }.encode(&mut export);
            encode_option_reply(&mut bytes, Opt::GO, Rep::INFO, &export);
            encode_option_reply(&mut bytes, Opt::GO, Rep::ACK, b"");
            s.write_all(&bytes)
        }),
    ];
    for (name, act) in LIES {
        let liar = Liar::new(*act);
        let server = liar.client_of(&[]);
        // The same twice: nothing is left of the first.
        for _ in 0..2 {
            let mut client = server.connect();
            client.handshake().unwrap();
            assert!(client.go("", &[]).unwrap().end.reply.is_error(), "{name}");
        }
        let socket = format!("socket={}", liar.path.display());
        let shared = ours(&["nbd", &socket, "shared=true"]).try_start();
        if *name != "block sizes that make no sense" {
            assert_eq!(shared.unwrap_err().stderr.lines().count(), 1, "{name}");
        }
    }
}

#[test]
fn a_lie_in_a_reply_fails_the_request_and_the_connection() {
    const DONE: ReplyFlags = ReplyFlags::DONE;
    const NONE: ReplyFlags = ReplyFlags::empty();
    const LIES: &[(&str, Act)] = &[
        ("no magic", |s| {
            request(s)?;
            s.write_all(&[0; 64])
        }),
        ("the end", |s| {
            request(s)?;
            s.shutdown(std::net::Shutdown::Both)
        }),
        ("the end in a reply", |s| {
            let cookie = request(s)?;
            reply(chunk(cookie, ChunkType::OFFSET_DATA, DONE, &[0; 100]))(s)?;
            s.shutdown(std::net::Shutdown::Both)
        }),
        ("another cookie", |s| {
            let cookie = request(s)?;
            reply(chunk(cookie + 1, ChunkType::NONE, DONE, b""))(s)
        }),
        ("a reply twice", |s| {
            let cookie = request(s)?;
            let bytes = [&[0; 8][..], &[1; 4096]].concat();
            let bytes = chunk(cookie, ChunkType::OFFSET_DATA, DONE, &bytes);
            reply([bytes.clone(), bytes].concat())(s)?;
            next_request(s).map(drop)
        }),
        ("a simple reply", |s| {
            let cookie = request(s)?;
            s.write_all(&SimpleReply { error: 0, cookie }.encode())
        }),
        ("no data", |s| {
            let cookie = request(s)?;
            reply(chunk(cookie, ChunkType::NONE, DONE, b""))(s)
        }),
        ("too much data", |s| {
            let cookie = request(s)?;
            reply(chunk(cookie, ChunkType::OFFSET_DATA, DONE, &[0; 8 + 4097]))(s)
        }),
        ("data elsewhere", |s| {
            let cookie = request(s)?;
            reply(chunk(cookie, ChunkType::OFFSET_DATA, DONE, &[1; 8 + 4096]))(s)
        }),
        ("bytes twice", |s| {
            let cookie = request(s)?;
            let data = chunk(cookie, ChunkType::OFFSET_DATA, NONE, &[0; 8 + 4096]);
            reply([data.clone(), data].concat())(s)
        }),
        ("a huge hole", |s| {
            let cookie = request(s)?;
            let hole = b"\0\0\0\0\0\0\0\0\xff\xff\xff\xff";
            reply(chunk(cookie, ChunkType::OFFSET_HOLE, DONE, hole))(s)
        }),
        ("extents", |s| {
            let cookie = request(s)?;
            let extent = b"\0\0\0\x07\0\0\0\x01\0\0\0\0";
            reply(chunk(cookie, ChunkType::BLOCK_STATUS, DONE, extent))(s)
        }),
        ("an unknown chunk", |s| {
            let cookie = request(s)?;
            reply(chunk(cookie, ChunkType(99), DONE, b""))(s)
        }),
        ("an error that is none", |s| {
            let cookie = request(s)?;
            reply(chunk(cookie, ChunkType::ERROR, DONE, &[0; 6]))(s)
        }),
        ("an endless error", |s| {
            let cookie = request(s)?;
            reply(chunk(cookie, ChunkType::ERROR, DONE, &[1; 1 << 20]))(s)
        }),
    ];
    const IN_FLIGHT: usize = 8;
    let read = Ask::read(0, 4096);
    for (name, act) in LIES {
        let liar = Liar::new(*act);
        for more in [&[][..], &["shared=true"]] {
            let server = liar.client_of(more);
            let mut client = server.connected("");
            let first = client.call(&read).unwrap();
            // What is wrong with a reply that comes twice is noticed at the next one.
            let failed = match first.error {
                Some(error) => error.code,
                None => client.call(&read).unwrap().error.map_or(0, |it| it.code),
            };
            assert!([5, 108].contains(&failed), "{name}: {failed}");
            let again = client.call(&read).unwrap().error.map_or(0, |it| it.code);
            assert!([5, 108].contains(&again), "{name}: {again}");
            client.disconnect().unwrap();
        }
        // Several requests in flight: all fail but one that may have been answered.
        let server = liar.client_of(&[]);
        let mut client = server.connected("");
        for _ in 0..IN_FLIGHT {
            client.send(&read).unwrap();
        }
        let failed = (0..IN_FLIGHT).filter(|_| client.receive().unwrap().error.is_some()).count();
        assert!(failed >= IN_FLIGHT - 1, "{name}: {failed} of {IN_FLIGHT} failed");
    }
}

#[test]
fn a_list_without_end_is_refused() {
    let liar = Liar::new(|s| {
        haggle_until(s, Opt::LIST)?;
        let mut bytes = Vec::new();
        encode_option_reply(&mut bytes, Opt::LIST, Rep::SERVER, b"\0\0\0\x01x");
        loop {
            s.write_all(&bytes)?;
        }
    });
    let server = liar.client_of(&["dynamic-export=true"]);
    let mut client = server.connect();
    client.handshake().unwrap();
    assert!(client.list().unwrap().end.reply.is_error());
    assert!(server.wait_for_stderr("NBD_OPT_LIST").contains("more than"));
}

/// It says nothing at all: then a client may go, and its worker goes with it.
#[test]
fn a_server_that_says_nothing_holds_up_nobody() {
    for (act, opens) in [((|_| Ok(())) as Act, false), (|s| request(s).map(drop), true)] {
        let liar = Liar::new(act);
        let server = liar.client_of(&[]);
        let mut client = server.connect();
        client.handshake().unwrap();
        if opens {
            client.go("", &[]).unwrap();
            client.send(&Ask::read(0, 4096)).unwrap();
        } else {
            let mut payload = Vec::new();
            nbd_protocol::handshake::InfoRequest::encode(&mut payload, "", &[]);
            client.send_option(Opt::GO, &payload).unwrap();
        }
        nbdkit_tests::processes::eventually("there is a worker", || !server.workers().is_empty());
        drop(client);
        nbdkit_tests::processes::eventually("it has ended", || server.workers().is_empty());
    }
}
