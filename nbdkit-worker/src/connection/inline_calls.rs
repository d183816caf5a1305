//! Policy: whether the reader itself calls a plugin that may wait for anything.
//!
//! Nothing is known of a plugin in C but what its calls took so far. Handing a request over to a
//! thread of the pool costs two wake-ups and, with many clients, hundreds of threads on a few
//! processors; a call that only copies costs less than that. So requests begin in the pool, whose
//! threads take the time of each. Once nearly all were quick the reader calls the plugin itself,
//! until a call has slept: then the next ones go to the pool again, so that they do not wait for
//! each other. The reader makes them, too, where calls of all clients are made in [`turns`].
//!
//! [`turns`]: super::turns

#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::inline_writes::sleeps;
use super::pin::{self, Pin};
use super::turns::{Alone, Turn, Turns};

/// A call that takes less costs no more than a hand-over.
const QUICK: Duration = Duration::from_micros(20);
/// A call that takes longer may have slept; whether it has is in the kernel's counters. Less than a
/// scheduler's time slice.
const LONG: Duration = Duration::from_micros(200);
/// What each quick call in the pool adds to the score and each other takes away: one in nine may be
/// slow, because its thread was preempted.
const WON: u32 = 1;
const LOST: u32 = 8;
/// The score from which on the reader makes the calls.
const ENOUGH: u32 = 64;
/// After a call that slept, requests go to the pool for this many times as long as it took: to try
/// again costs the reader at most a tenth of its time.
const PAUSE: u32 = 10;

/// How calls went in the pool; all threads of a connection add to it.
#[derive(Debug, Default)]
pub(super) struct Score(AtomicU32);

impl Score {
    /// A call was made in the pool, and took so long.
    pub(super) fn record(&self, time: Duration) {
        let now = self.0.load(Ordering::Relaxed);
        let next = if time < QUICK { (now + WON).min(ENOUGH) } else { now.saturating_sub(LOST) };
        // Two threads at once may count as one.
        self.0.store(next, Ordering::Relaxed);
    }

    fn is_enough(&self) -> bool {
        self.0.load(Ordering::Relaxed) >= ENOUGH
    }

