//! Writes the first inputs of every corpus: good messages, from which libFuzzer goes on. `make
//! fuzz` keeps what is new; these are for a corpus that has to be begun again.
//!
//! `cargo run -p nbdkit-fuzz --example seeds -- fuzz/corpus`

mod images;
mod upstream;

use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::time::Duration;

use images::{luks, made_by, qcow2, seekable};
use nbd_protocol::constants::{InfoType, Opt};
use nbd_protocol::handshake::{InfoRequest, MetaContextRequest, encode_option};
use nbdkit_fuzz::session;
use nbdkit_ipc::messages::broker::OpenAccess;
use nbdkit_ipc::messages::{
    Configured, EnterService, Hello, Isolation, Level, LogRecord, ParkedState, Peer, PeerAddress,
    Serve, Totals,
};
use nbdkit_ipc::{
    Channel, FromBroker, FromBrokerLink, FromTemplate, FromWatcher, FromWorker, StackId, ToBroker,
    ToBrokerLink, ToTemplate, ToWorker, WorkerExit,
};
use nix::sys::socket::{MsgFlags, recvmsg};

/// The bytes of a message.
macro_rules! packet {
    ($type:ty, $message:expr) => {{
        let (a, b) = Channel::<$type, $type>::pair().expect("descriptors");
        a.send(&$message, &[]).expect("sent");
        let mut bytes = vec![0; 1 << 17];
        let mut place = [IoSliceMut::new(&mut bytes)];
        let raw = b.as_fd().as_raw_fd();
        let length =
            recvmsg::<()>(raw, &mut place, None, MsgFlags::empty()).expect("received").bytes;
        bytes.truncate(length);
        bytes
    }};
}

