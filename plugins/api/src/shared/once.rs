//! Work that one process does for all: decompressing, building an index, deriving a key.

#![forbid(unsafe_code)]

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use crate::client::Client;
use crate::error::{Errno, Error, Result};
use crate::shared::presence::{self, Presence};
use crate::shared::{SharedEvent, SharedWords, access};

/// A result of `N` words, and whatever else the work writes to shared memory and files, that one
/// process makes and all others wait for. Made before the first fork.
#[derive(Debug)]
pub struct SharedOnce<const N: usize> {
    /// What is done, for messages.
    name: &'static str,
    /// A [`State`], then the result.
    words: SharedWords,
    changed: SharedEvent,
    presence: &'static Presence,
    /// Whether a thread of this process does the work. If none does, and it is being done in this
    /// process's name, an earlier process of its number has died.
    working: Mutex<bool>,
    /// The result, once this process has seen it: no other process changes it any more.
    known: OnceLock<[u64; N]>,
}

/// What word 0 holds. Any value may be there: every process can write to the memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct State(u64);

impl State {
    /// The process that does the work, or 0. proc_pid_max(5).
    const WORKER: u64 = (1 << 23) - 1;
    const DONE: u64 = 1 << 23;
    /// Why the last attempt failed.
    const ERRNO: u32 = 24;
    const ERRNO_MASK: u64 = 0xfff;
    /// How often a dead worker was replaced: so that one that was found dead is distinguished
    /// from a later one of its number.
    const TAKEOVER: u64 = 1 << 36;
    const TAKEOVERS: u64 = 0xfff << 36;
    /// How many attempts have failed.
    const FAILURE: u64 = 1 << 48;

    fn worker(self) -> u32 {
        (self.0 & State::WORKER) as u32
    }

    fn is_done(self) -> bool {
        self.0 & State::DONE != 0
    }

    fn errno(self) -> Errno {
        match Errno::from_raw((self.0 >> State::ERRNO & State::ERRNO_MASK) as i32) {
            Errno::UnknownErrno => Errno::EIO,
            errno => errno,
        }
    }

    fn failures(self) -> u64 {
        self.0 / State::FAILURE
    }

    /// Work that `process` does from now on.
    fn taken_by(self, process: u32) -> State {
        let takeovers = self.0.wrapping_add(State::TAKEOVER) & State::TAKEOVERS;
        let kept = self.0 & !(State::TAKEOVERS | State::WORKER | State::DONE);
        State(kept | takeovers | u64::from(process) & State::WORKER)
    }

    fn done(self) -> State {
        State(self.0 & !State::WORKER | State::DONE)
    }

    fn failed(self, errno: Errno) -> State {
        let errno = (errno as u64 & State::ERRNO_MASK) << State::ERRNO;
        let kept = self.0 & !(State::WORKER | State::ERRNO_MASK << State::ERRNO);
        State((kept | errno).wrapping_add(State::FAILURE))
    }
}

/// What a thread that wants the result has to do.
enum Turn {
    /// Nothing: it is there.
    Done,
    /// The work, in the state that it put there.
    Work(State),
}

impl<const N: usize> SharedOnce<N> {
    /// Work that is not begun. `name` says what, for messages: `xz: index`.
    ///
    /// # Errors
    /// ENOMEM, EMFILE.
    pub fn new(name: &'static str) -> Result<SharedOnce<N>> {
        Ok(SharedOnce {
            name,
            words: SharedWords::new(1 + N)?,
            changed: SharedEvent::new()?,
            presence: presence::of_mutexes()?,
            working: Mutex::new(false),
            known: OnceLock::new(),
        })
    }