    fn reset(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

/// How the reader's own calls went.
#[derive(Debug)]
pub(super) struct InlineCalls<'t> {
    turns: &'t Turns,
    /// The reader has the turn, for the requests that it has read.
    turn: Option<Turn<'t>>,
    /// It makes calls alone, to see what they take then.
    alone: Option<Alone<'t>>,
    /// How often the thread had slept before the first call since it last waited by itself.
    sleeps: Option<i64>,
    /// Until when the pool makes the calls.
    pool_until: Option<Instant>,
    pin: Option<Pin>,
}

impl<'t> InlineCalls<'t> {
    pub(super) fn new(turns: &'t Turns) -> InlineCalls<'t> {
        let pin = Pin::of(pin::CALLS);
        InlineCalls { turns, turn: None, alone: None, sleeps: None, pool_until: None, pin }
    }

    /// Whether the reader should make the next call.
    pub(super) fn are_due(&mut self, score: &Score) -> bool {
        self.are_due_at(score, Instant::now)
    }

    fn are_due_at(&mut self, score: &Score, now: impl FnOnce() -> Instant) -> bool {
        if let Some(pin) = self.pin {
            return pin == Pin::Always;
        }
        if self.turns.are_taken() || self.alone.is_some() || self.turns.is_trial_due() {
            return true;
        }
        if !score.is_enough() {
            return false;
        }
        if self.pool_until.is_some_and(|until| now() < until) {
            return false;
        }
        self.pool_until = None;
        true
    }

    /// The thread waits, or may have slept elsewhere.
    pub(super) fn waited(&mut self) {
        self.sleeps = None;
        self.turn = None;
        self.alone = None;
    }

    /// Makes a call, and takes its time.
    pub(super) fn time<T>(&mut self, score: &Score, call: impl FnOnce() -> T) -> T {
        if self.alone.is_none() && self.turns.is_trial_due() && !self.turns.are_taken() {
            self.alone = self.turns.try_alone();
        }
        if let Some(alone) = &mut self.alone {
            let (result, goes_on) = alone.call(call);
            self.alone.take_if(|_| !goes_on);
            return result;
        }
        if self.turns.are_taken() && self.turn.is_none() {
            self.turn = self.turns.take();
            self.sleeps = None;
        }
        let before = *self.sleeps.get_or_insert_with(sleeps);
        let start = Instant::now();
        let result = call();
        self.record(score, start, start.elapsed(), || before != sleeps());
        result
    }

    fn record(
        &mut self,
        score: &Score,
        start: Instant,
        time: Duration,
        slept: impl FnOnce() -> bool,
    ) {
        if time > LONG && slept() {
            self.sleeps = None;
            if let Some(turn) = self.turn.take() {
                return turn.slept(time);
            }
            score.reset();
            self.pool_until = start.checked_add(time * (PAUSE + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn after(times: impl IntoIterator<Item = Duration>) -> Score {
        let score = Score::default();
        times.into_iter().for_each(|time| score.record(time));
        score
    }

    #[test]
    fn the_reader_makes_calls_once_nearly_all_were_quick() {
        let quick = QUICK / 2;
        let turns = Turns::new();
        let due = |score: &Score| InlineCalls::new(&turns).are_due(score);
        assert!(!due(&after(std::iter::repeat_n(quick, 63))));
        assert!(due(&after(std::iter::repeat_n(quick, 64))));
        assert!(!due(&after(std::iter::repeat_n(QUICK, 1000))));
        let mixed = |every: usize| {
            (1..5000).map(move |number| if number % every == 0 { 10 * MS } else { quick })
        };
        assert!(!due(&after(mixed(8))), "one in eight sleeps");
        assert!(due(&after(mixed(100).take(5000 - 35))), "one in a hundred may be preempted");
    }

    #[test]
    fn a_call_that_slept_sends_the_next_ones_to_the_pool_for_ten_times_as_long() {
        let score = after(std::iter::repeat_n(QUICK / 2, 100));
        let start = Instant::now();
        let turns = Turns::new();
        let mut calls = InlineCalls::new(&turns);
        calls.record(&score, start, 5 * MS, || false);
        assert!(calls.are_due(&score), "it was preempted");
        calls.record(&score, start, LONG, || unreachable!("not long"));
        calls.record(&score, start, 5 * MS, || true);
        assert!(!calls.are_due_at(&score, || start + 56 * MS), "the score is lost, too");
        (0..100).for_each(|_| score.record(QUICK / 2));
        assert!(!calls.are_due_at(&score, || start + 54 * MS));
        assert!(calls.are_due_at(&score, || start + 55 * MS));
        assert!(calls.are_due_at(&score, || unreachable!("no clock")));
    }

    #[test]
    fn a_pinned_policy_does_not_look_at_what_calls_take() {
        let turns = Turns::new();
        let pinned = |pin| InlineCalls { pin: Some(pin), ..InlineCalls::new(&turns) };
        assert!(pinned(Pin::Always).are_due(&after([])));
        assert!(!pinned(Pin::Never).are_due(&after(std::iter::repeat_n(QUICK / 2, 100))));
    }

    /// The kernel's count behind it.
    #[test]
    fn a_call_that_sleeps_is_told_from_one_that_computes() {
        for sleeps in [false, true] {
            let score = after(std::iter::repeat_n(QUICK / 2, 100));
            let turns = Turns::new();
            let mut calls = InlineCalls::new(&turns);
            let end = Instant::now() + 2 * MS;
            calls.time(&score, || {
                if sleeps {
                    std::thread::sleep(20 * MS);
                }
                while Instant::now() < end {}
            });
            assert_eq!(calls.are_due(&score), !sleeps);
        }
    }
}
