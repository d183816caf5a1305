//! The threads for requests that may wait: started when there is work and no thread is idle, up to
//! `-t`.

#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, Scope};
use std::time::Duration;

use nbd_protocol::transmission::Request;
use nbdkit_api::Flags;

use super::Activity;
use super::read_groups::{self, ReadGroups};

/// Bytes of requests and replies in flight on one connection. A single request may exceed it.
const MAX_BYTES: u64 = 64 << 20;
/// Requests in the queue. If it is full, the reader waits, and with it the client.
const MAX_QUEUED: usize = 128;

/// How long an idle thread waits for work before it ends.
const LINGER: Duration = Duration::from_secs(5);
/// Largest buffer that is kept for the next request, bytes.
const KEEP: usize = 1 << 20;
/// The size of the buffers of a preallocated pool, bytes. The kernel's client sends requests of at
/// most a quarter of that, unless max_sectors_kb was raised.
pub(super) const PREALLOCATED: usize = 512 * 1024;

/// A request for a thread of the pool.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) request: Request,
    pub(super) flags: Flags,
    /// The bytes of a large read that should be spliced out, if a file holds them.
    pub(super) splice_out: Option<usize>,
    /// Whether a thread may take it together with others of this kind: a short read.
    pub(super) grouped: bool,
    /// A write's data.
    pub(super) payload: Vec<u8>,
}

impl Job {
    /// The memory that the request takes while it is in flight, bytes.
    fn cost(&self) -> u64 {
        (self.payload.len() as u64)
            .max(self.request.length.min(nbd_protocol::constants::MAX_REQUEST.into()))
    }
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Job>,
    /// Whether jobs were queued that no thread was woken for.
    unannounced: bool,
    /// Threads that wait for work.
    idle: usize,
    threads: usize,
    /// Jobs that a thread carries out.
    running: usize,
    /// Who waits for room, a buffer, or the end of all jobs: telling nobody is a system call, too.
    waiting: usize,
    /// Cost of all jobs queued and running, bytes.
    bytes: u64,
    /// Buffers of finished jobs, for the payloads of the next. In a preallocated pool, all buffers
    /// that are not in use.
    spare: Vec<Vec<u8>>,
    closed: bool,
}

impl State {
    /// Jobs queued and running.
    fn outstanding(&self) -> usize {
        self.queue.len() + self.running
    }

    /// Moves what a thread takes at once from the queue to `jobs`: one job, or up to `most` that
    /// are grouped.
    fn take(&mut self, jobs: &mut Vec<Job>, most: usize) {
        let grouped = self.queue.iter().take(most).take_while(|job| job.grouped).count();
        let count = grouped.max(1).min(self.queue.len());
        jobs.extend(self.queue.drain(..count));
        self.running += jobs.len();
    }
}

/// The pool of one connection.
#[derive(Debug)]
pub(super) struct Pool {
    state: Mutex<State>,
    /// Whether something is queued or running: written under the lock, read without.
    activity: Arc<Activity>,
    work: Condvar,
    /// How many reads a thread takes at once.
    groups: ReadGroups,
    room: Condvar,
    limit: usize,
    /// Whether threads and buffers are made before the first request, and kept (`--swap`).
    preallocated: bool,
    /// Limit of `State::bytes`.
    max_bytes: u64,
}

impl Pool {
    /// A pool of at most `limit` threads; none is started yet.
    pub(super) fn new(limit: usize, activity: Arc<Activity>) -> Pool {
        Pool {
            state: Mutex::default(),
            activity,
            work: Condvar::new(),
            groups: ReadGroups::new(limit),
            room: Condvar::new(),
            limit,
            preallocated: false,
            max_bytes: MAX_BYTES,
        }
    }

    /// A pool of `limit` threads, to be started by [`start`](Self::start), and as many buffers,
    /// which are kept. A request of up to [`PREALLOCATED`] bytes allocates nothing; it waits while
    /// all buffers are in use. The bytes in flight are limited to the buffers' total, or to one
    /// longer request.
    pub(super) fn preallocated(limit: usize, activity: Arc<Activity>) -> Pool {
        let spare = (0..limit).map(|_| Vec::with_capacity(PREALLOCATED)).collect();
        let queue = VecDeque::with_capacity(MAX_QUEUED);
        let state = State { spare, queue, ..State::default() };
        let max_bytes = (limit * PREALLOCATED) as u64;
        Pool {
            state: Mutex::new(state),
            preallocated: true,
            max_bytes,
            ..Pool::new(limit, activity)
        }
    }

