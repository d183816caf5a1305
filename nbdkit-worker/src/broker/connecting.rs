//! Connections that take long to begin: a resolver may need seconds for a name, and a file system
//! for the path of a Unix socket. Threads wait for them, few and started on demand, so that files
//! are opened meanwhile.
//!
//! Questions wait in the order of their arrival. One client has one thread at most, so that one
//! whose name does not resolve leaves the others three; a process that serves all clients may have
//! all of them. Threads are started once the process is confined, and are born so.

#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};

use nbdkit_api::Endpoint;
use nbdkit_api::endpoints::direct::{self, Address};
use nbdkit_api::endpoints::{Begun, Failure};
use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};

/// Most threads.
pub(super) const MOST_THREADS: usize = 4;
/// Bytes of a thread's stack: getaddrinfo(3) keeps answers of 64 KiB there.
const STACK: usize = 512 << 10;

/// For an asker: an attempt to connect to an endpoint.
pub(super) struct Question {
    pub(super) asker: u64,
    /// Which client's; 0 for a process that serves all.
    pub(super) connection: u64,
    /// Which endpoint.
    pub(super) number: u32,
    pub(super) endpoint: Endpoint,
    pub(super) attempt: u32,
    /// What the endpoint has led to, if that is not to be found out.
    pub(super) known: Option<Vec<Address>>,
}

/// What it came to.
pub(super) struct Outcome {
    pub(super) number: u32,
    pub(super) addresses: Vec<Address>,
    pub(super) begun: Result<Begun, Failure>,
}

/// What an endpoint leads to: [`direct::addresses`].
type Find = dyn Fn(&Endpoint) -> Result<Vec<Address>, Failure> + Send + Sync;

/// The broker's connections to declared endpoints that are under way.
pub(crate) struct Connecting {
    endpoints: Vec<Endpoint>,
    find: Arc<Find>,
    waiting: VecDeque<Question>,
    /// Asker and client of the questions that threads have.
    running: Vec<(u64, u64)>,
    threads: usize,
    jobs: Sender<Question>,
    /// The threads' ends: the queue of questions, the queue of answers, and the event for the
    /// latter.
    taken: Arc<Mutex<Receiver<Question>>>,
    done: Sender<(u64, Outcome)>,
    finished: Receiver<(u64, Outcome)>,
    wake: Arc<EventFd>,
}

impl Connecting {
    /// To these endpoints.
    ///
    /// # Errors
    /// EMFILE, ENFILE, ENOMEM.
    pub(crate) fn new(endpoints: Vec<Endpoint>) -> nix::Result<Connecting> {
        Connecting::finding(endpoints, Arc::new(direct::addresses))
    }

    /// The same with another resolver.
    pub(super) fn finding(endpoints: Vec<Endpoint>, find: Arc<Find>) -> nix::Result<Connecting> {
        let (jobs, taken) = mpsc::channel();
        let (done, finished) = mpsc::channel();
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(Connecting {
            endpoints,
            find,
            waiting: VecDeque::new(),
            running: Vec::new(),
            threads: 0,
            jobs,
            taken: Arc::new(Mutex::new(taken)),
            done,
            finished,
            wake: Arc::new(EventFd::from_flags(flags)?),
        })
    }

    /// One of those that the stack has declared.
    pub(super) fn endpoint(&self, number: u32) -> Option<&Endpoint> {
        self.endpoints.get(usize::try_from(number).ok()?)
    }

    /// Answers at once what cannot block.
    pub(super) fn answer(&self, question: Question) -> Outcome {
        answer(&*self.find, question)
    }

    /// Has a question wait for a thread.
    pub(super) fn ask(&mut self, question: Question) {
        self.waiting.push_back(question);
    }

    /// An asker has gone: its answers are dropped.
    pub(super) fn forget(&mut self, asker: u64) {
        self.waiting.retain(|question| question.asker != asker);
    }

    /// What threads have answered, by asker.
    pub(super) fn finished(&mut self) -> Vec<(u64, Outcome)> {
        let _ = self.wake.read();
        let finished: Vec<_> = self.finished.try_iter().collect();
        for (asker, _) in &finished {
            self.running.retain(|(running, _)| running != asker);
        }
        finished
    }

    /// Gives questions to threads as far as there are any. Returns those that cannot be answered,
    /// because there is no thread and none can be started.
    pub(super) fn start(&mut self) -> Vec<(u64, Outcome)> {
        let mut refused = Vec::new();
        while self.running.len() < MOST_THREADS {
            let next = self.waiting.iter().position(|question| self.may_run(question));
            let Some(question) = next.and_then(|at| self.waiting.remove(at)) else { break };
            if self.threads <= self.running.len() {
                self.threads += usize::from(self.start_thread());
            }
            if self.threads == 0 {
                let (number, begun) = (question.number, Err(Failure::Os(Errno::EAGAIN)));
                refused.push((question.asker, Outcome { number, addresses: Vec::new(), begun }));
                continue;
            }
            if self.threads <= self.running.len() {
                self.waiting.push_front(question);
                break;
            }
            self.running.push((question.asker, question.connection));
            // A thread has the other end as long as there is one.
            let _ = self.jobs.send(question);
        }
        refused
    }

    fn may_run(&self, question: &Question) -> bool {
        let of_the_same = |(_, connection): &(u64, u64)| *connection == question.connection;
        question.connection == 0 || !self.running.iter().any(of_the_same)
    }

    fn start_thread(&self) -> bool {
        let (find, taken) = (Arc::clone(&self.find), Arc::clone(&self.taken));
        let (done, wake) = (self.done.clone(), Arc::clone(&self.wake));
        let thread = std::thread::Builder::new().name("connecting".to_owned()).stack_size(STACK);
        let started = thread.spawn(move || {
            loop {
                let question = taken.lock().unwrap_or_else(PoisonError::into_inner).recv();
                let Ok(question) = question else { return };
                let (asker, number) = (question.asker, question.number);
                let answered = catch_unwind(AssertUnwindSafe(|| answer(&*find, question)));
                let outcome = answered.unwrap_or_else(|_| {
                    let begun = Err(Failure::Os(Errno::EIO));
                    Outcome { number, addresses: Vec::new(), begun }
                });
                if done.send((asker, outcome)).is_err() {
                    return;
                }
                let _ = wake.write(1);
            }
        });
        started.is_ok()
    }
}

impl AsFd for Connecting {
    /// Readable when a thread has an answer.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

fn answer(find: &Find, question: Question) -> Outcome {
    let Question { number, endpoint, attempt, known, .. } = question;
    match known.map_or_else(|| find(&endpoint), Ok) {
        Ok(addresses) => {
            let begun = direct::begin(&addresses, attempt);
            Outcome { number, addresses, begun }
        }
        Err(why) => Outcome { number, addresses: Vec::new(), begun: Err(why) },
    }
}
