//! How many questions one channel may ask: many at once, for a client opens a disk of many files or looks at many
//! exports, and then some each second. Who asks more waits, and nobody else does.

#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

/// Questions at once, besides one for each declared path.
const BURST: u32 = 256;
/// Time for each further one.
const PERIOD: Duration = Duration::from_millis(5);

/// See the module's text.
#[derive(Debug)]
pub(super) struct Rate {
    most: u32,
    left: u32,
    /// Since when nothing was added.
    since: Instant,
}

impl Rate {
    /// For a stack that has declared so many paths.
    pub(super) fn new(paths: usize, now: Instant) -> Rate {
        let most = BURST.saturating_add(u32::try_from(paths).unwrap_or(u32::MAX));
        Rate { most, left: most, since: now }
    }

    /// How long to wait for the next; `None` if there is one now.
    pub(super) fn wait(&mut self, now: Instant) -> Option<Duration> {
        let more = now.saturating_duration_since(self.since).as_nanos() / PERIOD.as_nanos();
        let more = u32::try_from(more).unwrap_or(u32::MAX);
        if more > 0 {
            self.left = self.left.saturating_add(more).min(self.most);
            self.since = self.since.checked_add(PERIOD.saturating_mul(more)).unwrap_or(now);
        }
        (self.left == 0).then(|| (self.since + PERIOD).saturating_duration_since(now))
    }

    /// One was asked.
    pub(super) fn count(&mut self) {
        self.left = self.left.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_one_each_period() {
        let start = Instant::now();
        let mut rate = Rate::new(2, start);
        let mut take = |now| {
            let wait = rate.wait(now);
            rate.count();
            wait
        };
        for _ in 0..BURST + 2 {
            assert_eq!(take(start), None);
        }
        assert_eq!(take(start), Some(PERIOD));
        let later = start + PERIOD * 3 / 2;
        assert_eq!(take(later), None);
        assert_eq!(take(later), Some(PERIOD / 2));
        let much_later = start + PERIOD * 1_000_000;
        for _ in 0..BURST + 2 {
            assert_eq!(take(much_later), None);
        }
        assert!(take(much_later).is_some());
    }
}
