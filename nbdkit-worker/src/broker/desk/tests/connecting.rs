//! Questions for connections, with a resolver of the test's.

use super::*;
use nbdkit_api::Endpoint;
use nbdkit_api::endpoints::Failure;
use nbdkit_api::endpoints::direct::{Address, addresses};
use std::net::TcpListener;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex};

/// What names lead to; `hangs`, as long as `gate` is closed, to nothing.
#[derive(Default)]
struct Resolver {
    addresses: Mutex<Vec<Address>>,
    open: Mutex<bool>,
    opened: Condvar,
    hanging: AtomicU32,
    lookups: AtomicU32,
}

impl Resolver {
    fn find(&self, endpoint: &Endpoint) -> Result<Vec<Address>, Failure> {
        self.lookups.fetch_add(1, Ordering::SeqCst);
        let Endpoint::Tcp { host, .. } = endpoint else { return addresses(endpoint) };
        match host.as_str() {
            "hangs" => {
                self.hanging.fetch_add(1, Ordering::SeqCst);
                let open = self.open.lock().unwrap();
                drop(self.opened.wait_while(open, |open| !*open).unwrap());
                Err(Failure::NotResolved("hung".into()))
            }
            "panics" => panic!("on purpose"),
            "long" => Err(Failure::NotResolved("\u{e9}".repeat(MAX_REASON))),
            "name" => Ok(self.addresses.lock().unwrap().clone()),
            _ => addresses(endpoint),
        }
    }

    fn hanging(&self) -> u32 {
        self.hanging.load(Ordering::SeqCst)
    }

    fn let_go(&self) {
        *self.open.lock().unwrap() = true;
        self.opened.notify_all();
    }
}

const HANGS: u32 = 0;
const NAME: u32 = 1;
const LITERAL: u32 = 2;
const SOCKET: u32 = 3;
const PANICS: u32 = 4;
const LONG: u32 = 5;

/// A desk with all of these, a server that they lead to, and a file.
struct Office {
    desk: Desk,
    resolver: Arc<Resolver>,
    listener: TcpListener,
    _dir: Dir,
}

impl Office {
    fn new(test: &str) -> Office {
        let dir = Dir::new(test);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let resolver = Arc::new(Resolver::default());
        resolver.addresses.lock().unwrap().push(Address::Ip(address));
        let tcp = |host: &str| Endpoint::tcp(host, &address.port().to_string()).unwrap();
        let socket = dir.0.join("socket");
        let endpoints = vec![
            tcp("hangs"),
            tcp("name"),
            tcp("127.0.0.1"),
            Endpoint::unix(socket).unwrap(),
            tcp("panics"),
            tcp("long"),
        ];
        let found = Arc::clone(&resolver);
        let find = Arc::new(move |endpoint: &Endpoint| found.find(endpoint));
        let connecting = Connecting::finding(endpoints, find).unwrap();
        Office { desk: dir.desk().connecting(connecting).unwrap(), resolver, listener, _dir: dir }
    }

    fn worker(&mut self, connection: u64) -> Worker {
        worker(&mut self.desk, connection)
    }

    /// The answer, with how many descriptors.
    fn ask(&mut self, worker: &Worker, question: &ToBroker) -> (FromBroker, usize) {
        worker.send(question, &[]).unwrap();
        self.answer(worker)
    }

    fn answer(&mut self, worker: &Worker) -> (FromBroker, usize) {
        let mut answer = None;
        eventually(|| {
            turn(&mut self.desk);
            answer = worker.try_recv().ok();
            answer.is_some()
        });
        let Received { message, fds, .. } = answer.unwrap();
        (message, fds.len())
    }

    /// Waits until so many names hang.
    fn until_hanging(&mut self, count: u32) {
        eventually(|| {
            turn(&mut self.desk);
            self.resolver.hanging() == count
        });
    }
}

impl Drop for Office {
    fn drop(&mut self) {
        self.resolver.let_go();
    }
}

fn connect(endpoint: u32, attempt: u32) -> ToBroker {
    ToBroker::Connect { endpoint, attempt }
}

fn refused(errno: Errno) -> (FromBroker, usize) {
    (FromBroker::Refused { errno: errno as i32 }, 0)
}

fn connecting(next: Option<u32>) -> (FromBroker, usize) {
    (FromBroker::Connecting { next }, 1)
}

#[test]
fn only_what_is_declared_is_connected_to() {
    let mut office = Office::new("connect");
    let worker = office.worker(1);
    for (question, expected) in [
        (connect(NAME, 0), connecting(None)),
        (connect(LITERAL, 0), connecting(None)),
        (connect(SOCKET, 0), refused(Errno::ENOENT)),
        (connect(6, 0), refused(Errno::EACCES)),
        (connect(u32::MAX, u32::MAX), refused(Errno::EACCES)),
        (connect(NAME, 1), refused(Errno::EADDRNOTAVAIL)),
        (connect(LITERAL, u32::MAX), refused(Errno::EADDRNOTAVAIL)),
        (connect(PANICS, 0), refused(Errno::EIO)),
        (connect(NAME, 0), connecting(None)),
    ] {
        assert_eq!(office.ask(&worker, &question), expected, "{question:?}");
    }
    let (answer, _) = office.ask(&worker, &connect(LONG, 0));
    let FromBroker::NotResolved { reason } = answer else { panic!("{answer:?}") };
    assert_eq!(reason, "\u{e9}".repeat(MAX_REASON / 2));
    // A stack without endpoints connects to none.
    let dir = Dir::new("no-endpoints");
    let mut desk = dir.desk();
    let worker = super::worker(&mut desk, 1);
    assert_eq!(ask(&mut desk, &worker, &connect(0, 0)), refused(Errno::EACCES));
}

