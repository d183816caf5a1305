//! Policy: whether the calls of a plugin that may wait for anything are made one at a time, in all
//! of this process.
//!
//! The interpreter of a script has a lock: its calls run one at a time whatever the server does,
//! and threads that wait for that lock wake each other for each call, which takes longer than the
//! call. So it is tried now and then what calls take while no other is made. If that is quicker
//! than how fast they are done at the same time, they are made in turn: the thread that reads a
//! client's requests makes those that have come, then lets the next. Once calls sleep, they
//! are made at the same time again, for then they would wait for each other.

#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use super::inline_writes::sleeps;
use super::pin::{self, Pin};

/// Calls that were made while others were, before calls are tried alone.
const ENOUGH: u32 = 64;
/// Calls that are tried alone.
const TRIED: usize = 8;
/// How long the calls that are being made are waited for before one is tried alone.
const PATIENCE: Duration = Duration::from_millis(10);
/// Calls are tried alone for one part in so many of the time, at most.
const SHARE: u64 = 8;
/// How long a turn is waited for. The call of who has it may wait for another machine.
const LONGEST_TURN: Duration = Duration::from_millis(50);
/// When calls are tried again, at first, and at most. It doubles each time.
const PAUSE: Duration = Duration::from_secs(1);
const MOST_PAUSE: Duration = Duration::from_secs(64);
/// If calls were made in turn for longer than so many pauses, that was right.
const WORTH_IT: u64 = 16;
/// How long calls in turn may have slept, less what was saved.
const MOST_LOST: Duration = Duration::from_millis(10);
/// The new value's part of the average: one in so many.
const WEIGHT: u64 = 8;

/// How calls are made in this process.
#[derive(Debug)]
pub(crate) struct Turns {
    pin: Option<Pin>,
    /// Whether calls are made in turn.
    are_taken: AtomicBool,
    /// Calls that are being made out of turn.
    running: AtomicU32,
    /// Time for each call when several are made at the same time, nanoseconds, average; and of how
    /// many since the last trial.
    each: AtomicU64,
    known: AtomicU32,
    /// Whether a thread makes calls alone. While it holds the gate no other begins one.
    alone: AtomicBool,
    gate: Mutex<Tried>,
    /// Whether somebody has the turn.
    turn: Mutex<bool>,
    end_of_turn: Condvar,
    /// Since this process has had clients, and how long after that calls are tried alone again,
    /// nanoseconds.
    start: Instant,
    not_before: AtomicU64,
    pause: AtomicU64,
    /// When turns were last begun to be taken, and for how long calls in turn have slept since,
    /// less what was saved, nanoseconds.
    since: AtomicU64,
    lost: AtomicU64,
}

/// The turn of a thread.
#[derive(Debug)]
pub(super) struct Turn<'t> {
    turns: &'t Turns,
    /// No call was being made out of turn when it began.
    undisturbed: bool,
}

impl Turn<'_> {
    /// A call has slept for so long. One that was made beside others may have waited for the
    /// plugin's lock.
    pub(super) fn slept(&self, time: Duration) {
        if self.undisturbed {
            self.turns.slept(time);
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.turns.saved();
        *lock(&self.turns.turn) = false;
        self.turns.end_of_turn.notify_one();
    }
}

/// What calls took that were made alone, and how many.
#[derive(Debug, Default)]
struct Tried {
    times: [Duration; TRIED],
    count: usize,
}

/// A thread makes calls, and no other begins one.
#[derive(Debug)]
pub(super) struct Alone<'t> {
    turns: &'t Turns,
    since: Instant,
    tried: MutexGuard<'t, Tried>,
}

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        // If it has not been decided, the next requests decide.
        let next = self.turns.now() + SHARE * nanoseconds(self.since.elapsed());
        self.turns.not_before.fetch_max(next, Ordering::Relaxed);
        self.turns.alone.store(false, Ordering::SeqCst);
    }
}

impl Turns {
    pub(crate) fn new() -> Turns {
        Turns::pinned(Pin::of(pin::TURNS))
    }