fn main() {
    let argument = std::env::args_os().nth(1).expect("the directory of the corpora");
    let seeds = [
        ("handshake", handshakes()),
        ("transmission", transmissions()),
        ("transmission_extended", transmissions()),
        ("messages", messages()),
        ("listener", listeners()),
        ("broker", brokers()),
        ("nbd_upstream", upstream::upstream()),
        ("protocol", payloads()),
        (
            "command_line",
            texts(&[
                "\0-U\n-\nmemory\nsize=1G",
                "\0--filter=cow\n--filter\nerror\n-p\n10809\n-i\nlocalhost\n-e\nex port\nfile\ndisk.img\nerror-rate=10%\n--run\nnbdinfo $uri",
                "\x011\n3\nnull",
                "\0-D\nnbdkit.syscalls=1\n--timeout=1.5ms\n--mask-handshake=0x3\n-t4\n-rvfo\n-n\nnull\n@file\n\na=1\nb",
                "\0--vsock\n--port=99\n--isolation=shared\n--sandbox=off\n--log=stderr\n--tls=off\n-g\n0\nmemory\n1M",
                "\0--help",
                "\0--dump-config",
            ]),
        ),
        (
            "numbers",
            texts(&[
                "1024",
                "-5",
                "4E",
                "0x7fffffff",
                "1.5ms",
                "10%",
                "1:1e5",
                "true",
                "9223372036854775807",
            ]),
        ),
        (
            "parameters",
            texts(&[
                "\x0f\x0f\x03size=1M\nallocator=sparse",
                "\x0b\x0c\x03size=1M\noffset=100\nrange=1000\ntruncate=2000\nround-up=512",
                "\x05\x03\x02exportname=a\nexportdesc=x\nallow=127.0.0.1/8,unix\ndeny=all",
                "\x00\x01\x06size=1G\nerror-rate=0:1\ncow-block-size=4096\ncow-on-read=yes",
                "\x04\x0a\x04size=4E\nfuamode=force\nzeromode=emulate\nfastzeromode=slow",
                "\x06\x07\x00raw=text\nsize=1M\nlimit=1\ncachemode=nop",
            ]),
        ),
        (
            "data_format",
            texts(&[
                "1 2 0xff @512 (0x55*256)[10:20] \"text\\n\"*3",
                "(1 2)*1000 -> \\x \\x[5:9] @+4 @^512 \\x*2",
                "$a $b*2\x001 2 (3)\x00$a[1:]",
                "@0x1fe 0x55 0xaa @-4 le32:5 be64:0x123 # comment\n 7",
            ]),
        ),
        (
            "script_output",
            texts(&[
                "\x011M\0EIO message",
                "\x00512 4096 64M\n\0",
                "\x03INTERLEAVED\na\nfirst\nb\nsecond\n\0ENOSPC",
                "\x00NAMES+DESCRIPTIONS\na\nb\nx\ny\n\0",
                "\x001M 64K hole,zero\n1088K 4096 0\n1092K 1G zero\n\0",
            ]),
        ),
        (
            "filter_lists",
            texts(&[
                "\x000 1M\n1M 9M hole,zero\n# comment\n10M\t512 2\n",
                "\x01# Mapfile\n0x00001000 + 1\n0x00000000 0x00001000 +\n4096 512 -\n4608 0777 ?\n",
            ]),
        ),
        (
            "partition_table",
            [(&[1, 0][..], true), (&[2, 0], true), (&[1, 0], false), (&[7, 0], false)]
                .map(|(head, gpt)| [head, &nbdkit_filters::fuzz::partitioned(gpt)].concat())
                .into(),
        ),
        (
            "fat_names",
            vec![
                b"README.TXT\0read me.txt\0readme~1.txt\0.profile\0a.b.c\0\xc3\xa4.html".to_vec(),
                [&[b'x'; 255][..], b"\0", &[b'x'; 254], b"\0XXXXXX~1\0con.\0 a\0a?"].concat(),
            ],
        ),
        ("vhd", nbdkit_plugins::fuzz::vhd_seeds()),
        ("vhdx", nbdkit_plugins::fuzz::vhdx_seeds()),
        ("vmdk", nbdkit_plugins::fuzz::vmdk_seeds()),
        (
            "tar_archive",
            (0..4)
                .map(|entry| [&[entry, 255], &nbdkit_filters::fuzz::archive()[..]].concat())
                .collect(),
        ),
        (
            "ip_rules",
            texts(&[
                "\x00\x7f\x00\x00\x01127.0.0.0/8,any6",
                "\x23\x02\x00\x00\x00\x09\x00\x00\x00\x03\x00CN=\x00\x00dn:CN=*[a-z]?",
                "\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01::1/128,vsock-cid:2,security:x",
            ]),
        ),
        (
            "tls",
            vec![
                signed(&[
                    b" ".repeat(64).as_slice(),
                    b"TLS 1.3, server CertificateVerify\0",
                    &[7; 32],
                ]),
                signed(&[&[1; 64], &[3, 0, 0x1d, 32], &[9; 32]]),
                signed(&[&[1; 64], &[3, 0, 0x17, 65, 4], &[9; 64]]),
                b"\x02alice:00ff\n#616263:0102\r\n\nbob:x:0a".to_vec(),
            ],
        ),
        (
            "log_line",
            texts(&[
                "\x03\x01\0\0\0\0\0\0\0\x04\0filea line\n\x1b[2J",
                "\x00\0\0\0\0\0\0\0\0plain",
            ]),
        ),
        (
            "cow_shared",
            vec![
                vec![
                    2, 0, 0, 0, 0, 0, 0x20, 7, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x20,
                    14,
                ],
                vec![
                    4, 0, 16, 0, 0, 0, 0x30, 3, 0, 255, 255, 255, 255, 255, 255, 255, 127, 10, 0,
                    0, 0, 0, 255, 255,
                ],
            ],
        ),
        (
            "shared_state",
            vec![
                // Opens a disk of 2^62 bytes, stores, scribbles on the list, and opens it again.
                vec![
                    0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 6, 7, 0, 9, 0, 0, 0, 0, 0, 0, 0, 4, 8, 0,
                    255, 255, 255, 255, 255, 255, 255, 255, 6, 8, 0, 2, 0, 0, 0, 0, 0, 0, 0, 2, 3,
                    0, 1, 0, 0, 0, 0, 0, 0, 64, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0,
                ],
                // Fails, is scribbled on, and succeeds.
                vec![
                    1, 7, 5, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 127, 1, 2, 3, 4, 5, 3, 9, 0, 0, 0,
                    0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1,
                ],
                // Shared and exclusive ranges, a scribble, a release.
                vec![
                    2, 2, 9, 0, 4, 0, 0, 0, 0, 0, 0, 0, 6, 9, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 255,
                    0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
                ],
                // Takes, scribbles, takes, gives back.
                vec![
                    3, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 1, 0, 0, 0, 0, 255, 255,
                    255, 255, 255, 255, 255, 255, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0,
                    0, 1, 0, 0, 0, 1, 9, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0,
                ],
                vec![4, 1, 2, 0, 255, 255, 255, 255, 1, 2],
            ],
        ),
        (
            "allocator",
            (0..3)
                .map(|strategy| {
                    vec![
                        strategy, 1, 0, 16, 0, 0, 0, 64, 7, 4, 0, 0, 0, 0, 255, 255, 3, 0, 20, 0,
                        0, 0, 16, 0, 0, 0, 0, 0, 255, 255, 2, 9, 9, 0, 0, 9, 9, 5,
                    ]
                })
                .collect(),
        ),
        (
            "qcow2dec",
            vec![
                qcow2(&["-o", "cluster_size=512"]),
                qcow2(&["-o", "cluster_size=512", "-c"]),
                qcow2(&["-o", "cluster_size=512,compression_type=zstd", "-c"]),
                qcow2(&["-o", "cluster_size=512,compat=0.10"]),
            ],
        ),
        (
            "bzip2",
            vec![
                made_by("bzip2", &["-c"]),
                [made_by("bzip2", &["-c1"]), made_by("bzip2", &["-c9"])].concat(),
            ],
        ),
        (
            "gzip",
            vec![
                made_by("gzip", &["-c"]),
                [made_by("gzip", &["-c1"]), made_by("gzip", &["-c9"]), vec![0; 5]].concat(),
            ],
        ),
        ("gzip_index", vec![nbdkit_filters::fuzz::gzip_index_case()]),
        ("luks", vec![luks("xts-plain64\0", 32), luks("cbc-essiv:sha256\0", 16)]),
        ("luks2", vec![nbdkit_filters::fuzz::luks2_text().into_bytes()]),
        (
            "lzip",
            vec![
                made_by("lzip", &["-c"]),
                [made_by("lzip", &["-c0"]), made_by("lzip", &["-c9"])].concat(),
            ],
        ),
        (
            "xz",
            vec![
                made_by("xz", &["-c", "--block-size=1000"]),
                made_by("xz", &["-c", "--check=sha256", "--x86", "--lzma2=preset=0"]),
                [made_by("xz", &["-c", "--check=crc32"]), vec![0; 8], made_by("xz", &["-c"])]
                    .concat(),
            ],
        ),
        (
            "zstd",
            vec![
                made_by("zstd", &["-cq"]),
                [made_by("zstd", &["-cq1"]), made_by("zstd", &["-cq19", "--no-check"])].concat(),
                seekable(),
            ],
        ),
    ];
    for (target, inputs) in seeds {
        let directory = Path::new(&argument).join(target);
        std::fs::create_dir_all(&directory).expect("a directory");
        for (number, bytes) in inputs.iter().enumerate() {
            std::fs::write(directory.join(format!("seed-{number}")), bytes).expect("written");
        }
    }
}

