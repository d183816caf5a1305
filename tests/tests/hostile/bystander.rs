//! A well-behaved client that works while others do not behave.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nbd_protocol::constants::Rep;
use nbdkit_tests::{Ask, Client, Server};

/// What it read must be what it wrote; on an export that it cannot write, zeroes.
#[derive(Clone, Copy)]
pub(crate) enum Work {
    /// Writes 4 KiB at this offset and reads them back. Nobody else may write there.
    Writes(u64),
    #[allow(dead_code, reason = "not in every crate of tests that has a bystander")]
    /// Reads 4 KiB of zeroes at this offset.
    ReadsZeroes(u64),
}

/// Another client, which works and checks its data while something happens.
pub(crate) struct Bystander {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<(Vec<Duration>, Vec<Duration>)>>,
    attack: &'static str,
}

const BLOCK: u64 = 4096;

impl Bystander {
    /// Begins to work on the default export. `attack` is a name for what is printed.
    pub(crate) fn start(server: &Server, attack: &'static str, work: Work) -> Bystander {
        let stop = Arc::new(AtomicBool::new(false));
        let (socket, stopped) = (server.socket().to_owned(), Arc::clone(&stop));
        let (begun, has_begun) = channel();
        let thread = std::thread::spawn(move || labour(&socket, work, &stopped, &begun));
        has_begun.recv().expect("the bystander is connected");
        Bystander { stop, thread: Some(thread), attack }
    }

    /// Ends the work, says how long it took, and fails if anything was wrong.
    pub(crate) fn finish(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let (requests, arrivals) =
            self.thread.take().expect("once").join().expect("the bystander was served");
        assert!(!requests.is_empty() && !arrivals.is_empty());
        println!(
            "{}: {}; {}",
            self.attack,
            tail("requests", requests),
            tail("new clients", arrivals)
        );
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn connect(socket: &PathBuf) -> Client<UnixStream> {
    let mut client = Client::new(UnixStream::connect(socket).expect("connect"));
    client.handshake().expect("a greeting");
    assert_eq!(client.go("", &[]).expect("a reply").end.reply, Rep::ACK);
    client
}

fn labour(
    socket: &PathBuf,
    work: Work,
    stop: &AtomicBool,
    begun: &Sender<()>,
) -> (Vec<Duration>, Vec<Duration>) {
    let (mut requests, mut arrivals) = (Vec::new(), Vec::new());
    let mut client = connect(socket);
    let _ = begun.send(());
    for round in 0_u64.. {
        if round % 20 == 0 {
            let begin = Instant::now();
            let mut other = connect(socket);
            exchange(&mut other, work, round, &mut Vec::new());
            other.disconnect().expect("sent");
            arrivals.push(begin.elapsed());
        }
        exchange(&mut client, work, round, &mut requests);
        if stop.load(Ordering::Relaxed) {
            break;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    client.disconnect().expect("still connected");
    (requests, arrivals)
}

fn exchange(client: &mut Client<UnixStream>, work: Work, round: u64, took: &mut Vec<Duration>) {
    let mut timed = |ask: &Ask| {
        let begin = Instant::now();
        let reply = client.call(ask).expect("a reply");
        took.push(begin.elapsed());
        assert_eq!(reply.error, None);
        reply.data
    };
    match work {
        Work::Writes(offset) => {
            let data = round.to_be_bytes().repeat(BLOCK as usize / 8);
            timed(&Ask::write(offset, data.clone()));
            assert_eq!(timed(&Ask::read(offset, BLOCK)), data, "what was written is what is read");
        }
        Work::ReadsZeroes(offset) => {
            assert_eq!(timed(&Ask::read(offset, BLOCK)), [0; BLOCK as usize]);
        }
    }
}

fn tail(what: &str, mut all: Vec<Duration>) -> String {
    all.sort_unstable();
    let at = |share: f64| all[((all.len() - 1) as f64 * share) as usize];
    format!(
        "{} {what}: median {:.1?}, 99% {:.1?}, most {:.1?}",
        all.len(),
        at(0.5),
        at(0.99),
        at(1.0)
    )
}
