//! Whole connections, each served on a thread of the test, over a plugin with a configurable delay.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nbd_protocol::constants::{Command, CommandFlags, Opt};
use nbd_protocol::handshake::encode_option;
use nbd_protocol::transmission::Request;
use nbdkit_api::client::Peer;
use nbdkit_api::{
    Blocking, Client, Connection as Handle, Open, Plugin, Result, Stack, ThreadModel,
};
use nbdkit_ipc::WorkerExit;
use nbdkit_ipc::keys::{KeyAnswer, KeyRequest};
use nbdkit_ipc::messages::{Configure, Protocol, Purpose};

use super::{Connection, Socket};
use crate::authority::Authority;
use crate::settings::Settings;

/// A plugin whose reads sleep or panic in the first half of the disk, and return zeroes at once in
/// the second.
struct Delayed {
    blocking: Blocking,
    panics: bool,
    delay: Duration,
}

impl Delayed {
    fn new(blocking: Blocking) -> Delayed {
        Delayed { blocking, panics: false, delay: Duration::from_millis(200) }
    }
}

const SIZE: u64 = 1 << 20;

impl Plugin for Delayed {
    fn name(&self) -> &str {
        "delayed"
    }

    fn open(&self, _: &Open<'_>) -> Result<Box<dyn Handle>> {
        Ok(Box::new(Delayed { ..*self }))
    }
}

impl Handle for Delayed {
    fn size(&self) -> Result<u64> {
        Ok(SIZE)
    }

    fn pread(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        assert!(!self.panics || offset >= SIZE / 2, "configured by the test");
        if offset < SIZE / 2 {
            std::thread::sleep(self.delay);
        }
        buf.fill(0);
        Ok(())
    }

    fn blocking(&self) -> Blocking {
        self.blocking
    }
}

/// Denies every request for a key: the tests use no TLS.
#[derive(Debug)]
struct Nobody;

impl Authority for Nobody {
    fn ask(&self, _: KeyRequest) -> KeyAnswer {
        KeyAnswer::Denied
    }
}

/// Serves the other end of the socket with `threads` threads; returns the worker's exit status.
fn serve(socket: UnixStream, plugin: Delayed, threads: u32) -> WorkerExit {
    let layer = Stack::new(Vec::new(), Box::new(plugin)).freeze();
    let configure = Configure {
        stack: nbdkit_ipc::StackId::ONLY,
        purpose: Purpose::Serve,
        filters: Vec::new(),
        plugin: "delayed".into(),
        verbose: false,
        debug_flags: Vec::new(),
        readonly: false,
        threads,
        protocol: Protocol {
            mask_handshake: u32::MAX,
            meta_contexts: true,
            oldstyle: false,
            structured_replies: true,
        },
        timeout: None,
        stdio_safe: false,
        swap: false,
        isolation: None,
        sandbox: None,
        tls: None,
        introduction: String::new(),
        one_client: false,
        allowed: nbdkit_ipc::messages::Allowed::default(),
        log_connections: false,
        busy_poll: Duration::ZERO,
    };
    let settings = Settings::new(&configure, ThreadModel::Parallel).unwrap();
    let socket = Socket::new(socket.into(), None);
    let cut = socket.clone();
    let client = Client::new(1, Peer::default(), None, Box::new(move || cut.cut()));
    let connection = Connection {
        layer: &layer,
        settings: &settings,
        client,
        socket,
        authority: Arc::new(Nobody),
        on_serving: &|_| {},
        totals: &super::Counters::default(),
        activity: Arc::default(),
        parking: None,
    };
    catch_unwind(AssertUnwindSafe(|| connection.serve())).unwrap_or(WorkerExit::Panicked)
}

fn negotiate(client: &mut UnixStream) {
    client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut out = 3u32.to_be_bytes().to_vec();
    encode_option(&mut out, Opt::GO, &[0; 6]);
    client.write_all(&out).unwrap();
    // Greeting, NBD_INFO_EXPORT, NBD_REP_ACK.
    client.read_exact(&mut [0; 18 + 20 + 12 + 20]).unwrap();
}

fn read_request(cookie: u64, offset: u64) -> [u8; 28] {
    let flags = CommandFlags::empty();
    Request { flags, command: Command::READ, cookie, offset, length: 512 }.encode()
}

/// The cookie of the next reply.
fn reply(client: &mut UnixStream) -> u64 {
    let mut bytes = [0; 16 + 512];
    client.read_exact(&mut bytes).unwrap();
    u64::from_be_bytes(*bytes[8..].first_chunk().unwrap())
}

fn run(plugin: Delayed, threads: u32, client: impl FnOnce(UnixStream)) -> WorkerExit {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    std::thread::scope(|scope| {
        let server = scope.spawn(move || serve(ours, plugin, threads));
        negotiate(&mut theirs);
        client(theirs);
        server.join().unwrap()
    })
}

#[test]
fn a_panic_on_any_thread_ends_the_connection() {
    for blocking in [Blocking::Never, Blocking::Short, Blocking::Peer, Blocking::Long] {
        let exit = run(Delayed { panics: true, ..Delayed::new(blocking) }, 4, |mut client| {
            client.write_all(&read_request(1, 0)).unwrap();
            // The connection is closed without a reply.
            let end = client.read_to_end(&mut Vec::new());
            assert!(
                matches!(&end, Ok(0))
                    || matches!(&end, Err(error) if error.kind() == ErrorKind::ConnectionReset),
                "{end:?}"
            );
        });
        assert_eq!(exit, WorkerExit::Panicked, "{blocking:?}");
    }
}

#[test]
fn a_request_that_waits_does_not_delay_others() {
    let plugin = Delayed { delay: Duration::from_secs(1), ..Delayed::new(Blocking::Long) };
    let exit = run(plugin, 4, |mut client| {
        client.write_all(&read_request(1, 0)).unwrap();
        std::thread::sleep(Duration::from_millis(50));
        client.write_all(&read_request(2, SIZE / 2)).unwrap();
        assert_eq!((reply(&mut client), reply(&mut client)), (2, 1));
    });
    assert_eq!(exit, WorkerExit::Clean);
}

#[test]
fn requests_overlap_up_to_the_number_of_threads() {
    for (threads, least, most) in [(1, 2000, u128::MAX), (4, 600, 2000)] {
        let start = Instant::now();
        run(Delayed::new(Blocking::Long), threads, |mut client| {
            let requests: Vec<u8> = (1..=10).flat_map(|cookie| read_request(cookie, 0)).collect();
            client.write_all(&requests).unwrap();
            let mut cookies: Vec<u64> = (0..10).map(|_| reply(&mut client)).collect();
            cookies.sort_unstable();
            assert_eq!(cookies, Vec::from_iter(1..=10));
        });
        let took = start.elapsed().as_millis();
        assert!((least..most).contains(&took), "{threads} threads: {took} ms");
    }
}

#[test]
fn replies_to_running_requests_are_sent_when_the_client_stops_sending() {
    let exit = run(Delayed::new(Blocking::Long), 4, |mut client| {
        client.write_all(&read_request(7, 0)).unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(reply(&mut client), 7);
    });
    assert_eq!(exit, WorkerExit::Clean);
}