    /// Starts all threads of a preallocated pool; each runs `serve` in `scope`.
    ///
    /// # Errors
    /// EAGAIN: a limit on threads is reached, or RLIMIT_MEMLOCK by their stacks.
    pub(super) fn start<'scope, F>(
        &self,
        scope: &'scope Scope<'scope, '_>,
        serve: impl Fn() -> F,
    ) -> std::io::Result<()>
    where
        F: FnOnce() + Send + 'scope,
    {
        for _ in 0..self.limit {
            self.lock().threads += 1;
            if let Err(error) = thread().spawn_scoped(scope, serve()) {
                self.lock().threads -= 1;
                return Err(error);
            }
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic in a job happens without the lock, so the state is consistent; it ends the
        // connection.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_for_room<'a>(&self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.wake(&mut state);
        state.waiting += 1;
        state = self.room.wait(state).unwrap_or_else(PoisonError::into_inner);
        state.waiting -= 1;
        state
    }

    /// Whether nothing is queued or running. Takes no lock: the reader asks for every request.
    #[inline]
    pub(super) fn is_idle(&self) -> bool {
        !self.activity.is_pooled()
    }

    /// Waits until nothing is queued or running.
    pub(super) fn drain(&self) {
        let mut state = self.lock();
        while state.running > 0 || !state.queue.is_empty() {
            state = self.wait_for_room(state);
        }
    }

    /// How many reads a thread takes at once.
    pub(super) fn groups(&self) -> &ReadGroups {
        &self.groups
    }

    /// Wakes threads for the grouped jobs that were queued since the last call.
    pub(super) fn announce(&self) {
        self.wake(&mut self.lock());
    }

    fn wake(&self, state: &mut State) {
        if std::mem::take(&mut state.unannounced) {
            let threads = state.queue.len().div_ceil(self.groups.size(state.outstanding()));
            for _ in 0..threads.min(state.idle) {
                self.work.notify_one();
            }
        }
    }

    /// Queues a job, after waiting while too many bytes or jobs are in flight, and starts a thread
    /// in `scope` that runs `serve` if all are busy. Returns the job if there is no thread and none
    /// could be started. A grouped job may wait until it is [announced](Self::announce).
    pub(super) fn submit<'scope, F>(
        &self,
        scope: &'scope Scope<'scope, '_>,
        job: Job,
        serve: F,
    ) -> Option<Job>
    where
        F: FnOnce() + Send + 'scope,
    {
        let cost = job.cost();
        let mut state = self.lock();
        while (state.bytes > 0 && state.bytes + cost > self.max_bytes)
            || state.queue.len() >= MAX_QUEUED
        {
            state = self.wait_for_room(state);
        }
        let group = if job.grouped { self.groups.size(state.outstanding()) } else { 1 };
        if state.queue.len() / group >= state.idle && state.threads < self.limit {
            match thread().spawn_scoped(scope, serve) {
                Ok(_) => state.threads += 1,
                // EAGAIN: the threads that exist will carry the job out, or the caller.
                Err(_) if state.threads == 0 => return Some(job),
                Err(_) => {}
            }
        }
        state.bytes += cost;
        state.unannounced |= job.grouped;
        let idle = state.idle > 0 && !job.grouped;
        state.queue.push_back(job);
        self.activity.set_pooled(true);
        drop(state);
        if idle {
            self.work.notify_one();
        }
        None
    }

    /// A buffer for a payload of `length` bytes, of unspecified length and content. A preallocated
    /// pool waits for one: pending replies must have been sent.
    pub(super) fn buffer(&self, length: usize) -> Vec<u8> {
        if length == 0 {
            return Vec::new();
        }
        let mut state = self.lock();
        while self.preallocated && state.spare.is_empty() {
            state = self.wait_for_room(state);
        }
        state.spare.pop().unwrap_or_default()
    }

    /// Keeps the buffer of a finished job for the next, if it is not too large.
    fn take_back(&self, state: &mut State, mut buffer: Vec<u8>) {
        if self.preallocated && buffer.capacity() > 0 {
            buffer.truncate(PREALLOCATED);
            buffer.shrink_to(PREALLOCATED);
            state.spare.push(buffer);
        } else if (1..=KEEP).contains(&buffer.capacity()) && state.spare.len() < self.limit {
            state.spare.push(buffer);
        }
    }

    /// Runs jobs, one or a group at a time, until the pool is closed and empty.
    pub(super) fn work(&self, mut run: impl FnMut(&[Job])) {
        let mut jobs = Vec::with_capacity(read_groups::MOST);
        let mut state = self.lock();
        loop {
            let most = self.groups.size(state.outstanding());
            state.take(&mut jobs, most);
            if !jobs.is_empty() {
                drop(state);
                run(&jobs);
                state = self.lock();
                state.running -= jobs.len();
                for job in jobs.drain(..) {
                    state.bytes -= job.cost();
                    self.take_back(&mut state, job.payload);
                }
                if state.running == 0 && state.queue.is_empty() {
                    self.activity.set_pooled(false);
                }
                if state.waiting > 0 {
                    self.room.notify_one();
                }
            } else if state.closed {
                return;
            } else {
                state.idle += 1;
                let waited = self.work.wait_timeout(state, LINGER);
                let result;
                (state, result) = waited.unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
                if result.timed_out() && state.queue.is_empty() && !self.preallocated {
                    state.threads -= 1;
                    if state.threads == 0 {
                        state.spare.clear();
                    }
                    return;
                }
            }
        }
    }

    /// Closes the queue: threads finish the jobs in it and end.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.work.notify_all();
    }
}

