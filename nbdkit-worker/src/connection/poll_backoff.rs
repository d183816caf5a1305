//! How polls that find nothing become rarer, until one finds something.
//!
//! When to poll, for what, and for how long, is for the policies to say: `busy_poll`,
//! `request_poll`, `read_attempts`.

#![forbid(unsafe_code)]

use super::pin::Pin;

/// Polls in vain in a row from which on polling becomes rarer. The end of every burst of requests
/// is one.
const MISSES: u32 = 3;
/// The most occasions in a row that go by without a poll, because polls were in vain.
const MAX_SKIPPED: u32 = 256;

/// Which occasions are polled at.
#[derive(Debug)]
pub(super) struct PollBackoff {
    /// Polls in vain in a row.
    misses: u32,
    /// Occasions that will go by without a poll.
    skip: u32,
    /// So many polls in vain in a row make them rarer, and so many occasions go by at most.
    patience: u32,
    most_skipped: u32,
    pin: Option<Pin>,
}

impl PollBackoff {
    /// At all to begin with; or, if the policy is pinned, at all or none.
    pub(super) fn new(pin: Option<Pin>) -> PollBackoff {
        PollBackoff { misses: 0, skip: 0, patience: MISSES, most_skipped: MAX_SKIPPED, pin }
    }

    /// As [`new`](Self::new): rarer after `patience` polls in vain in a row, at every
    /// `most_skipped` + 1st occasion in the end.
    pub(super) fn after(pin: Option<Pin>, patience: u32, most_skipped: u32) -> PollBackoff {
        PollBackoff { patience, most_skipped, ..PollBackoff::new(pin) }
    }

    /// Whether to poll at this occasion.
    #[inline]
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

    /// A poll found something, or was in vain.
    pub(super) fn record(&mut self, found: bool) {
        self.misses = if found { 0 } else { self.misses.saturating_add(1) };
        self.skip = match self.misses.checked_sub(self.patience) {
            None => 0,
            Some(more) => (2 << more.min(16)).min(self.most_skipped),
        };
    }

    /// The next `occasions` go by, whatever the last polls have found.
    pub(super) fn skip(&mut self, occasions: u32) {
        self.skip = occasions;
    }

    /// Whether the next occasion goes by.
    pub(super) fn is_skipping(&self) -> bool {
        self.skip > 0
    }

    /// The next occasion is polled at again.
    pub(super) fn resume(&mut self) {
        self.skip = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So many occasions, with polls that find something or not; how many there are.
    fn polls(backoff: &mut PollBackoff, occasions: u32, found: bool) -> u32 {
        let mut polls = 0;
        for _ in 0..occasions {
            if backoff.is_due() {
                polls += 1;
                backoff.record(found);
            }
        }
        polls
    }

    #[test]
    fn polls_in_vain_become_rare_and_one_that_is_not_makes_them_usual_again() {
        let mut backoff = PollBackoff::new(None);
        assert_eq!(polls(&mut backoff, 100, true), 100);
        assert_eq!(polls(&mut backoff, 3, false), 3, "a client may pause");
        // Between the next ones 2, 4, 8 occasions go by, and so on.
        assert_eq!(polls(&mut backoff, 2 + 1 + 4 + 1 + 8, false), 2);
        polls(&mut backoff, 1000, false);
        assert_eq!(polls(&mut backoff, 10 * (MAX_SKIPPED + 1), false), 10);
        while !backoff.is_due() {}
        backoff.record(true);
        assert_eq!(polls(&mut backoff, 3, false), 3);
    }

    #[test]
    fn what_is_skipped_for_another_reason_ends_sooner_or_later() {
        let mut backoff = PollBackoff::new(None);
        backoff.skip(5);
        assert!(backoff.is_skipping());
        assert_eq!(polls(&mut backoff, 10, true), 5);
        backoff.skip(5);
        backoff.resume();
        assert!(!backoff.is_skipping() && backoff.is_due());
    }

    #[test]
    fn a_pinned_policy_does_not_look_at_what_polls_find() {
        for (pin, all) in [(Pin::Always, 50), (Pin::Never, 0)] {
            let mut backoff = PollBackoff::new(Some(pin));
            backoff.skip(10);
            assert_eq!(polls(&mut backoff, 50, false), all);
        }
    }
}