    fn pinned(pin: Option<Pin>) -> Turns {
        Turns {
            pin,
            are_taken: AtomicBool::new(pin == Some(Pin::Always)),
            running: AtomicU32::new(0),
            each: AtomicU64::new(0),
            known: AtomicU32::new(0),
            alone: AtomicBool::new(false),
            gate: Mutex::default(),
            turn: Mutex::new(false),
            end_of_turn: Condvar::new(),
            start: Instant::now(),
            not_before: AtomicU64::new(0),
            pause: AtomicU64::new(nanoseconds(PAUSE)),
            since: AtomicU64::new(0),
            lost: AtomicU64::new(0),
        }
    }

    /// Whether calls are made in turn.
    #[inline]
    pub(super) fn are_taken(&self) -> bool {
        self.are_taken.load(Ordering::Relaxed)
    }

    /// Makes a call at the same time as others, and takes its time; or in turn, if calls are.
    pub(super) fn call<T>(&self, call: impl FnOnce() -> T) -> (T, Duration) {
        if self.are_taken()
            && let Some(_turn) = self.take()
        {
            let start = Instant::now();
            return (call(), start.elapsed());
        }
        let running = self.begin();
        let start = Instant::now();
        let result = call();
        let time = start.elapsed();
        running.end(time);
        (result, time)
    }

    /// Waits while another thread makes calls alone.
    fn begin(&self) -> Running<'_> {
        loop {
            let running =
                Running { turns: self, count: self.running.fetch_add(1, Ordering::SeqCst) + 1 };
            if !self.alone.load(Ordering::SeqCst) {
                return running;
            }
            drop(running);
            drop(lock(&self.gate));
        }
    }

    /// Notes what a call took while `count` were made.
    fn record(&self, time: Duration, count: u32) {
        if count < 2 {
            return;
        }
        let each = nanoseconds(time) / u64::from(count);
        let before = self.each.load(Ordering::Relaxed);
        let known = self.known.load(Ordering::Relaxed);
        let average = if known == 0 { each } else { before - before / WEIGHT + each / WEIGHT };
        // Two threads at once may count as one.
        self.each.store(average, Ordering::Relaxed);
        self.known.store(known.saturating_add(1), Ordering::Relaxed);
    }

    /// Whether calls are to be tried alone.
    #[inline]
    pub(super) fn is_trial_due(&self) -> bool {
        self.pin.is_none()
            && self.known.load(Ordering::Relaxed) >= ENOUGH
            && !self.alone.load(Ordering::Relaxed)
            && self.now() >= self.not_before.load(Ordering::Relaxed)
    }

    /// Begins to make calls alone. `None` if those that are being made take too long, or another
    /// thread does so.
    pub(super) fn try_alone(&self) -> Option<Alone<'_>> {
        let tried = match self.gate.try_lock() {
            Ok(tried) => tried,
            Err(TryLockError::Poisoned(tried)) => tried.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        self.alone.store(true, Ordering::SeqCst);
        let since = Instant::now();
        let alone = Alone { turns: self, since, tried };
        let end = since + PATIENCE;
        while self.running.load(Ordering::SeqCst) > 0 {
            if Instant::now() >= end {
                self.postpone();
                return None;
            }
            std::thread::sleep(Duration::from_micros(50));
        }
        Some(alone)
    }

    fn now(&self) -> u64 {
        nanoseconds(self.start.elapsed())
    }

    fn begin_turns(&self) {
        self.lost.store(0, Ordering::Relaxed);
        self.since.store(self.now(), Ordering::Relaxed);
        self.are_taken.store(true, Ordering::Relaxed);
    }

    /// Calls are made at the same time, and tried alone later, and later each time.
    fn postpone(&self) {
        if self.pin.is_some() {
            return;
        }
        let now = self.now();
        let mut pause = self.pause.load(Ordering::Relaxed);
        if self.are_taken.swap(false, Ordering::Relaxed) {
            nbdkit_api::debug!("calls of the plugin are made at the same time");
            let lasted = now.saturating_sub(self.since.load(Ordering::Relaxed));
            if lasted / WORTH_IT > pause {
                pause = nanoseconds(PAUSE);
            }
        }
        self.pause.store((2 * pause).min(nanoseconds(MOST_PAUSE)), Ordering::Relaxed);
        self.not_before.store(now + pause, Ordering::Relaxed);
        self.known.store(0, Ordering::Relaxed);
    }

    /// A call in turn has slept for so long, while others waited for theirs.
    fn slept(&self, time: Duration) {
        let time = nanoseconds(time);
        if self.lost.fetch_add(time, Ordering::Relaxed) + time > nanoseconds(MOST_LOST) {
            self.postpone();
        }
    }

    /// A turn is over, which has saved about as much as a call takes among others.
    fn saved(&self) {
        let lost = self.lost.load(Ordering::Relaxed);
        if lost > 0 {
            let each = self.each.load(Ordering::Relaxed);
            self.lost.store(lost.saturating_sub(each), Ordering::Relaxed);
        }
    }

    /// Waits for the turn. `None` if that takes too long.
    pub(super) fn take(&self) -> Option<Turn<'_>> {
        let taken = lock(&self.turn);
        let waited = self.end_of_turn.wait_timeout_while(taken, LONGEST_TURN, |taken| *taken);
        let (mut taken, result) = waited.unwrap_or_else(PoisonError::into_inner);
        if result.timed_out() && *taken {
            self.postpone();
            return None;
        }
        *taken = true;
        let undisturbed = self.running.load(Ordering::Relaxed) == 0;
        Some(Turn { turns: self, undisturbed })
    }
}

