//! Threads for requests that may wait: made when there is work and none is idle, up to `-t`.

#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, Scope};
use std::time::Duration;

use nbd_protocol::transmission::Request;
use nbdkit_api::Flags;

/// Request and reply bytes of one connection that may be in memory at a time; what a single request
/// needs is always allowed.
const MAX_BYTES: u64 = 64 << 20;
/// Requests that wait for a thread. Beyond, the client waits.
const MAX_QUEUED: usize = 128;

/// How long a thread waits for work before it ends.
const LINGER: Duration = Duration::from_secs(5);
/// Largest buffer that is kept for the next request, bytes.
const KEEP: usize = 1 << 20;

/// A request for another thread.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) request: Request,
    pub(super) flags: Flags,
    /// A write's data.
    pub(super) payload: Vec<u8>,
}

impl Job {
    /// The memory that it takes while it is under way.
    fn cost(&self) -> u64 {
        (self.payload.len() as u64)
            .max(self.request.length.min(nbd_protocol::constants::MAX_REQUEST.into()))
    }
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Job>,
    /// Threads waiting for work.
    idle: usize,
    threads: usize,
    /// Jobs taken and not finished.
    running: usize,
    /// Cost of everything queued and running.
    bytes: u64,
    /// Buffers of finished jobs, for the payloads of the next.
    spare: Vec<Vec<u8>>,
    closed: bool,
}

/// The pool of one connection.
#[derive(Debug)]
pub(super) struct Pool {
    state: Mutex<State>,
    work: Condvar,
    room: Condvar,
    limit: usize,
}

impl Pool {
    /// A pool of at most `limit` threads; none yet.
    pub(super) fn new(limit: usize) -> Pool {
        Pool { state: Mutex::default(), work: Condvar::new(), room: Condvar::new(), limit }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A thread that panicked ends the whole connection; until then the numbers are still good.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nothing is queued or running.
    pub(super) fn is_idle(&self) -> bool {
        let state = self.lock();
        state.running == 0 && state.queue.is_empty()
    }

    /// Waits until nothing is queued or running.
    pub(super) fn drain(&self) {
        let mut state = self.lock();
        while state.running > 0 || !state.queue.is_empty() {
            state = self.room.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Queues a job, waiting for room if too much is under way, and starts a thread in `scope` running `serve`
    /// if all are busy. Returns the job if no thread could be had at all.
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
        while (state.bytes > 0 && state.bytes + cost > MAX_BYTES) || state.queue.len() >= MAX_QUEUED
        {
            state = self.room.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.queue.len() >= state.idle && state.threads < self.limit {
            match Builder::new().name("request".to_owned()).spawn_scoped(scope, serve) {
                Ok(_) => state.threads += 1,
                // The system has no thread for us now; those that there are will do, or the caller.
                Err(_) if state.threads == 0 => return Some(job),
                Err(_) => {}
            }
        }
        state.bytes += cost;
        state.queue.push_back(job);
        drop(state);
        self.work.notify_one();
        None
    }

    /// A buffer for a payload of `length` bytes, of unspecified length and content.
    pub(super) fn buffer(&self, length: usize) -> Vec<u8> {
        if length == 0 { None } else { self.lock().spare.pop() }.unwrap_or_default()
    }

    /// Runs jobs until the pool is closed and empty.
    pub(super) fn work(&self, mut run: impl FnMut(&Job)) {
        let mut state = self.lock();
        loop {
            if let Some(job) = state.queue.pop_front() {
                state.running += 1;
                drop(state);
                run(&job);
                let cost = job.cost();
                state = self.lock();
                state.running -= 1;
                state.bytes -= cost;
                if (1..=KEEP).contains(&job.payload.capacity()) && state.spare.len() < self.limit {
                    state.spare.push(job.payload);
                }
                self.room.notify_one();
            } else if state.closed {
                return;
            } else {
                state.idle += 1;
                let waited = self.work.wait_timeout(state, LINGER);
                let result;
                (state, result) = waited.unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
                if result.timed_out() && state.queue.is_empty() {
                    state.threads -= 1;
                    if state.threads == 0 {
                        state.spare.clear();
                    }
                    return;
                }
            }
        }
    }

    /// No more jobs will come; threads finish what is queued and end.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.work.notify_all();
    }
}
