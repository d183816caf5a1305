//! Policy: whether the reader polls the socket before it sleeps until the next request.
//!
//! A client that has one request in flight sends the next as soon as it has the reply. To wake a
//! thread that sleeps takes longer than all that the server does for a small request, so a reader
//! that has slept is what such a client waits for. Polling takes a processor meanwhile, so it ends
//! after a limit (`poll_length`), is done only while it finds requests, and leaves the processor to
//! any other thread that wants it. nbdkit(1), `--busy-poll`.

#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use super::pin::{self, Pin};
use super::poll_backoff::PollBackoff;
use super::poll_length::PollLength;

/// Waits without a poll, because the processors are taken: to try again costs each of them little.
const SKIPPED_IF_CROWDED: u32 = 64;
/// A yield that took longer has let another thread run: more than a system call that finds nothing
/// to do takes on any machine, and less than one needs to be of use.
const YIELDED: Duration = Duration::from_micros(4);
/// Yields to others during one poll from which on the processors count as taken.
const CROWDED: u32 = 2;

/// How polling before sleep went on one connection.
#[derive(Debug)]
pub(super) struct BusyPoll {
    /// Zero for no poll.
    length: PollLength,
    backoff: PollBackoff,
    /// When the last poll began, if it was in vain.
    since: Option<Instant>,
    /// Waits are not polled because others want the processors.
    crowded: bool,
}

impl BusyPoll {
    /// Polls for no longer than `most`; never if that is zero. On one processor a client cannot
    /// run while it is polled for.
    pub(super) fn new(most: Duration, one_processor: bool) -> BusyPoll {
        let pin = Pin::of(pin::BUSY_POLL).or(one_processor.then_some(Pin::Never));
        BusyPoll::pinned(most, pin)
    }

    fn pinned(most: Duration, pin: Option<Pin>) -> BusyPoll {
        let length = match pin {
            Some(Pin::Always) => PollLength::fixed(most),
            _ => PollLength::up_to(most),
        };
        BusyPoll { length, backoff: PollBackoff::new(pin), since: None, crowded: false }
    }

    /// Whether to poll during this wait.
    #[inline]
    pub(super) fn is_due(&mut self) -> bool {
        !self.length.limit().is_zero() && self.backoff.is_due()
    }

    /// Polls by `look` until it finds something; false if it did not within the limit, or others
    /// want the processor. `pause` lets them run.
    ///
    /// # Errors
    /// Those of `look`.
    pub(super) fn poll<E>(
        &mut self,
        look: impl FnMut() -> Result<bool, E>,
        pause: impl FnMut(),
    ) -> Result<bool, E> {
        self.poll_by(Instant::now, look, pause)
    }

    fn poll_by<E>(
        &mut self,
        now: impl Fn() -> Instant,
        mut look: impl FnMut() -> Result<bool, E>,
        mut pause: impl FnMut(),
    ) -> Result<bool, E> {
        let start = now();
        let limit = self.length.limit();
        let mut last = start;
        let mut yields = 0;
        loop {
            if look()? {
                self.backoff.record(true);
                self.length.found(last.saturating_duration_since(start));
                return Ok(true);
            }
            let before = now();
            let passed = before.saturating_duration_since(start) >= limit;
            if yields >= CROWDED || passed && yields > 0 {
                self.backoff.skip(SKIPPED_IF_CROWDED);
                self.crowded = true;
                return Ok(false);
            }
            if passed {
                self.backoff.record(false);
                if self.backoff.is_skipping() {
                    self.length.in_vain();
                }
                self.crowded = false;
                self.since = Some(start);
                return Ok(false);
            }
            pause();
            last = now();
            if last.saturating_duration_since(before) > YIELDED {
                yields += 1;
            }
        }
    }

    /// Waits by `wait` instead, and takes its time: a request that came so soon would have been
    /// found, or would be by a longer poll.
    pub(super) fn sleep<T>(&mut self, wait: impl FnOnce() -> T) -> T {
        let since = self.since.take();
        let measured = self.backoff.is_skipping() || since.is_some() && self.length.may_grow();
        if !measured || self.crowded {
            return wait();
        }
        let start = since.unwrap_or_else(Instant::now);
        let result = wait();
        self.slept(start.elapsed());
        result
    }