fn texts(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

fn option(bytes: &mut Vec<u8>, option: Opt, payload: &[u8]) {
    encode_option(bytes, option, payload);
}

fn handshakes() -> Vec<Vec<u8>> {
    let (mut go, mut queries) = (Vec::new(), Vec::new());
    InfoRequest::encode(
        &mut go,
        "a",
        &[InfoType::NAME, InfoType::DESCRIPTION, InfoType::BLOCK_SIZE],
    );
    MetaContextRequest::encode(&mut queries, "a", &["base:", "base:allocation", "x:y"]);
    (0..8)
        .map(|choice| {
            let mut bytes = vec![choice, 0, 0, 0, 3];
            option(&mut bytes, Opt::LIST, &[]);
            option(&mut bytes, Opt::STARTTLS, &[]);
            option(&mut bytes, Opt::INFO, &go);
            option(
                &mut bytes,
                if choice & 1 == 0 { Opt::STRUCTURED_REPLY } else { Opt::EXTENDED_HEADERS },
                &[],
            );
            option(&mut bytes, Opt::LIST_META_CONTEXT, &queries);
            option(&mut bytes, Opt::SET_META_CONTEXT, &queries);
            match choice & 3 {
                0 => option(&mut bytes, Opt::EXPORT_NAME, b"a"),
                1 => option(&mut bytes, Opt::ABORT, &[]),
                _ => option(&mut bytes, Opt::GO, &go),
            }
            bytes
        })
        .chain([vec![128], vec![16 + 32, 0, 0, 0, 1]])
        .collect()
}

/// Lists of operations: each stack sees every command.
fn transmissions() -> Vec<Vec<u8>> {
    (0..16_u8)
        .map(|choice| {
            let mut bytes = vec![0x80 | choice | (choice & 8) << 3];
            for kind in [3_u8, 0, 6, 0x30, 11, 8, 10, 0x2b, 9, 0x34, 15, 1, 0x3d, 14] {
                bytes.extend([kind, 0, choice.wrapping_mul(kind), 16, 0, 0, 0, 0x40]);
                if kind & 15 == 3 || kind & 15 == 4 {
                    bytes.push(kind);
                }
            }
            bytes
        })
        .collect()
}

fn record() -> LogRecord {
    LogRecord {
        level: Level::Error,
        layer: Some("null".to_owned()),
        connection: 1,
        text: "a line".to_owned(),
    }
}

/// A transcript of the `tls` target.
fn signed(parts: &[&[u8]]) -> Vec<u8> {
    [&[1, 0x03, 0x04, 0, 0], parts.concat().as_slice()].concat()
}

/// Of no build: the seeds are those of all.
fn hello() -> Hello {
    Hello { version: nbdkit_ipc::VERSION, build: "nbdkitd".to_owned() }
}

fn from_template() -> Vec<Vec<u8>> {
    let configured = Configured {
        stack: StackId::ONLY,
        one_client: false,
        isolation: Isolation::Connection,
        replaceable: true,
        may_shutdown: true,
        programs: true,
        undeclared: false,
        can_park: true,
    };
    [
        FromTemplate::Hello(hello()),
        FromTemplate::Configured(configured),
        FromTemplate::Ready,
        FromTemplate::Log(record()),
        FromTemplate::Forked { connection: 1, pid: 77 },
        FromTemplate::Exited { connection: 1, exit: WorkerExit::Clean },
        FromTemplate::Exited { connection: 2, exit: WorkerExit::Killed(11) },
        FromTemplate::Refused { syscall: 1 },
        FromTemplate::Shutdown,
        FromTemplate::Failed,
        FromTemplate::Serving {
            connection: 1,
            stack: StackId(1),
            export: "disk".to_owned(),
            tls_dn: None,
        },
        FromTemplate::Totals { connection: 1, totals: Totals { read: 4096, written: 512 } },
        FromTemplate::Broker { stack: StackId::ONLY, pid: 4_000_009, always: true },
    ]
    .iter()
    .map(|message| packet!(FromTemplate, *message))
    .collect()
}

fn from_worker() -> Vec<Vec<u8>> {
    [
        FromWorker::Log(record()),
        FromWorker::Serving {
            stack: StackId::ONLY,
            export: "disk".to_owned(),
            tls_dn: Some("CN=alice".to_owned()),
        },
        FromWorker::Refused { syscall: 1 },
        FromWorker::Shutdown,
        FromWorker::Serving { stack: StackId(1), export: "disk".to_owned(), tls_dn: None },
        FromWorker::Totals(Totals { read: 4096, written: 512 }),
        FromWorker::Park {
            state: ParkedState::of(&"state").expect("short"),
            totals: Totals { read: 4096, written: 512 },
        },
        FromWorker::Broker { stack: StackId::ONLY },
    ]
    .iter()
    .map(|message| packet!(FromWorker, *message))
    .collect()
}

fn messages() -> Vec<Vec<u8>> {
    let serve = |address| {
        ToTemplate::Serve(Serve {
            broker: false,
            stack: StackId::ONLY,
            connection: 1,
            peer: Peer {
                address,
                credentials: Some((1, 2, 3)),
                security_context: Some("label".to_owned()),
            },
            park_after: Some(Duration::from_secs(5)),
            parked: ParkedState::of(&"state"),
        })
    };
    let to_template = [
        ToTemplate::Hello(hello()),
        ToTemplate::Configure(Box::new(session::configuration(&["cow"], "memory"))),
        ToTemplate::Parameter(session::parameter("size", "1M")),
        ToTemplate::ConfigureEnd,
        ToTemplate::EnterService(EnterService {
            user: Some(1),
            group: None,
            background: true,
            forked: true,
        }),
        serve(PeerAddress::Unix),
        serve(PeerAddress::Inet("[::1]:4000".parse().expect("an address"))),
        serve(PeerAddress::Inet("127.0.0.1:4000".parse().expect("an address"))),
        serve(PeerAddress::Vsock { cid: 2, port: 3 }),
        ToTemplate::Quiesce,
    ];
    let all = [
        (0, from_template()),
        (1, from_worker()),
        (2, to_template.iter().map(|message| packet!(ToTemplate, *message)).collect()),
        (3, vec![packet!(ToWorker, ToWorker::Quiesce), packet!(ToWorker, ToWorker::Broker)]),
        (4, questions()),
        (
            5,
            vec![
                packet!(FromBroker, FromBroker::Opened { writable: true, block_device: false }),
                packet!(FromBroker, FromBroker::Refused { errno: 13 }),
                packet!(FromBroker, FromBroker::WrongType),
                packet!(FromBroker, FromBroker::Connecting { next: Some(1) }),
                packet!(FromBroker, FromBroker::NotResolved { reason: "no".into() }),
            ],
        ),
        (6, vec![packet!(ToBrokerLink, ToBrokerLink::Channel { connection: 1 })]),
        (7, vec![packet!(FromBrokerLink, FromBrokerLink::Refused { syscall: 101 })]),
        (
            8,
            vec![
                packet!(FromWatcher, FromWatcher::Refused { syscall: 101 }),
                packet!(FromWatcher, FromWatcher::Notify),
            ],
        ),
    ];
    all.into_iter()
        .flat_map(|(kind, packets): (u8, Vec<Vec<u8>>)| {
            packets
                .into_iter()
                .enumerate()
                .map(move |(at, packet)| [vec![kind, at as u8 & 1], packet].concat())
        })
        .collect()
}

/// What a worker asks of a broker.
fn questions() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for access in [OpenAccess::Read, OpenAccess::Write, OpenAccess::List] {
        for path in 0..4 {
            for name in
                [None, Some("a"), Some("b"), Some("c"), Some("l"), Some("m"), Some("../secret")]
            {
                let name = name.map(Into::into);
                all.push(packet!(ToBroker, ToBroker::Open { path, name, access }));
            }
        }
    }
    for (endpoint, attempt) in [(0, 0), (0, 1), (1, 0), (u32::MAX, u32::MAX)] {
        all.push(packet!(ToBroker, ToBroker::Connect { endpoint, attempt }));
    }
    all
}

