//! The broker, asked by hostile workers: what it opens is what was declared, as it was declared,
//! and what it connects to was declared.

use std::fs::{File, Metadata};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use nbdkit_api::Endpoint;
use nbdkit_api::paths::Declared;
use nbdkit_ipc::{Channel, FromBroker, Received, ToBroker};
use nbdkit_worker::fuzz::Broker;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};

use crate::channel::{MAX_PACKETS, MOST_FDS, send};
use crate::input::Input;

/// What is served: `file`, which may be written; the files of `disks`, which may not, one by a
/// link; those of `plain`, where links are refused. `port` is an endpoint. Everything else is there
/// to be got at.
struct Fixture {
    path: PathBuf,
    port: TcpListener,
    secret: TcpListener,
}

thread_local! {
    static FIXTURE: Fixture = Fixture::new();
}

impl Fixture {
    fn new() -> Fixture {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("nbdkit-fuzz-broker-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        for directory in ["disks/sub", "plain"] {
            std::fs::create_dir_all(path.join(directory)).expect("made");
        }
        for file in ["file", "target", "secret", "disks/a", "disks/sub/b", "plain/c"] {
            std::fs::write(path.join(file), "x").expect("written");
        }
        for (target, link) in
            [("../target", "disks/l"), ("/proc/self/mem", "disks/m"), ("c", "plain/l")]
        {
            symlink(target, path.join(link)).expect("made");
        }
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        Fixture { path, port, secret: TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port") }
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// Two workers that send anything: who, with how many descriptors, and a packet; again and again.
///
/// # Panics
/// If something is opened or connected to that was not declared, or not as it was.
pub fn target(data: &[u8]) {
    FIXTURE.with(|fixture| session(fixture, data));
}

fn session(fixture: &Fixture, data: &[u8]) {
    let path = fixture.path.as_path();
    let declared = vec![
        Declared::file(path.join("file")),
        Declared::directory(path.join("disks"), true).read_only(true),
        Declared::directory(path.join("plain"), false).read_only(true),
    ];
    let port = fixture.port.local_addr().expect("bound").port();
    // None that a thread has to wait for.
    let endpoints = vec![Endpoint::Tcp { host: "127.0.0.1".to_owned(), port }];
    let mut broker = Broker::new(declared, endpoints).expect("descriptors");
    let mut input = Input(data);
    let workers = [1, 2].map(|connection| {
        let (worker, theirs) = Channel::<ToBroker, FromBroker>::pair().expect("descriptors");
        broker.admit(connection, theirs);
        worker
    });
    for _ in 0..MAX_PACKETS {
        if input.is_empty() {
            break;
        }
        let who = input.u8();
        let worker = &workers[usize::from(who & 1)];
        send(worker.as_fd(), input.sized(), usize::from(who >> 4) % (MOST_FDS + 1));
        broker.turn();
        while let Ok(Received { message, fds, .. }) = worker.try_recv() {
            let connecting = matches!(message, FromBroker::Connecting { .. });
            let opened = matches!(message, FromBroker::Opened { .. });
            assert_eq!(fds.len(), usize::from(opened || connecting), "{message:?}");
            for fd in fds {
                if connecting {
                    check_connection(fixture, &message, &TcpStream::from(fd));
                } else {
                    check(path, &message, &File::from(fd));
                }
            }
        }
    }
}

/// It is the only address of the only endpoint, and a listener there has it.
fn check_connection(fixture: &Fixture, message: &FromBroker, stream: &TcpStream) {
    assert_eq!(*message, FromBroker::Connecting { next: None });
    let (accepted, _) = fixture.port.accept().expect("a connection");
    let peer = accepted.peer_addr().expect("connected");
    assert_eq!(stream.local_addr().expect("connected"), peer);
    fixture.secret.set_nonblocking(true).expect("ours");
    assert!(fixture.secret.accept().is_err());
    // So that it is over at once, and its port is free for the next.
    let reset = setsockopt(stream, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 });
    reset.expect("ours");
}

fn check(path: &Path, message: &FromBroker, file: &File) {
    let same = |other: &str, it: &Metadata| {
        let other = std::fs::metadata(path.join(other)).expect("it is there");
        (other.dev(), other.ino()) == (it.dev(), it.ino())
    };
    let found = file.metadata().expect("open");
    let known = ["file", "target", "disks/a", "plain/c", "disks", "plain"];
    let name = known.into_iter().find(|name| same(name, &found));
    let name = name.expect("one of those that were declared");
    assert!(!found.file_type().is_fifo());
    let flags = OFlag::from_bits_truncate(fcntl(file, FcntlArg::F_GETFL).expect("open"));
    let writable = flags & OFlag::O_ACCMODE != OFlag::O_RDONLY;
    assert!(!writable || name == "file", "{name} is open for writing");
    assert_eq!(*message, FromBroker::Opened { writable, block_device: false }, "{name}");
}
