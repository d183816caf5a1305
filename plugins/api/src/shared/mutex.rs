//! A few shared words under a mutex that survives the death of its holder.
//!
//! Not a pthread robust mutex: glibc keeps list pointers inside one and follows them on unlock, so
//! a worker that its client has taken over could write anywhere in the others through it. Here
//! shared memory holds one 32-bit [`State`]; the worst that a hostile holder can do is not to let
//! go.
//!
//! Nor a priority-inheritance futex: it names its holder by a thread id, and if that thread was
//! killed and its number was given to another process, all wait for that. Here a holder
//! is a process that holds the record lock of its own number ([`super::presence`]), which the
//! kernel releases with it, and nobody but a user of the same mutexes can have.

#![forbid(unsafe_code)]

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::errno::Errno;

use crate::client::{self, Client};
use crate::error::Result;
use crate::shared::presence::{self, Presence};
use crate::shared::{SharedWords, access, futex};

/// After so long a waiter looks whether the holder lives.
const PATIENCE: Duration = Duration::from_millis(20);

/// Where the number of the bank is among the words, and where the banks begin.
const BANK: usize = 1;
const BANKS: usize = 2;

/// `N` words that one thread of one process at a time sees and changes.
#[derive(Debug)]
pub struct SharedMutex<const N: usize> {
    /// The futex, the number of the bank that is in force, and two banks of data. A holder writes
    /// the other bank, and then its number: killed in between, it has changed nothing.
    words: SharedWords,
    /// Which of this process's threads may try: so that a mutex held in this process's name is held
    /// by nobody, if another thread may try. A fork has its own; it must be made while no thread
    /// holds the mutex.
    turn: Mutex<()>,
    presence: &'static Presence,
}

impl<const N: usize> SharedMutex<N> {
    /// A mutex with these words, shared with every process forked from now on.
    ///
    /// # Errors
    /// ENOMEM, EMFILE.
    pub fn new(words: [u64; N]) -> Result<SharedMutex<N>> {
        let mutex = SharedMutex {
            words: SharedWords::new(BANKS + 2 * N)?,
            turn: Mutex::new(()),
            presence: presence::of_mutexes()?,
        };
        for (shared, word) in mutex.bank(0).iter().zip(words) {
            shared.store(word, Ordering::Relaxed);
        }
        Ok(mutex)
    }

    fn bank(&self, number: u64) -> &[AtomicU64] {
        &self.words[BANKS + (number & 1) as usize * N..][..N]
    }

    fn futex(&self) -> &AtomicU32 {
        futex::in_word(&self.words[0])
    }

    /// Waits until no other thread holds the mutex. The words are written back when the result is
    /// dropped.
    ///
    /// A hostile holder may never unlock: [`lock_for`](Self::lock_for) gives up with the client.
    pub fn lock(&self) -> Locked<'_, N> {
        loop {
            if let Some(locked) = self.lock_unless(|| false) {
                return locked;
            }
        }
    }

    /// Waits in the name of a client, whose end is looked for only when the holder has not let go
    /// for a while.
    ///
    /// # Errors
    /// ESHUTDOWN: the client has gone, or the server stops.
    pub fn lock_for(&self, client: Option<&Client>) -> Result<Locked<'_, N>> {
        self.lock_unless(|| client::is_gone(client)).ok_or_else(client::closing)
    }

    /// Waits for the mutex until `give_up` returns true.
    fn lock_unless(&self, give_up: impl Fn() -> bool) -> Option<Locked<'_, N>> {
        let turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let (held, recovered) = acquire(self.futex(), self.presence, give_up)?;
        let bank = access::load(&self.words[BANK]);
        let mut values = [0; N];
        for (value, word) in values.iter_mut().zip(self.bank(bank)) {
            *value = access::peek(word);
        }
        Some(Locked { mutex: self, values, bank, held, recovered, _turn: turn })
    }
}

/// The words of a locked [`SharedMutex`], as an array.
#[derive(Debug)]
pub struct Locked<'a, const N: usize> {
    mutex: &'a SharedMutex<N>,
    values: [u64; N],
    /// The bank that they come from.
    bank: u64,
    /// The state as this holder has made it.
    held: State,
    recovered: bool,
    _turn: MutexGuard<'a, ()>,
}

impl<const N: usize> Locked<'_, N> {
    /// True if the last holder died or panicked. The words are as they were before it took the
    /// mutex or, if it died while it let go, as it has left them: all of them. What it did
    /// elsewhere may be half done.
    pub fn recovered(&self) -> bool {
        self.recovered
    }
}

impl<const N: usize> Deref for Locked<'_, N> {
    type Target = [u64; N];

    fn deref(&self) -> &[u64; N] {
        &self.values
    }
}

impl<const N: usize> DerefMut for Locked<'_, N> {
    fn deref_mut(&mut self) -> &mut [u64; N] {
        &mut self.values
    }
}

impl<const N: usize> Drop for Locked<'_, N> {
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        if !failed {
            let other = !self.bank & 1;
            for (word, value) in self.mutex.bank(other).iter().zip(self.values) {
                access::put(word, value);
            }
            access::store(&self.mutex.words[BANK], other);
        }
        release(self.mutex.futex(), self.held, failed);
    }
}

