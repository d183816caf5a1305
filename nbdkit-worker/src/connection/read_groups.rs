//! Policy: how many reads a thread of the pool takes from the queue at once.
//!
//! A thread that takes several starts them all, since an attempt to read without waiting has the
//! kernel fetch what is missing, and then waits for one after the other: one wake-up, one sleep and
//! one send for all of them. What comes early then waits for what comes late, so the reads of a
//! slow disk, beside which all that is nothing, are divided among all threads.
//!
//! Not every kernel and file system starts anything at such an attempt, and nothing says which.
//! There the reads of a group are done one after the other, which shows in the time that they take,
//! and each goes to a thread of its own again.

#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::pin::{self, Pin};

/// The most reads that a thread takes at once.
pub(super) const MOST: usize = 16;
/// The longest read that is taken with others, bytes: their replies leave together.
pub(super) const UP_TO: u64 = 16 << 10;
/// The threads that a client's reads are divided among: with fewer the disk has nothing to do while
/// they start reads and send replies, with more there is less to a group.
const SHARES: usize = 2;
/// The average wait from which on a disk is slow.
const SLOW: Duration = Duration::from_millis(2);
/// How many waits the average goes back.
const WEIGHT: u32 = 8;
/// A wait that took less says nothing: the data was in memory.
const LONG: Duration = Duration::from_micros(50);
/// The score from which on reads are not grouped: each group whose later reads had to wait as its
/// first did adds one, each other takes one away.
const ENOUGH: u32 = 8;
/// So many reads are then taken one by one before groups are tried again.
const SINGLES: u32 = 4096;

/// How groups of reads went; all threads of a connection add to it.
#[derive(Debug)]
pub(super) struct ReadGroups {
    score: AtomicU32,
    /// Reads still to be taken one by one.
    singles: AtomicU32,
    /// Average wait for a read that was not in memory, microseconds.
    wait: AtomicU32,
    /// The most threads of the pool.
    threads: usize,
    pin: Option<Pin>,
}

impl ReadGroups {
    /// For a pool of at most `threads` threads.
    pub(super) fn new(threads: usize) -> ReadGroups {
        ReadGroups {
            score: AtomicU32::new(0),
            singles: AtomicU32::new(0),
            wait: AtomicU32::new(0),
            threads,
            pin: Pin::of(pin::GROUPS),
        }
    }

    /// How many reads a thread takes, if the pool has `outstanding` requests, queued and running.
    pub(super) fn size(&self, outstanding: usize) -> usize {
        match self.pin {
            Some(Pin::Always) => return MOST,
            Some(Pin::Never) => return 1,
            None => {}
        }
        if self.singles.load(Ordering::Relaxed) > 0 {
            return 1;
        }
        let wait = Duration::from_micros(self.wait.load(Ordering::Relaxed).into());
        let shares = if wait < SLOW { SHARES.min(self.threads) } else { self.threads };
        outstanding.div_ceil(shares).clamp(1, MOST)
    }

    /// A thread has taken reads: the first that it waited for took `first`, and all `others` after
    /// it took `time`.
    pub(super) fn record(&self, first: Duration, others: u32, time: Duration) {
        if others == 0 {
            // Two threads at once may count as one.
            let singles = self.singles.load(Ordering::Relaxed);
            self.singles.store(singles.saturating_sub(1), Ordering::Relaxed);
        }
        if first < LONG {
            return;
        }
        let wait = self.wait.load(Ordering::Relaxed);
        let now = u32::try_from(first.as_micros()).unwrap_or(u32::MAX);
        self.wait.store(wait - wait / WEIGHT + now / WEIGHT, Ordering::Relaxed);
        if others == 0 {
            return;
        }
        let score = self.score.load(Ordering::Relaxed);
        let one_by_one = time > first.saturating_mul(others) / 2;
        let score = if one_by_one { score + 1 } else { score.saturating_sub(1) };
        if score >= ENOUGH {
            self.singles.store(SINGLES, Ordering::Relaxed);
        }
        self.score.store(score % ENOUGH, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn two_threads_share_what_there_is() {
        let groups = ReadGroups::new(16);
        let sizes = [0, 1, 3, 4, 16, 48, 128].map(|all| groups.size(all));
        assert_eq!(sizes, [1, 1, 2, 2, 8, 16, MOST]);
        assert_eq!(ReadGroups::new(1).size(12), 12);
    }

    #[test]
    fn all_threads_wait_for_a_slow_disk() {
        let groups = ReadGroups::new(16);
        (0..100).for_each(|_| groups.record(5 * MS, 3, MS));
        assert_eq!([1, 16, 64].map(|all| groups.size(all)), [1, 1, 4]);
        (0..100).for_each(|_| groups.record(MS, 0, Duration::ZERO));
        assert_eq!(groups.size(12), 6);
        (0..100).for_each(|_| groups.record(Duration::MAX, 0, Duration::ZERO));
        assert_eq!(groups.size(16), 1);
    }

    #[test]
    fn reads_that_wait_one_after_the_other_are_not_grouped_for_a_while() {
        let groups = ReadGroups::new(16);
        for _ in 0..ENOUGH {
            assert_eq!(groups.size(12), 6);
            groups.record(MS, 3, 3 * MS);
        }
        for _ in 0..SINGLES {
            assert_eq!(groups.size(16), 1);
            groups.record(MS, 0, Duration::ZERO);
        }
        assert_eq!(groups.size(12), 6);
    }

    #[test]
    fn reads_that_were_started_together_stay_grouped() {
        let groups = ReadGroups::new(16);
        for number in 0..10_000 {
            // A disk that is slow now and then.
            groups.record(MS, 3, if number % 3 == 0 { 5 * MS } else { MS });
            assert_eq!(groups.size(12), 6);
        }
        for _ in 0..100 {
            groups.record(LONG / 2, 3, 100 * MS);
        }
        assert_eq!(groups.size(12), 6, "the first was in memory");
    }

    #[test]
    fn a_pinned_policy_does_not_look_at_times() {
        for (pin, size) in [(Pin::Always, MOST), (Pin::Never, 1)] {
            let groups = ReadGroups { pin: Some(pin), ..ReadGroups::new(16) };
            (0..100).for_each(|_| groups.record(MS, 3, 3 * MS));
            assert_eq!(groups.size(6), size);
        }
    }
}
