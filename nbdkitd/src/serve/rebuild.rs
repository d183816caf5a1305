//! When a template that ended is replaced. Pure.

#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// At most so many in [`PERIOD`]: one that always dies is no service, and each death is a chance for an attacker to
/// guess again.
const MOST: usize = 5;
const PERIOD: Duration = Duration::from_secs(60);

/// Before all but the first.
const DELAY: Duration = Duration::from_secs(1);

/// The latest replacements.
#[derive(Debug, Default)]
pub(super) struct Rebuilds(VecDeque<Instant>);

impl Rebuilds {
    /// When the next may be made; `None` if there were too many.
    pub(super) fn next(&mut self, now: Instant) -> Option<Instant> {
        while self.0.front().is_some_and(|past| now.saturating_duration_since(*past) >= PERIOD) {
            self.0.pop_front();
        }
        if self.0.len() >= MOST {
            return None;
        }
        let at = if self.0.is_empty() { now } else { now + DELAY };
        self.0.push_back(at);
        Some(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_immediate_and_the_sixth_within_a_minute_is_refused() {
        let start = Instant::now();
        let mut rebuilds = Rebuilds::default();
        assert_eq!(rebuilds.next(start), Some(start));
        for _ in 1..MOST {
            assert_eq!(rebuilds.next(start), Some(start + DELAY));
        }
        assert_eq!(rebuilds.next(start), None);
        let later = start + PERIOD + DELAY;
        assert_eq!(rebuilds.next(later), Some(later));
    }
}