    /// The result. If there is none, and no process is making it, `work` is run here; if
    /// another is, this waits for that, in the name of `client`.
    ///
    /// What `work` has written is visible to all that get the result. If the process that runs it
    /// is killed, another one that waits runs its own `work` from the beginning, on whatever the
    /// first has left. The result may be a hostile worker's, and is to be checked like any input.
    ///
    /// # Errors
    /// Those of `work`. Those that waited for work that failed get its errno; the next call tries
    /// again. ESHUTDOWN: the client has gone, or the server stops.
    pub fn get_or_do(
        &self,
        client: Option<&Client>,
        work: impl FnOnce() -> Result<[u64; N]>,
    ) -> Result<[u64; N]> {
        if let Some(known) = self.known.get() {
            return Ok(*known);
        }
        let mut waited_for = None;
        match self.changed.wait_until(client, || self.turn(&mut waited_for))? {
            Turn::Done => Ok(self.result()),
            Turn::Work(state) => self.work(state, work),
        }
    }

    /// The result, if it is there.
    pub fn get(&self) -> Option<[u64; N]> {
        let is_done = || State(access::load(&self.words[0])).is_done();
        (self.known.get().is_some() || is_done()).then(|| self.result())
    }

    /// The result, which is there.
    fn result(&self) -> [u64; N] {
        *self.known.get_or_init(|| {
            let mut result = [0; N];
            for (value, word) in result.iter_mut().zip(&self.words[1..]) {
                *value = access::peek(word);
            }
            result
        })
    }

    fn working(&self) -> MutexGuard<'_, bool> {
        self.working.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks whether there is something to do. `waited_for` is the number of the attempt that the
    /// caller has waited for.
    fn turn(&self, waited_for: &mut Option<u64>) -> Result<Option<Turn>> {
        let me = self.presence.enter();
        let mut working = self.working();
        loop {
            let seen = State(access::load(&self.words[0]));
            if seen.is_done() {
                return Ok(Some(Turn::Done));
            }
            if waited_for.is_some_and(|attempt| attempt != seen.failures()) {
                let name = self.name;
                return Err(Error::new(seen.errno(), format!("{name}: failed for another client")));
            }
            let is_mine = seen.worker() == me;
            let is_vacant = seen.worker() == 0
                || is_mine && !*working
                || !is_mine && !self.presence.is_here(seen.worker());
            if !is_vacant {
                *waited_for = Some(seen.failures());
                return Ok(None);
            }
            let mine = seen.taken_by(me);
            if access::exchange(&self.words[0], seen.0, mine.0).is_ok() {
                *working = true;
                return Ok(Some(Turn::Work(mine)));
            }
        }
    }

    fn work(&self, state: State, work: impl FnOnce() -> Result<[u64; N]>) -> Result<[u64; N]> {
        // A panic is a failure too.
        let mut attempt = Attempt { once: self, state, ends: state.failed(Errno::EIO) };
        match work() {
            Ok(result) => {
                for (word, value) in self.words[1..].iter().zip(result) {
                    access::put(word, value);
                }
                attempt.ends = state.done();
                drop(attempt);
                Ok(*self.known.get_or_init(|| result))
            }
            Err(error) => {
                attempt.ends = state.failed(error.errno());
                Err(error)
            }
        }
    }

    /// For the fuzz targets, which are hostile workers: any of the words.
    #[cfg(any(test, feature = "fuzz"))]
    #[doc(hidden)]
    pub fn scribble(&self, index: usize, word: u64) {
        access::store(&self.words[index % self.words.len()], word);
    }
}

/// An attempt of this process, which is over when this is dropped.
struct Attempt<'a, const N: usize> {
    once: &'a SharedOnce<N>,
    state: State,
    ends: State,
}