/// What the futex holds: the process that holds the mutex (0: none), how often it has changed
/// hands, whether the last holder left without writing back, and whether there may be waiters. Any
/// value may be there: every process can write to the memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct State(u32);

impl State {
    /// Process ids are smaller. proc_pid_max(5).
    const HOLDER: u32 = (1 << 23) - 1;
    /// So that a holder that was found dead is distinguished from a later one of the same number.
    const TURN: u32 = 1 << 23;
    const TURNS: u32 = 0x7f << 23;
    const FAILED: u32 = 1 << 30;
    const WAITED_FOR: u32 = 1 << 31;

    fn holder(self) -> u32 {
        self.0 & State::HOLDER
    }

    fn failed(self) -> bool {
        self.0 & State::FAILED != 0
    }

    fn waited_for(self) -> bool {
        self.0 & State::WAITED_FOR != 0
    }

    /// Held by `process` from now on.
    fn taken_by(self, process: u32, waited_for: bool) -> State {
        let turn = self.0.wrapping_add(State::TURN) & State::TURNS;
        let waited_for = if waited_for { State::WAITED_FOR } else { 0 };
        State(turn | process & State::HOLDER | waited_for)
    }
}

/// Takes the futex: the state that was put there, and whether the last holder died or panicked.
/// `None` if `give_up` has returned true.
fn acquire(
    futex: &AtomicU32,
    presence: &Presence,
    give_up: impl Fn() -> bool,
) -> Option<(State, bool)> {
    let me = presence.enter();
    let mut seen = State(futex.load(Ordering::Relaxed));
    // Once it has waited, it cannot know whether it was the only one.
    let mut waited = false;
    let mut dead = None;
    loop {
        // Held in this process's name, it was left by an earlier process of this number: this
        // thread has the turn.
        let free = seen.holder() == 0 || seen.holder() == me || dead == Some(seen);
        if free {
            let mine = seen.taken_by(me, waited || seen.waited_for());
            match exchange(futex, seen, mine) {
                Ok(()) => return Some((mine, seen.failed() || seen.holder() != 0)),
                Err(now) => seen = now,
            }
            continue;
        }
        if !seen.waited_for() {
            let marked = State(seen.0 | State::WAITED_FOR);
            match exchange(futex, seen, marked) {
                Ok(()) => seen = marked,
                Err(now) => {
                    seen = now;
                    continue;
                }
            }
        }
        waited = true;
        let timed_out = futex::wait(futex, seen.0, PATIENCE) == Err(Errno::ETIMEDOUT);
        let now = State(futex.load(Ordering::Relaxed));
        dead = (timed_out && now == seen && !presence.is_here(seen.holder())).then_some(seen);
        if timed_out && dead.is_none() && give_up() {
            return None;
        }
        seen = now;
    }
}

fn exchange(futex: &AtomicU32, from: State, to: State) -> std::result::Result<(), State> {
    access::step();
    let result = futex.compare_exchange(from.0, to.0, Ordering::Acquire, Ordering::Relaxed);
    access::step();
    result.map(drop).map_err(State)
}