fn brokers() -> Vec<Vec<u8>> {
    let say = |who: u8, packet: &[u8]| {
        [&[who][..], &(packet.len() as u16).to_le_bytes(), packet].concat()
    };
    let questions = questions();
    let each = questions.iter().step_by(3).map(|question| say(0, question));
    let both = questions.chunks(7).map(|some| {
        let said = some.iter().enumerate();
        said.flat_map(|(at, question)| say((at & 1) as u8, question)).collect()
    });
    let with_descriptors = questions.iter().take(3).map(|question| say(0x21, question));
    each.chain(both).chain(with_descriptors).collect()
}

fn listeners() -> Vec<Vec<u8>> {
    let say = |who: u8, packet: &[u8]| {
        [&[who][..], &(packet.len() as u16).to_le_bytes(), packet].concat()
    };
    let (template, worker) = (from_template(), from_worker());
    // The listener target's own greeting, and `Configured`.
    let hello = [&[14][..], &say(0, &template[1])].concat();
    let mut all = Vec::new();
    for shared in [0, 1] {
        let all_of_it: Vec<u8> = template[2..9].iter().flat_map(|packet| say(0, packet)).collect();
        all.push([&[shared][..], &hello, &all_of_it, &[15]].concat());
        for packet in &template[2..] {
            all.push([&[shared][..], &hello, &say(0, packet), &[15]].concat());
        }
    }
    // A broker, which ends; a worker that asks for a channel before, in between and afterwards.
    if let (Some(broker), Some(wanted)) = (template.last(), worker.last()) {
        let asked = say(1, wanted);
        let (ready, said) = (say(0, &template[2]), say(0x10, broker));
        for shared in [0, 1] {
            all.push([&[shared][..], &asked, &hello, &said, &asked, &ready, &asked].concat());
            all.push([&[shared][..], &hello, &said, &said, &asked.repeat(9)].concat());
        }
        all.push([&[0][..], &hello, &said, &ready, &asked.repeat(9), &[15]].concat());
    }
    for packet in &worker {
        all.push([&[0][..], &say(1, packet), &say(0x12, packet), &hello, &[15]].concat());
    }
    // Two workers, one of them twice, and the end of both.
    let claims = [(1, 4_000_001, 2), (1, 4_000_001, 1), (2, 4_000_001, 2), (2, 4_000_002, 2)];
    let forked = claims.map(|(connection, pid, _)| FromTemplate::Forked { connection, pid });
    let exited = claims
        .map(|(.., connection)| FromTemplate::Exited { connection, exit: WorkerExit::Panicked });
    for first in 0..claims.len() {
        for second in 0..claims.len() {
            let said = [&forked[first], &forked[second], &exited[first], &exited[second]];
            let said: Vec<u8> =
                said.iter().flat_map(|message| say(0, &packet!(FromTemplate, **message))).collect();
            let ready = say(0, &template[2]);
            all.push([&[0][..], &hello, &ready, &said, &[15]].concat());
            // With a handle, which is none.
            let handle = say(1 << 4, &packet!(FromTemplate, forked[first]));
            all.push([&[0][..], &hello, &ready, &handle, &say(1, &[9]), &[15]].concat());
        }
    }
    let refusals: Vec<u8> = [2, 2].iter().flat_map(|at: &usize| say(1, &worker[*at])).collect();
    all.push([&[0][..], &refusals].concat());
    all
}