fn thread() -> Builder {
    Builder::new().name("request".to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::read_groups::MOST;
    use super::*;
    use nbd_protocol::constants::{Command, CommandFlags};

    fn job(payload: Vec<u8>) -> Job {
        let request = Request {
            flags: CommandFlags::empty(),
            command: Command::WRITE,
            cookie: 0,
            offset: 0,
            length: payload.len() as u64,
        };
        Job { request, flags: Flags::empty(), splice_out: None, grouped: false, payload }
    }

    #[test]
    fn a_preallocated_pool_reuses_its_buffers_and_starts_no_thread() {
        let pool = Pool::preallocated(2, Arc::default());
        let buffers = |pool: &Pool| {
            let state = pool.lock();
            let mut all: Vec<_> = state.spare.iter().map(|b| (b.as_ptr(), b.capacity())).collect();
            all.sort_unstable();
            all
        };
        let before = buffers(&pool);
        std::thread::scope(|scope| {
            fn check(jobs: &[Job]) {
                assert!(jobs.iter().all(|job| job.payload.iter().all(|byte| *byte == 7)));
            }
            pool.start(scope, || || pool.work(check)).unwrap();
            for length in [1, PREALLOCATED, 100, PREALLOCATED - 1].into_iter().cycle().take(100) {
                let mut payload = pool.buffer(length);
                payload.clear();
                payload.resize(length, 7);
                assert!(
                    pool.submit(scope, job(payload), || unreachable!("all threads run")).is_none()
                );
            }
            pool.drain();
            assert!(pool.is_idle());
            assert_eq!(pool.lock().threads, 2);
            pool.close();
        });
        assert_eq!(buffers(&pool), before);
        assert!(before.iter().all(|(_, capacity)| *capacity == PREALLOCATED));
    }

    fn read() -> Job {
        let request = Request { command: Command::READ, ..job(Vec::new()).request };
        Job { request, grouped: true, ..job(Vec::new()) }
    }

    #[test]
    fn short_reads_are_taken_together_and_others_alone() {
        let pool = &Pool::new(1, Arc::default());
        let taken = Mutex::new(Vec::new());
        let taken = &taken;
        let (begin, begun) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let mut serve = Some(move || {
                begun.recv().unwrap();
                pool.work(|jobs| taken.lock().unwrap().push(jobs.len()));
            });
            let mut jobs = vec![read(), read(), job(vec![1]), job(vec![2])];
            jobs.extend((0..MOST + 1).map(|_| read()));
            for job in jobs {
                let serve = serve.take();
                let serve = move || serve.expect("one thread is enough")();
                assert!(pool.submit(scope, job, serve).is_none());
            }
            begin.send(()).unwrap();
            pool.drain();
            pool.close();
        });
        assert_eq!(*taken.lock().unwrap(), [2, 1, 1, MOST, 1]);
        assert!(pool.is_idle());
        assert_eq!(pool.lock().bytes, 0);
    }

    #[test]
    fn a_thread_that_waits_begins_with_short_reads_when_they_are_announced() {
        let pool = &Pool::new(1, Arc::default());
        std::thread::scope(|scope| {
            let serve = || pool.work(|_| ());
            assert!(pool.submit(scope, job(Vec::new()), serve).is_none());
            while pool.lock().idle == 0 {
                std::thread::yield_now();
            }
            assert!(pool.submit(scope, read(), || unreachable!("a thread waits")).is_none());
            assert!(!pool.is_idle());
            let start = std::time::Instant::now();
            pool.announce();
            pool.drain();
            assert!(start.elapsed() < LINGER, "it was not woken");
            pool.close();
        });
    }

    #[test]
    fn a_longer_request_returns_its_buffer_to_the_pool() {
        let pool = Pool::preallocated(1, Arc::default());
        std::thread::scope(|scope| {
            pool.start(scope, || || pool.work(|_| ())).unwrap();
            let mut payload = pool.buffer(4 * PREALLOCATED);
            payload.resize(4 * PREALLOCATED, 0);
            assert!(pool.submit(scope, job(payload), || ()).is_none());
            // If the buffer were lost, this would wait for ever.
            assert_eq!(pool.buffer(1).capacity(), PREALLOCATED);
            pool.close();
        });
    }
}