#[test]
fn a_name_is_resolved_for_the_first_attempt_and_the_others_are_of_the_same_addresses() {
    let mut office = Office::new("attempts");
    let there = office.resolver.addresses.lock().unwrap()[0].clone();
    let nowhere = Address::Unix("/no/such/socket".into());
    *office.resolver.addresses.lock().unwrap() =
        vec![there.clone(), nowhere.clone(), there.clone(), nowhere];
    let worker = office.worker(1);
    let lookups = |office: &Office| office.resolver.lookups.load(Ordering::SeqCst);
    assert_eq!(office.ask(&worker, &connect(NAME, 0)), connecting(Some(1)));
    // What it leads to later is for later.
    *office.resolver.addresses.lock().unwrap() = vec![there];
    assert_eq!(office.ask(&worker, &connect(NAME, 1)), connecting(Some(3)));
    assert_eq!(office.ask(&worker, &connect(NAME, 3)), refused(Errno::ENOENT));
    assert_eq!(lookups(&office), 1);
    assert_eq!(office.ask(&worker, &connect(NAME, 0)), connecting(None));
    assert_eq!(lookups(&office), 2);
    // Another's addresses are none of this worker's, nor are those of another endpoint.
    assert_eq!(office.ask(&worker, &connect(LITERAL, 0)), connecting(None));
    assert_eq!(office.ask(&worker, &connect(NAME, 1)), refused(Errno::EADDRNOTAVAIL));
    assert_eq!(lookups(&office), 4);
}

#[test]
fn a_name_that_hangs_delays_no_file_and_no_other_name() {
    let mut office = Office::new("hangs");
    let (slow, honest) = (office.worker(1), office.worker(2));
    slow.send(&connect(HANGS, 0), &[]).unwrap();
    office.until_hanging(1);
    let file = open(0, None, OpenAccess::Read);
    assert_eq!(office.ask(&honest, &file).1, 1);
    assert_eq!(office.ask(&honest, &connect(NAME, 0)), connecting(None));
    assert_eq!(office.ask(&honest, &connect(LITERAL, 0)), connecting(None));
    // A worker that waits has no other question meanwhile.
    slow.send(&file, &[]).unwrap();
    turn(&mut office.desk);
    assert!(matches!(slow.try_recv(), Err(RecvError::Empty)));
    office.resolver.let_go();
    let not_resolved = FromBroker::NotResolved { reason: "hung".into() };
    assert_eq!(office.answer(&slow), (not_resolved, 0));
    assert_eq!(office.answer(&slow).1, 1);
}

/// One client may have eight channels, and asks on all of them for a name that does not resolve.
#[test]
fn one_client_has_one_thread_and_a_process_for_all_has_them_all() {
    let mut office = Office::new("fair");
    let greedy: Vec<Worker> = (0..8).map(|_| office.worker(1)).collect();
    for channel in &greedy {
        channel.send(&connect(HANGS, 0), &[]).unwrap();
    }
    let honest = office.worker(2);
    assert_eq!(office.ask(&honest, &connect(NAME, 0)), connecting(None));
    assert_eq!(office.resolver.hanging(), 1);
    // A worker that has gone is not polled.
    drop(greedy);
    let threads = 4;
    let all: Vec<Worker> = (0..threads).map(|_| office.worker(0)).collect();
    for channel in &all {
        channel.send(&connect(HANGS, 0), &[]).unwrap();
    }
    office.until_hanging(4);
    // Now there is no thread, and what needs none is answered.
    assert_eq!(office.ask(&honest, &connect(LITERAL, 0)), connecting(None));
    honest.send(&connect(NAME, 0), &[]).unwrap();
    turn(&mut office.desk);
    assert!(matches!(honest.try_recv(), Err(RecvError::Empty)));
    office.resolver.let_go();
    assert_eq!(office.answer(&honest), connecting(None));
    assert_eq!(office.resolver.hanging(), 5, "the last of the template's, and none of the greedy");
}

#[test]
fn who_connects_too_often_waits_and_has_its_answer_later() {
    let mut office = Office::new("rate");
    let (flood, honest) = (office.worker(1), office.worker(2));
    let question = connect(LITERAL, 0);
    for _ in 0..16 {
        assert_eq!(office.ask(&flood, &question), connecting(None));
    }
    flood.send(&question, &[]).unwrap();
    turn(&mut office.desk);
    assert!(matches!(flood.try_recv(), Err(RecvError::Empty)));
    let desk = &mut office.desk;
    assert!(first(desk).reported && desk.channels.shortest_wait().is_some());
    // Files have a rate of their own, but questions keep their order.
    assert_eq!(office.ask(&honest, &question), connecting(None));
    assert_eq!(office.answer(&flood), connecting(None));
    drop(office.listener.accept());
}

#[test]
fn a_pending_question_does_not_keep_the_broker_busy() {
    let mut office = Office::new("busy");
    let slow = office.worker(1);
    slow.send(&connect(HANGS, 0), &[]).unwrap();
    office.until_hanging(1);
    // More than it may have; it stays in its queue.
    slow.send(&connect(HANGS, 0), &[]).unwrap();
    assert_eq!(ready(&mut office.desk), 0);
    drop(slow);
    eventually(|| ready(&mut office.desk) == 1);
    turn(&mut office.desk);
    assert!(office.desk.is_empty());
}