/// Lets the futex go, `failed` without having written back, unless another process wrote over it;
/// wakes one who waits.
fn release(futex: &AtomicU32, held: State, failed: bool) {
    let mut seen = State(futex.load(Ordering::Relaxed));
    loop {
        if seen.0 & !State::WAITED_FOR != held.0 & !State::WAITED_FOR {
            // A hostile process's work, or the mutex was taken over: others go on as they find it.
            break;
        }
        let free = seen.0 & State::TURNS | if failed { State::FAILED } else { 0 };
        access::step();
        let result = futex.compare_exchange(seen.0, free, Ordering::Release, Ordering::Relaxed);
        access::step();
        match result {
            Ok(_) => break,
            Err(now) => seen = State(now),
        }
    }
    if seen.waited_for() {
        futex::wake(futex, 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::time::Instant;

    use crate::shared::deaths::{self, Child};

    #[test]
    fn increments_from_many_threads_and_processes_are_not_lost() {
        let mutex = Arc::new(SharedMutex::new([0, 5]).unwrap());
        let add = |mutex: &SharedMutex<2>| (0..5_000).for_each(|_| mutex.lock()[0] += 1);
        let processes: Vec<_> = (0..3).map(|_| Child::new(|| add(&mutex))).collect();
        let threads: Vec<_> = (0..3)
            .map(|_| {
                let mutex = Arc::clone(&mutex);
                std::thread::spawn(move || add(&mutex))
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        for process in processes {
            process.join();
        }
        assert_eq!(*mutex.lock(), [30_000, 5]);
    }

    #[test]
    fn the_death_of_the_holder_is_noticed() {
        let mutex = SharedMutex::new([1]).unwrap();
        let holder = Child::new(|| {
            let mut locked = mutex.lock();
            locked[0] = 2;
            std::mem::forget(locked);
        });
        holder.join();
        let locked = mutex.lock();
        assert!(locked.recovered());
        assert_eq!(*locked, [1]);
        drop(locked);
        assert!(!mutex.lock().recovered());
    }

    /// The number of a holder that was killed may be a living stranger's by now.
    #[test]
    fn a_living_stranger_of_the_holders_number_holds_nothing() {
        let mutex = SharedMutex::new([1]).unwrap();
        let parent = nix::unistd::getppid().as_raw().cast_unsigned();
        for state in [parent, 1, parent | State::WAITED_FOR, u32::MAX, 0x1234_5678] {
            mutex.futex().store(state, Ordering::SeqCst);
            assert!(mutex.lock().recovered(), "{state:#x}");
            assert!(!mutex.lock().recovered(), "{state:#x}");
        }
        // An earlier process of our own number.
        mutex.futex().store(std::process::id(), Ordering::SeqCst);
        let before = Instant::now();
        assert!(mutex.lock().recovered());
        assert!(before.elapsed() < PATIENCE, "at once");
    }

    #[test]
    fn a_living_holder_is_waited_for() {
        let mutex = SharedMutex::new([0]).unwrap();
        let (read, write) = nix::unistd::pipe().unwrap();
        let holder = Child::new(|| {
            let mut locked = mutex.lock();
            nix::unistd::write(&write, b"x").unwrap();
            // Longer than a waiter takes to look.
            std::thread::sleep(PATIENCE * 5);
            locked[0] = 7;
        });
        nix::unistd::read(&read, &mut [0]).unwrap();
        let locked = mutex.lock();
        assert_eq!((*locked, locked.recovered()), ([7], false));
        drop(locked);
        holder.join();
    }

    #[test]
    fn a_wait_for_a_holder_that_never_lets_go_ends_with_the_client() {
        let mutex = SharedMutex::new([0]).unwrap();
        let (read, write) = nix::unistd::pipe().unwrap();
        let holder = Child::new(|| {
            let _locked = mutex.lock();
            nix::unistd::write(&write, b"x").unwrap();
            loop {
                std::thread::park();
            }
        });
        nix::unistd::read(&read, &mut [0]).unwrap();
        // Made behind the fork, which would keep the client's end open.
        let (client, socket) = crate::shared::event::tests::client();
        drop(socket);
        let gave_up = mutex.lock_for(Some(&client)).map(drop);
        assert_eq!(gave_up.unwrap_err().errno(), Errno::ESHUTDOWN);
        holder.kill();
        assert!(mutex.lock_for(Some(&client)).unwrap().recovered());
    }

    #[test]
    fn a_panic_while_holding_leaves_the_words_as_they_were() {
        let mutex = SharedMutex::new([1]).unwrap();
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let mut locked = mutex.lock();
            locked[0] = 2;
            panic!("in the middle");
        }));
        assert!(panicked.is_err());
        let locked = mutex.lock();
        assert!(locked.recovered());
        assert_eq!(*locked, [1]);
    }

    /// Both words change together, whenever a holder dies.
    fn dies<const N: usize>(make: impl Fn() -> (SharedMutex<N>, Option<Child>)) {
        let add = |mutex: &SharedMutex<N>| mutex.lock().iter_mut().for_each(|word| *word += 1);
        deaths::at_every_step(
            make,
            |(mutex, _)| add(mutex),
            |(mutex, holder), how| {
                // Those that waited for the dead one, and later ones.
                let other = Child::new(|| add(&mutex));
                add(&mutex);
                other.join();
                let holders = u64::from(holder.is_some());
                holder.into_iter().for_each(Child::join);
                let words = *mutex.lock();
                let others = words.iter().all(|word| *word == words[0]);
                let added = words.iter().all(|word| (2..=3).contains(&(word - holders)));
                assert!(others && added, "{how}: {words:?}");
                assert!(!mutex.lock().recovered(), "{how}");
            },
        );
    }

    #[test]
    fn a_holder_that_dies_at_any_step_changes_all_words_or_none() {
        deaths::alone(
            "shared::mutex::tests::a_holder_that_dies_at_any_step_changes_all_words_or_none",
            || {
                dies(|| (SharedMutex::new([0; 3]).unwrap(), None));
                dies(|| (SharedMutex::new([]).unwrap(), None));
            },
        );
    }

    #[test]
    fn a_waiter_that_dies_at_any_step_holds_up_nobody() {
        deaths::alone(
            "shared::mutex::tests::a_waiter_that_dies_at_any_step_holds_up_nobody",
            || {
                dies(|| {
                    let mutex = SharedMutex::new([0; 3]).unwrap();
                    let (read, write) = nix::unistd::pipe().unwrap();
                    let holder = Child::new(|| {
                        let mut locked = mutex.lock();
                        nix::unistd::write(&write, b"x").unwrap();
                        std::thread::sleep(PATIENCE + PATIENCE / 2);
                        locked.iter_mut().for_each(|word| *word += 1);
                    });
                    nix::unistd::read(&read, &mut [0]).unwrap();
                    (mutex, Some(holder))
                });
            },
        );
    }
}