impl Alone<'_> {
    /// Makes a call. Returns whether more are to be made.
    pub(super) fn call<T>(&mut self, call: impl FnOnce() -> T) -> (T, bool) {
        let before = sleeps();
        let start = Instant::now();
        let result = call();
        (result, self.record(start.elapsed(), || before != sleeps()))
    }

    fn record(&mut self, time: Duration, slept: impl FnOnce() -> bool) -> bool {
        let tried = &mut *self.tried;
        tried.times[tried.count] = time;
        tried.count += 1;
        let each = self.turns.each.load(Ordering::Relaxed);
        if nanoseconds(time) > 4 * each.max(1) && slept() {
            // Others wait.
            tried.count = 0;
            self.turns.postpone();
            return false;
        }
        if tried.count < TRIED {
            return true;
        }
        tried.count = 0;
        tried.times.sort_unstable();
        let median = nanoseconds(tried.times[TRIED / 2]);
        if median + median / 2 < each {
            nbdkit_api::debug!(
                "calls of the plugin are made one at a time: {median} ns each, {each} ns at the same time"
            );
            self.turns.begin_turns();
        } else {
            self.turns.postpone();
        }
        false
    }
}

/// A call that is being made.
struct Running<'t> {
    turns: &'t Turns,
    /// How many were, with it, when it began.
    count: u32,
}