    fn slept(&mut self, time: Duration) {
        self.length.slept(time);
        if time < self.length.limit() {
            self.backoff.resume();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    const LIMIT: Duration = Duration::from_micros(50);
    /// What a look and a yield that finds nobody else take.
    const LOOK: Duration = Duration::from_nanos(300);

    /// Polls with a clock; how long it took, and whether look number `found` found something.
    /// Yield number `n` lets others run for `others(n)`.
    fn poll(
        policy: &mut BusyPoll,
        found: u32,
        others: impl Fn(u32) -> Duration,
    ) -> (Duration, bool) {
        let start = Instant::now();
        let time = Cell::new(Duration::ZERO);
        let pass = |by| time.set(time.get() + by);
        let (mut looks, mut yields) = (0, 0);
        let look = || {
            looks += 1;
            pass(LOOK);
            Ok::<_, ()>(looks == found)
        };
        let pause = || {
            yields += 1;
            pass(LOOK + others(yields));
        };
        let result = policy.poll_by(|| start + time.get(), look, pause).unwrap();
        (time.get(), result)
    }

    fn alone(_: u32) -> Duration {
        Duration::ZERO
    }

    fn policy() -> BusyPoll {
        BusyPoll::new(LIMIT, false)
    }

    #[test]
    fn a_poll_ends_with_the_request_or_at_the_limit() {
        let (time, found) = poll(&mut policy(), 20, alone);
        assert!(found && time < LIMIT / 4, "{time:?}");
        let (time, found) = poll(&mut policy(), u32::MAX, alone);
        assert!(!found && (LIMIT..LIMIT + 3 * LOOK).contains(&time), "{time:?}");
    }

    #[test]
    fn a_poll_in_vain_counts_and_one_that_is_not_does_not() {
        let mut policy = policy();
        while policy.is_due() {
            poll(&mut policy, u32::MAX, alone);
        }
        while !policy.is_due() {}
        assert!(poll(&mut policy, 5, alone).1);
        assert!(!policy.backoff.is_skipping() && policy.is_due());
    }

    #[test]
    fn a_processor_that_others_want_is_left_to_them() {
        let busy = |_| 20 * YIELDED;
        let mut crowded = policy();
        let (time, found) = poll(&mut crowded, u32::MAX, busy);
        assert!(!found && time < 2 * LIMIT, "{time:?}");
        assert_eq!(
            (0..1000).filter(|_| crowded.is_due()).count(),
            1000 - SKIPPED_IF_CROWDED as usize
        );
        // However soon requests come then.
        poll(&mut crowded, u32::MAX, busy);
        crowded.sleep(|| ());
        assert!(!crowded.is_due());
        // An interrupt, or the client itself.
        let mut once = policy();
        let (_, found) = poll(&mut once, 30, |number| if number == 5 { YIELDED } else { LOOK });
        assert!(found && once.is_due());
    }

    #[test]
    fn a_client_that_has_become_quicker_is_polled_for_again() {
        let mut policy = policy();
        while !policy.backoff.is_skipping() {
            poll(&mut policy, u32::MAX, alone);
        }
        policy.slept(LIMIT);
        assert!(!policy.is_due());
        policy.slept(LIMIT - LOOK);
        assert!(policy.is_due());
    }

    #[test]
    fn a_client_that_takes_longer_to_wake_is_polled_for_longer() {
        let (mut policy, gap) = (BusyPoll::new(4 * LIMIT, false), LIMIT + LIMIT / 2);
        let looks = (gap.as_nanos() / LOOK.as_nanos() / 2) as u32;
        let mut found = 0;
        for _ in 0..1000 {
            if policy.is_due() && poll(&mut policy, looks, alone).1 {
                found += 1;
            } else {
                policy.slept(2 * gap);
            }
        }
        assert!(found > 900, "{found}");
        // Not for one that pauses, again and again.
        while policy.is_due() {
            poll(&mut policy, u32::MAX, alone);
        }
        while !policy.is_due() {}
        let (time, _) = poll(&mut policy, u32::MAX, alone);
        assert!(time < LIMIT + 3 * LOOK, "{time:?}");
    }

    #[test]
    fn it_can_be_pinned_and_is_off_without_time_or_a_second_processor() {
        assert!(!BusyPoll::new(Duration::ZERO, false).is_due());
        assert!(!BusyPoll::new(LIMIT, true).is_due());
        assert!(!BusyPoll::pinned(Duration::ZERO, Some(Pin::Always)).is_due());
        let mut always = BusyPoll::pinned(LIMIT, Some(Pin::Always));
        for _ in 0..20 {
            assert!(always.is_due());
            poll(&mut always, u32::MAX, alone);
        }
    }
}