/// Payloads and headers of the protocol.
fn payloads() -> Vec<Vec<u8>> {
    use nbd_protocol::handshake::{Info, MetaContextReply, ServerReply};
    use nbd_protocol::transmission::{
        BlockDescriptor, BlockDescriptorExt, BlockStatus, BlockStatusExt, BlockStatusPayload,
        ErrorChunk,
    };
    let mut all = Vec::new();
    let mut add = |encode: &dyn Fn(&mut Vec<u8>)| {
        let mut buf = Vec::new();
        encode(&mut buf);
        all.push(buf);
    };
    add(&|buf| InfoRequest::encode(buf, "an export", &[InfoType::NAME, InfoType::BLOCK_SIZE]));
    add(&|buf| MetaContextRequest::encode(buf, "export", &["base:allocation", "x-a:b", ""]));
    add(&|buf| MetaContextReply { id: 1, name: "base:allocation" }.encode(buf));
    add(&|buf| ServerReply { name: "name", description: "text" }.encode(buf));
    add(&|buf| Info::Name("name").encode(buf));
    add(&|buf| ErrorChunk::encode_at_offset(buf, 5, "message", 4096));
    add(&|buf| BlockStatus::encode(buf, 1, &[BlockDescriptor { length: 1, flags: 0 }; 3]));
    add(&|buf| BlockStatusExt::encode(buf, 1, &[BlockDescriptorExt { length: 1, flags: 0 }; 3]));
    add(&|buf| BlockStatusPayload::encode(buf, 1, &[1, 2, 3]));
    all
}
