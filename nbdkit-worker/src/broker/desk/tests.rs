use super::channels::MOST_EVENTS;
use super::*;
use nbdkit_ipc::messages::broker::MAX_NAME;
use std::ffi::OsString;
use std::path::PathBuf;

type Worker = Channel<ToBroker, FromBroker>;

/// A directory of this test's own.
struct Dir(PathBuf);

impl Dir {
    fn new(test: &str) -> Dir {
        let path = std::env::temp_dir().join(format!("nbdkit-desk-{}-{test}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("a"), "a").unwrap();
        Dir(path)
    }

    fn desk(&self) -> Desk {
        let file = Declared::file(self.0.join("a"));
        let read_only = Declared::directory(&self.0, true).read_only(true);
        Desk::new(vec![file, read_only]).unwrap()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn open(path: u32, name: Option<&str>, access: OpenAccess) -> ToBroker {
    ToBroker::Open { path, name: name.map(OsString::from), access }
}

fn worker(desk: &mut Desk, connection: u64) -> Worker {
    let (worker, theirs) = Channel::pair().unwrap();
    desk.admit(connection, theirs);
    worker
}

/// One turn of the loop, without waiting.
fn turn(desk: &mut Desk) {
    desk.wait(Some(Duration::ZERO)).unwrap();
    desk.answer();
}

/// For how many channels a wait would end.
fn ready(desk: &mut Desk) -> usize {
    desk.channels.wait(Some(Duration::ZERO)).unwrap().channels.len()
}

/// The first channel, if it is still open.
fn first(desk: &mut Desk) -> &mut Asker {
    desk.channels.get_mut(THREADS + 1).unwrap()
}

fn ask(desk: &mut Desk, worker: &Worker, question: &ToBroker) -> (FromBroker, usize) {
    worker.send(question, &[]).unwrap();
    turn(desk);
    let Received { message, fds, .. } = worker.try_recv().unwrap();
    (message, fds.len())
}

/// Waits until `condition` holds: another test's child may hold copies of descriptors for a moment.
fn eventually(mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < end);
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn is_closed(worker: &Worker) -> bool {
    match worker.try_recv() {
        Err(RecvError::Closed) => true,
        Err(RecvError::Empty) => false,
        other => panic!("{other:?}"),
    }
}

#[test]
fn only_what_is_declared_is_opened_and_only_as_it_is_declared() {
    use OpenAccess::{List, Read, Write};
    let dir = Dir::new("declared");
    let mut desk = dir.desk();
    let worker = worker(&mut desk, 1);
    let mut asked = |path, name, access| ask(&mut desk, &worker, &open(path, name, access));
    let opened = |writable| (FromBroker::Opened { writable, block_device: false }, 1);
    let refused = |errno: Errno| (FromBroker::Refused { errno: errno as i32 }, 0);
    assert_eq!(asked(0, None, Write), opened(true));
    assert_eq!(asked(0, None, Read), opened(false));
    assert_eq!(asked(1, Some("a"), Write), opened(false));
    assert_eq!(asked(1, None, List), opened(false));
    assert_eq!(asked(2, None, Read), refused(Errno::EACCES));
    assert_eq!(asked(u32::MAX, None, List), refused(Errno::EACCES));
    assert_eq!(asked(0, Some("a"), Read), refused(Errno::EACCES));
    assert_eq!(asked(0, None, List), refused(Errno::EACCES));
    assert_eq!(asked(1, None, Read), refused(Errno::EACCES));
    assert_eq!(asked(1, Some("a"), List), refused(Errno::EACCES));
    for name in ["", "../a", "/etc/passwd", "b", "a/"] {
        assert_eq!(asked(1, Some(name), Read), refused(Errno::ENOENT), "{name}");
    }
    assert_eq!(asked(1, Some(".."), Read), (FromBroker::WrongType, 0));
    let long = "x".repeat(MAX_NAME + 1);
    assert_eq!(asked(1, Some(&long), Read), refused(Errno::ENAMETOOLONG));
    // Links lead anywhere, but not into this process.
    for (name, target) in [("memory", "/proc/self/mem"), ("status", "/proc/self/status")] {
        std::os::unix::fs::symlink(target, dir.0.join(name)).unwrap();
        assert_eq!(asked(1, Some(name), Read), refused(Errno::EACCES));
    }
}

#[test]
fn a_channel_that_breaks_the_rules_is_closed_and_the_others_are_not() {
    let dir = Dir::new("rules");
    let mut desk = dir.desk();
    let (good, bad) = (worker(&mut desk, 1), worker(&mut desk, 2));
    let with_descriptor = worker(&mut desk, 3);
    let question = open(0, None, OpenAccess::Read);
    nix::unistd::write(bad.as_fd(), b"noise").unwrap();
    with_descriptor.send(&question, &[good.as_fd()]).unwrap();
    turn(&mut desk);
    eventually(|| is_closed(&bad) && is_closed(&with_descriptor));
    assert_eq!(ask(&mut desk, &good, &question).1, 1);
    drop(good);
    eventually(|| {
        turn(&mut desk);
        desk.is_empty()
    });
}

#[test]
fn one_that_floods_waits_and_another_gets_its_turn() {
    let dir = Dir::new("flood");
    let mut desk = dir.desk();
    let (flood, honest) = (worker(&mut desk, 1), worker(&mut desk, 2));
    let question = open(0, None, OpenAccess::Read);
    let mut answered = 0;
    for _ in 0..2000 {
        let _ = flood.try_send(&question, &[]);
        turn(&mut desk);
        answered += u32::from(flood.try_recv().is_ok());
    }
    assert!((200..1500).contains(&answered), "{answered}");
    assert!(first(&mut desk).reported && desk.channels.shortest_wait().is_some());
    assert_eq!(ask(&mut desk, &honest, &question).1, 1);
}

#[test]
fn one_that_takes_no_answers_is_closed() {
    let dir = Dir::new("deaf");
    let mut desk = dir.desk();
    let deaf = worker(&mut desk, 1);
    // Each answer takes room in the queue that the question has left.
    for _ in 0..5000 {
        if deaf.try_send(&open(9, None, OpenAccess::Read), &[]).is_err() || desk.is_empty() {
            break;
        }
        first(&mut desk).opening = Rate::of_opening(0, Instant::now());
        turn(&mut desk);
    }
    assert!(desk.is_empty());
}

#[test]
fn with_too_many_channels_the_one_that_asked_longest_ago_is_closed() {
    let dir = Dir::new("many");
    let mut desk = dir.desk();
    let template = worker(&mut desk, 0);
    let mut workers: Vec<_> = (1..MOST_CHANNELS as u64).map(|n| worker(&mut desk, n)).collect();
    let question = open(0, None, OpenAccess::Read);
    assert_eq!(ask(&mut desk, &workers[0], &question).1, 1);
    workers.push(worker(&mut desk, MOST_CHANNELS as u64));
    assert_eq!(desk.channels.len(), MOST_CHANNELS);
    eventually(|| is_closed(&workers[1]));
    for worker in [&workers[0], &template, &workers[MOST_CHANNELS - 1]] {
        assert_eq!(ask(&mut desk, worker, &question).1, 1);
    }
}

#[test]
fn who_has_to_wait_does_not_keep_the_broker_busy_and_may_leave() {
    let dir = Dir::new("waits");
    let mut desk = dir.desk();
    let flood = worker(&mut desk, 1);
    while desk.channels.shortest_wait().is_none() {
        let _ = flood.try_send(&open(0, None, OpenAccess::Read), &[]);
        turn(&mut desk);
        let _ = flood.try_recv();
    }
    // Much longer than this test takes; the question stays in the queue.
    let id = THREADS + 1;
    desk.channels.set_awaits(id, Awaits::Time(Instant::now() + Duration::from_secs(3600)));
    flood.send(&open(0, None, OpenAccess::Read), &[]).unwrap();
    assert_eq!(ready(&mut desk), 0);
    assert!(desk.channels.shortest_wait() > Some(Duration::from_secs(60)));
    drop(flood);
    eventually(|| {
        turn(&mut desk);
        desk.is_empty()
    });
    assert_eq!(desk.channels.shortest_wait(), None);
}

/// There are more of them than one wait reports.
#[test]
fn each_of_many_that_flood_gets_its_turn() {
    let dir = Dir::new("turns");
    let mut desk = dir.desk();
    let workers: Vec<_> = (1..=MOST_EVENTS as u64 * 3).map(|n| worker(&mut desk, n)).collect();
    for worker in &workers {
        for _ in 0..4 {
            worker.send(&open(9, None, OpenAccess::Read), &[]).unwrap();
        }
    }
    for round in 0..4 {
        for _ in 0..3 {
            turn(&mut desk);
        }
        for worker in &workers {
            assert!(worker.try_recv().is_ok(), "round {round}");
            assert!(matches!(worker.try_recv(), Err(RecvError::Empty)), "round {round}");
        }
    }
    assert_eq!(ready(&mut desk), 0);
}

/// The listener, which made the channel, may still have a copy of the broker's end.
#[test]
fn a_closed_channel_of_which_there_is_a_copy_is_not_reported_again() {
    let dir = Dir::new("copy");
    let mut desk = dir.desk();
    let (bad, theirs) = Worker::pair().unwrap();
    let _copy = theirs.as_fd().try_clone_to_owned().unwrap();
    desk.admit(1, theirs);
    for _ in 0..2 {
        nix::unistd::write(bad.as_fd(), b"noise").unwrap();
    }
    turn(&mut desk);
    assert!(desk.is_empty());
    assert_eq!(ready(&mut desk), 0);
}

mod connecting;
