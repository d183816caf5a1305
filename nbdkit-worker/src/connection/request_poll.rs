//! Policy: whether the reader polls the socket for more requests before it sends the replies at
//! hand.
//!
//! A client that keeps many requests in flight has often sent the next one by now, or is about to:
//! clients like libnbd and the kernel's send one by one. One batch of replies takes fewer system
//! calls than two, of the client too. A client that waits for each reply has sent nothing, and must
//! not be kept waiting.

#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use super::pin::{self, Pin};

/// The longest poll, in empty looks at the socket: about what one batch in place of two saves,
/// which is a send with the wake-up of the receiver here, and a poll and a recv there. How long an
/// empty look takes on this machine is measured.
const BUDGET: u32 = 20;
/// The pause between two looks, in empty looks: the socket's lock is left to the client for two
/// thirds of the time.
const PAUSE: u32 = 2;
/// The longest poll, regardless of the measurement: the thread may have been preempted meanwhile.
const MAX_BUDGET: Duration = Duration::from_micros(100);
/// A batch of this many requests does not wait for more: one send for each dozen of requests is a
/// small part of the work.
const ENOUGH: usize = 12;
/// Polls in vain from which on polling becomes rarer. The end of every burst of requests is one.
const MISSES: u32 = 3;
/// The most batches in a row that are sent without a poll.
const MAX_SKIPPED: u32 = 256;

/// How polling for requests went on one connection.
#[derive(Debug)]
pub(super) struct RequestPoll {
    /// Polls in vain in a row.
    misses: u32,
    /// Batches that will be sent without a poll.
    skip: u32,
    /// The shortest time that an empty look took, once one was measured.
    look: Option<Duration>,
    pin: Option<Pin>,
}

impl Default for RequestPoll {
    fn default() -> RequestPoll {
        RequestPoll { misses: 0, skip: 0, look: None, pin: Pin::of(pin::REQUEST_POLL) }
    }
}

impl RequestPoll {
    /// Whether to poll before this batch is sent.
    pub(super) fn is_due(&mut self) -> bool {
        if let Some(pin) = self.pin {
            return pin == Pin::Always;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        true
    }

    /// Polls by `look` until it finds something: once, or for a short time if the batch of requests
    /// is small and the client has a processor to run on meanwhile.
    ///
    /// # Errors
    /// Those of `look`.
    pub(super) fn poll<E>(
        &mut self,
        batch: usize,
        one_processor: bool,
        look: impl FnMut() -> Result<bool, E>,
    ) -> Result<(), E> {
        self.poll_by(Instant::now, batch, one_processor, look)
    }

    fn poll_by<E>(
        &mut self,
        now: impl Fn() -> Instant,
        batch: usize,
        one_processor: bool,
        mut look: impl FnMut() -> Result<bool, E>,
    ) -> Result<(), E> {
        let mut found = look()?;
        if !found && !one_processor && batch < ENOUGH {
            let start = now();
            let elapsed = || now().saturating_duration_since(start);
            found = look()?;
            let mut next = elapsed();
            let cost = self.look.map_or(next, |known| known.min(next));
            if !found {
                self.look = Some(cost);
            }
            let budget = (cost * BUDGET).min(MAX_BUDGET);
            next += cost * PAUSE;
            while !found && next < budget {
                if elapsed() < next {
                    std::hint::spin_loop();
                    continue;
                }
                found = look()?;
                next = elapsed() + cost * PAUSE;
            }
        }
        self.record(found);
        Ok(())
    }

    /// Backs off while polls are in vain.
    fn record(&mut self, found: bool) {
        self.misses = if found { 0 } else { self.misses.saturating_add(1) };
        self.skip = match self.misses.checked_sub(MISSES) {
            None => 0,
            Some(more) => (2 << more.min(16)).min(MAX_SKIPPED),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    /// Polls with a clock that advances by `cost` with each look; how many looks it took, and how
    /// long, if look number `found` finds something.
    fn poll(policy: &mut RequestPoll, cost: Duration, found: u32) -> (u32, Duration) {
        poll_batch(policy, 1, false, cost, found)
    }

    fn poll_batch(
        policy: &mut RequestPoll,
        batch: usize,
        one_processor: bool,
        cost: Duration,
        found: u32,
    ) -> (u32, Duration) {
        let start = Instant::now();
        let time = Cell::new(Duration::ZERO);
        let now = || {
            time.set(time.get() + Duration::from_nanos(1));
            start + time.get()
        };
        let mut looks = 0;
        policy
            .poll_by(now, batch, one_processor, || {
                looks += 1;
                time.set(time.get() + cost);
                Ok::<_, ()>(looks == found)
            })
            .unwrap();
        (looks, time.get())
    }

    #[test]
    fn the_poll_lasts_as_many_looks_on_a_fast_machine_as_on_a_slow_one() {
        for nanos in [200, 400, 800, 1600] {
            let cost = Duration::from_nanos(nanos);
            let (looks, time) = poll(&mut RequestPoll::default(), cost, u32::MAX);
            assert!((7..=9).contains(&looks), "{looks} looks of {nanos} ns");
            assert!((cost * 18..cost * 24).contains(&time), "{time:?} for looks of {nanos} ns");
        }
    }

    #[test]
    fn the_poll_ends_with_the_first_request() {
        for found in [1, 2, 3, 7] {
            let (looks, _) = poll(&mut RequestPoll::default(), Duration::from_nanos(400), found);
            assert_eq!(looks, found);
        }
    }

    #[test]
    fn a_measurement_during_which_the_thread_was_preempted_does_no_harm() {
        let mut policy = RequestPoll::default();
        let preempted = Duration::from_millis(5);
        assert_eq!(poll(&mut policy, preempted, u32::MAX).0, 2);
        // Later ones correct it, and it does not come back.
        let cost = Duration::from_nanos(400);
        assert!((7..=9).contains(&poll(&mut policy, cost, u32::MAX).0));
        assert_eq!(poll(&mut policy, preempted, u32::MAX).0, 2);
        assert_eq!(policy.look.unwrap().as_nanos() / 10, 40);
    }

    #[test]
    fn a_large_batch_or_a_single_processor_takes_one_look() {
        let cost = Duration::from_nanos(400);
        let looks = |batch, one_processor| {
            poll_batch(&mut RequestPoll::default(), batch, one_processor, cost, u32::MAX).0
        };
        assert_eq!(looks(1, true), 1);
        assert_eq!(looks(ENOUGH, false), 1);
        assert!(looks(ENOUGH - 1, false) > 1);
    }

    #[test]
    fn a_pinned_policy_does_not_look_at_what_polls_find() {
        for (pin, due) in [(Pin::Always, true), (Pin::Never, false)] {
            let mut policy = RequestPoll { pin: Some(pin), ..RequestPoll::default() };
            for _ in 0..20 {
                assert_eq!(policy.is_due(), due);
                policy.record(false);
            }
        }
    }

    #[test]
    fn polls_in_vain_become_rare_and_a_request_makes_them_usual_again() {
        let mut policy = RequestPoll::default();
        let mut polls = 0;
        for _ in 0..1000 {
            if policy.is_due() {
                polls += 1;
                policy.record(false);
            }
        }
        assert!((10..40).contains(&polls), "{polls}");
        while !policy.is_due() {}
        policy.record(true);
        assert!(policy.is_due());
    }
}
