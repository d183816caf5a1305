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
use super::poll_backoff::PollBackoff;

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

/// How polling for requests went on one connection.
#[derive(Debug)]
pub(super) struct RequestPoll {
    /// Batches are sent without a poll while that is in vain.
    backoff: PollBackoff,
    /// The shortest time that an empty look took, once one was measured.
    look: Option<Duration>,
}

impl Default for RequestPoll {
    fn default() -> RequestPoll {
        RequestPoll { backoff: PollBackoff::new(Pin::of(pin::REQUEST_POLL)), look: None }
    }
}

impl RequestPoll {
    /// Whether to poll before this batch is sent.
    pub(super) fn is_due(&mut self) -> bool {
        self.backoff.is_due()
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
        self.backoff.record(found);
        Ok(())
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
    fn a_poll_in_vain_counts_and_one_that_is_not_does_not() {
        let (mut policy, cost) = (RequestPoll::default(), Duration::from_nanos(400));
        while policy.is_due() {
            poll(&mut policy, cost, u32::MAX);
        }
        while !policy.is_due() {}
        poll(&mut policy, cost, 5);
        assert!(!policy.backoff.is_skipping() && policy.is_due());
    }
}
