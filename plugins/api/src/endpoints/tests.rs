//! Connecting without a broker, which is what this process has.

use super::*;
use crate::client::Peer;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;

/// Nobody waits for it.
const PATIENT: Duration = Duration::from_secs(20);

fn soon(after: Duration) -> Instant {
    Instant::now() + after
}

/// A directory of this test's own.
struct Dir(PathBuf);

impl Dir {
    fn new(test: &str) -> Dir {
        let path =
            std::env::temp_dir().join(format!("nbdkit-connect-{}-{test}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir(&path).unwrap();
        Dir(path)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A Unix socket with a backlog that `_clients` have filled.
struct Full {
    listener: UnixListener,
    _clients: Vec<OwnedFd>,
}

fn full(path: &Path) -> Full {
    let listener = UnixListener::bind(path).unwrap();
    nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(1).unwrap()).unwrap();
    let address = [direct::Address::Unix(path.to_owned())];
    let begin = || direct::begin(&address, 0);
    let clients: Vec<_> = std::iter::from_fn(|| begin().ok().map(|it| it.fd)).take(100).collect();
    assert!((1..100).contains(&clients.len()));
    assert_eq!(begin().unwrap_err(), Failure::Os(Errno::EAGAIN));
    Full { listener, _clients: clients }
}

#[test]
fn an_endpoint_is_checked_when_it_is_made() {
    let message = |result: Result<Endpoint>| result.unwrap_err().message().to_owned();
    assert_eq!(message(Endpoint::tcp("", "1")), "the name of a host must not be empty");
    assert_eq!(message(Endpoint::tcp("a\0b", "1")), "the name of a host must not be empty");
    assert_eq!(message(Endpoint::unix("socket")), "socket: the path is not absolute");
    let long = format!("/{}", "x".repeat(107));
    assert_eq!(message(Endpoint::unix(&long)), format!("{long}: File name too long"));
    assert!(Endpoint::unix(&long[..107]).is_ok());
    let shown = [
        Endpoint::tcp("disks.example", "10809").unwrap(),
        Endpoint::unix("/run/socket").unwrap(),
        Endpoint::Vsock { cid: 2, port: 10809 },
    ]
    .map(|endpoint| endpoint.to_string());
    assert_eq!(shown, ["tcp:disks.example:10809", "unix:/run/socket", "vsock:2:10809"]);
}

#[test]
fn a_socket_that_is_connected_blocks() {
    let dir = Dir::new("blocks");
    let path = dir.0.join("socket");
    let unix = UnixListener::bind(&path).unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = tcp.local_addr().unwrap().port();
    let endpoints = [
        Endpoint::Unix(path),
        Endpoint::Tcp { host: "127.0.0.1".into(), port },
        Endpoint::Tcp { host: "localhost".into(), port },
    ];
    for (at, endpoint) in endpoints.iter().enumerate() {
        let fd = connect(None, endpoint, soon(PATIENT)).unwrap();
        let flags = fcntl(&fd, FcntlArg::F_GETFL).unwrap();
        assert!(!OFlag::from_bits_retain(flags).contains(OFlag::O_NONBLOCK), "{endpoint}");
        assert_eq!(fcntl(&fd, FcntlArg::F_GETFD), Ok(libc::FD_CLOEXEC));
        match at {
            0 => unix.accept().unwrap().0.write_all(b"x").unwrap(),
            _ => tcp.accept().unwrap().0.write_all(b"x").unwrap(),
        }
        let mut byte = [0];
        std::fs::File::from(fd).read_exact(&mut byte).unwrap();
        assert_eq!(byte, *b"x");
    }
}

#[test]
fn the_message_tells_why_and_not_where() {
    // Bound and closed again: nobody listens there now.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    for (endpoint, errno, message) in [
        (
            Endpoint::Tcp { host: "127.0.0.1".into(), port },
            Errno::ECONNREFUSED,
            "connect: Connection refused",
        ),
        (
            Endpoint::Unix("/no/such/socket".into()),
            Errno::ENOENT,
            "connect: No such file or directory",
        ),
    ] {
        let mut error = connect(None, &endpoint, soon(PATIENT)).unwrap_err();
        assert_eq!((error.errno(), error.message()), (errno, message));
        assert!(!error.take_for_log(), "the log has it, with the place");
    }
}

#[test]
fn a_full_backlog_is_waited_for_until_the_deadline() {
    let dir = Dir::new("backlog");
    let path = dir.0.join("socket");
    let full = full(&path);
    let endpoint = Endpoint::Unix(path);
    let started = Instant::now();
    let error = connect(None, &endpoint, soon(Duration::from_millis(300))).unwrap_err();
    assert_eq!(error.errno(), Errno::EAGAIN);
    assert!(started.elapsed() < PATIENT);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| connect(None, &endpoint, soon(PATIENT)));
        std::thread::sleep(Duration::from_millis(50));
        assert!(!waiting.is_finished());
        drop(full.listener.accept().unwrap());
        waiting.join().unwrap().unwrap();
    });
}

/// The kernel answers no SYN where the queue of connections that nobody has accepted is full.
/// listen(2)
#[test]
fn nobody_is_waited_for_longer_than_the_deadline() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(1).unwrap()).unwrap();
    let address = listener.local_addr().unwrap();
    let begin = || direct::begin(&[direct::Address::Ip(address)], 0).unwrap().fd;
    let wait = || Wait { client: None, deadline: soon(Duration::from_millis(200)) };
    let mut queued = Vec::new();
    while queued.last().is_none_or(|fd| established(fd, &wait()).is_ok()) {
        queued.push(begin());
        assert!(queued.len() < 100);
    }
    let endpoint = Endpoint::Tcp { host: "127.0.0.1".into(), port: address.port() };
    let started = Instant::now();
    let error = connect(None, &endpoint, soon(Duration::from_millis(200))).unwrap_err();
    assert_eq!(error.errno(), Errno::ETIMEDOUT);
    assert!(started.elapsed() < PATIENT);
}

#[test]
fn the_end_of_the_client_is_the_end_of_waiting() {
    let dir = Dir::new("end");
    let path = dir.0.join("socket");
    let _full = full(&path);
    let (ours, theirs) = UnixStream::pair().unwrap();
    let socket = Some(Arc::new(OwnedFd::from(ours)));
    let client = Client::new(1, Peer::default(), socket, Box::new(|| ()));
    drop(theirs);
    let started = Instant::now();
    let error = connect(Some(&client), &Endpoint::Unix(path), soon(PATIENT)).unwrap_err();
    assert_eq!(error.errno(), Errno::ESHUTDOWN);
    assert!(started.elapsed() < PATIENT / 2);
    // And where a descriptor is waited for.
    let (quiet, _other) = UnixStream::pair().unwrap();
    let wait = Wait { client: Some(&client), deadline: soon(PATIENT) };
    assert_eq!(wait.ready(quiet.as_fd(), PollFlags::POLLIN), Err(Errno::ESHUTDOWN));
    let wait = Wait { client: None, deadline: soon(Duration::from_millis(20)) };
    assert_eq!(wait.ready(quiet.as_fd(), PollFlags::POLLIN), Err(Errno::ETIMEDOUT));
}