impl Running<'_> {
    fn end(self, time: Duration) {
        self.turns.record(time, self.count);
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.turns.running.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What a lock guards here is whole at any time.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: Duration = Duration::from_micros(1);

    /// Calls that took so long, sixteen at a time, and then alone.
    fn tried(together: Duration, alone: Duration) -> Turns {
        let turns = Turns::pinned(None);
        (0..ENOUGH).for_each(|_| turns.record(together, 16));
        assert!(turns.is_trial_due());
        let mut trial = turns.try_alone().unwrap();
        while trial.record(alone, || true) {}
        drop(trial);
        turns
    }

    #[test]
    fn calls_are_made_in_turn_where_that_is_quicker() {
        assert!(tried(800 * US, 12 * US).are_taken(), "a lock that is handed over for 50 us");
        assert!(!tried(800 * US, 40 * US).are_taken(), "hardly quicker");
        assert!(!tried(800 * US, 800 * US).are_taken(), "they sleep");
        assert!(!tried(10 * US, 10 * US).are_taken(), "there are processors for all");
    }

    #[test]
    fn calls_are_tried_alone_only_after_many_that_were_not() {
        let turns = Turns::pinned(None);
        (0..1000).for_each(|_| turns.record(800 * US, 1));
        assert!(!turns.is_trial_due(), "one at a time already");
        (1..ENOUGH).for_each(|_| turns.record(800 * US, 2));
        assert!(!turns.is_trial_due());
        turns.record(800 * US, 2);
        assert!(turns.is_trial_due());
    }

    #[test]
    fn a_pinned_policy_tries_nothing() {
        for (pin, are_taken) in [(Pin::Always, true), (Pin::Never, false)] {
            let turns = Turns::pinned(Some(pin));
            (0..ENOUGH).for_each(|_| turns.record(800 * US, 16));
            assert!(!turns.is_trial_due());
            turns.slept(MOST_LOST * 2);
            assert_eq!(turns.are_taken(), are_taken);
        }
    }

    #[test]
    fn a_trial_that_was_lost_is_repeated_later_and_later() {
        let turns = tried(800 * US, 800 * US);
        let first = turns.not_before.load(Ordering::Relaxed);
        assert!(first >= nanoseconds(PAUSE));
        (0..ENOUGH).for_each(|_| turns.record(800 * US, 2));
        assert!(!turns.is_trial_due());
        (0..20).for_each(|_| turns.postpone());
        let now = nanoseconds(turns.start.elapsed());
        let last = turns.not_before.load(Ordering::Relaxed);
        assert!(
            (now + nanoseconds(MOST_PAUSE) / 2..=now + nanoseconds(MOST_PAUSE)).contains(&last)
        );
    }

    #[test]
    fn a_call_that_was_preempted_decides_nothing() {
        let turns = Turns::pinned(None);
        (0..ENOUGH).for_each(|_| turns.record(800 * US, 16));
        let mut trial = turns.try_alone().unwrap();
        assert!(trial.record(5000 * US, || false));
        // Another batch.
        drop(trial);
        assert!(!turns.is_trial_due(), "not at once");
        let mut trial = turns.try_alone().unwrap();
        while trial.record(12 * US, || true) {}
        assert!(turns.are_taken());
    }

    #[test]
    fn no_call_begins_while_one_is_tried_alone() {
        let turns = tried(800 * US, 800 * US);
        let alone = turns.try_alone().unwrap();
        assert!(turns.try_alone().is_none());
        let begun = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| turns.call(|| begun.store(true, Ordering::SeqCst)));
            std::thread::sleep(20_000 * US);
            assert!(!begun.load(Ordering::SeqCst));
            drop(alone);
        });
        assert!(begun.load(Ordering::SeqCst));
    }

    #[test]
    fn calls_that_take_long_are_not_waited_for() {
        let turns = Turns::pinned(None);
        let running = turns.begin();
        assert!(turns.try_alone().is_none());
        assert!(!turns.alone.load(Ordering::SeqCst));
        drop(running);
        assert!(turns.try_alone().is_some());
    }

    #[test]
    fn a_turn_that_does_not_end_is_not_waited_for() {
        let turns = tried(800 * US, 12 * US);
        let endless = turns.take().unwrap();
        assert_eq!(turns.call(|| 7).0, 7);
        assert!(!turns.are_taken());
        drop(endless);
        assert!(turns.take().is_some());
    }

    #[test]
    fn calls_in_turn_may_sleep_for_less_than_what_is_saved() {
        let turns = tried(800 * US, 12 * US);
        for _ in 0..100 {
            turns.take().unwrap().slept(500 * US);
            (0..10).for_each(|_| drop(turns.take().unwrap()));
            assert!(turns.are_taken());
        }
        let begun_together = turns.begin();
        let turn = turns.take().unwrap();
        turn.slept(MOST_LOST * 2);
        assert!(turns.are_taken(), "the plugin's lock may have been another's");
        drop(begun_together);
        drop(turn);
        (0..3).for_each(|_| turns.take().unwrap().slept(5000 * US));
        assert!(!turns.are_taken());
    }

    #[test]
    fn one_has_the_turn_at_a_time() {
        let turns = Turns::pinned(None);
        let inside = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let turn = turns.take();
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                        inside.fetch_sub(1, Ordering::SeqCst);
                        drop(turn);
                    }
                });
            }
        });
    }
}