impl<const N: usize> Drop for Attempt<'_, N> {
    fn drop(&mut self) {
        let mut working = self.once.working();
        // If it is not as this process has left it, a hostile one has changed it: others go on as
        // they find it.
        let _ = access::exchange(&self.once.words[0], self.state.0, self.ends.0);
        *working = false;
        drop(working);
        self.once.changed.signal();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared::deaths::{self, Child};
    use std::sync::Arc;
    use std::sync::atomic::Ordering;

    /// Work that counts how often it is done, in shared memory, and takes some steps.
    struct Job {
        once: SharedOnce<2>,
        counts: SharedWords,
    }

    /// Attempts that were begun, and those that were ended by themselves.
    const BEGUN: usize = 0;
    const ENDED: usize = 1;
    /// The attempts before this one fail.
    const SUCCEEDS: usize = 2;
    /// What the work leaves besides its result.
    const PRODUCT: usize = 3;
    /// Work waits until this is not 0.
    const GO: usize = 4;

    impl Job {
        fn new() -> Job {
            let job =
                Job { once: SharedOnce::new("job").unwrap(), counts: SharedWords::new(5).unwrap() };
            job.counts[GO].store(1, Ordering::SeqCst);
            job
        }

        fn run(&self) -> Result<[u64; 2]> {
            self.once.get_or_do(None, || {
                let begun = self.counts[BEGUN].fetch_add(1, Ordering::SeqCst) + 1;
                while self.counts[GO].load(Ordering::SeqCst) == 0 {
                    std::thread::yield_now();
                }
                access::put(&self.counts[PRODUCT], 1);
                access::put(&self.counts[PRODUCT], 42);
                self.counts[ENDED].fetch_add(1, Ordering::SeqCst);
                if begun < self.counts[SUCCEEDS].load(Ordering::SeqCst) {
                    return Err(Error::silent(Errno::ENOSPC));
                }
                Ok([7, 8])
            })
        }

        /// Waits until so many attempts were begun.
        fn wait_for(&self, begun: u64) {
            while self.counts[BEGUN].load(Ordering::SeqCst) < begun {
                std::thread::yield_now();
            }
        }

        fn wait_until_waited_for(&self) {
            while !self.once.changed.is_waited_for() {
                std::thread::yield_now();
            }
        }

        fn check_result(&self) {
            assert_eq!(self.run().unwrap(), [7, 8]);
            assert_eq!(access::load(&self.counts[PRODUCT]), 42);
        }
    }

    #[test]
    fn many_processes_and_threads_do_it_once() {
        let job = Job::new();
        job.counts[GO].store(0, Ordering::SeqCst);
        let processes: Vec<_> = (0..4).map(|_| Child::new(|| job.check_result())).collect();
        job.wait_for(1);
        job.wait_until_waited_for();
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| job.check_result())).collect();
            job.counts[GO].store(1, Ordering::SeqCst);
            threads.into_iter().for_each(|thread| thread.join().unwrap());
        });
        processes.into_iter().for_each(Child::join);
        assert_eq!(job.counts[BEGUN].load(Ordering::SeqCst), 1);
        assert_eq!(job.once.get(), Some([7, 8]));
    }

    /// Threads of one process have the same number, and one of them does the work.
    #[test]
    fn threads_of_the_process_that_does_it_wait_for_it() {
        let job = Job::new();
        job.counts[GO].store(0, Ordering::SeqCst);
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| job.check_result())).collect();
            job.wait_for(1);
            job.wait_until_waited_for();
            assert_eq!(job.once.get(), None);
            job.counts[GO].store(1, Ordering::SeqCst);
            threads.into_iter().for_each(|thread| thread.join().unwrap());
        });
        assert_eq!(job.counts[BEGUN].load(Ordering::SeqCst), 1);
    }

    #[test]
    fn a_failure_is_reported_to_all_who_wait_and_the_next_may_try_again() {
        let job = Job::new();
        job.counts[SUCCEEDS].store(3, Ordering::SeqCst);
        job.counts[GO].store(0, Ordering::SeqCst);
        let fails = || assert_eq!(job.run().unwrap_err().errno(), Errno::ENOSPC);
        let worker = Child::new(fails);
        job.wait_for(1);
        let waiter = Child::new(fails);
        job.wait_until_waited_for();
        job.counts[GO].store(1, Ordering::SeqCst);
        worker.join();
        waiter.join();
        assert_eq!(job.counts[BEGUN].load(Ordering::SeqCst), 1, "the waiter has not tried itself");
        fails();
        job.check_result();
        assert_eq!(job.counts[BEGUN].load(Ordering::SeqCst), 3);
    }

    #[test]
    fn work_that_panics_has_failed() {
        let job = Job::new();
        let panics = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            job.once.get_or_do(None, || panic!("in the middle"))
        }));
        assert!(panics.is_err());
        job.check_result();
    }

    #[test]
    fn the_death_of_the_worker_is_survived_by_those_who_wait() {
        let job = Job::new();
        job.counts[GO].store(0, Ordering::SeqCst);
        let worker = Child::new(|| job.check_result());
        job.wait_for(1);
        let waiter = Child::new(|| job.check_result());
        job.wait_until_waited_for();
        worker.kill();
        job.wait_for(2);
        job.counts[GO].store(1, Ordering::SeqCst);
        waiter.join();
        assert_eq!(job.counts[ENDED].load(Ordering::SeqCst), 1);
    }

    #[test]
    fn any_state_is_survived() {
        for state in [1, !State::DONE, State::WORKER, 0x1234_5678_9abc_def0 & !State::DONE] {
            let job = Job::new();
            job.once.scribble(0, state);
            job.check_result();
        }
        // An earlier process of this one's number.
        let job = Job::new();
        job.once.scribble(0, std::process::id().into());
        job.check_result();
        // A forged result cannot be distinguished from another.
        let job = Job::new();
        job.once.scribble(0, u64::MAX);
        assert_eq!(job.run().unwrap(), [0, 0]);
    }

    #[test]
    fn a_death_at_any_step_of_the_work_is_survived() {
        deaths::alone("shared::once::tests::a_death_at_any_step_of_the_work_is_survived", || {
            let check = |job: &Job, how: &str| {
                let other = Child::new(|| job.check_result());
                job.check_result();
                other.join();
                assert!(job.counts[ENDED].load(Ordering::SeqCst) <= 2, "{how}");
                let begun = job.counts[BEGUN].load(Ordering::SeqCst);
                assert!(begun <= 2, "{how}: begun {begun} times");
            };
            deaths::at_every_step(Job::new, |job| drop(job.run()), |job, how| check(&job, how));
            // A process waits for the one that dies.
            let make = || {
                let job = Arc::new(Job::new());
                let waiter = Child::new(|| {
                    job.wait_for(1);
                    job.check_result();
                });
                (job, waiter)
            };
            deaths::at_every_step(
                make,
                |(job, _)| drop(job.run()),
                |(job, waiter), how| {
                    check(&job, how);
                    waiter.join();
                },
            );
            // The one who waits dies.
            let make = || {
                let job = Arc::new(Job::new());
                let worker = Child::new(|| {
                    let result = job.once.get_or_do(None, || {
                        job.counts[BEGUN].fetch_add(1, Ordering::SeqCst);
                        std::thread::sleep(std::time::Duration::from_millis(30));
                        access::put(&job.counts[PRODUCT], 42);
                        Ok([7, 8])
                    });
                    result.unwrap();
                });
                job.wait_for(1);
                (job, worker)
            };
            deaths::at_every_step(
                make,
                |(job, _)| job.check_result(),
                |(job, worker), how| {
                    worker.join();
                    job.check_result();
                    assert_eq!(job.counts[BEGUN].load(Ordering::SeqCst), 1, "{how}");
                },
            );
            // Work that fails.
            let make = || {
                let job = Job::new();
                job.counts[SUCCEEDS].store(2, Ordering::SeqCst);
                job
            };
            deaths::at_every_step(
                make,
                |job| drop(job.run()),
                |job, _| {
                    // The first attempt fails, unless it died: then it counts as begun.
                    if job.counts[BEGUN].load(Ordering::SeqCst) == 0 {
                        job.run().unwrap_err();
                    }
                    job.check_result();
                },
            );
        });
    }
}
