//! How many error lines one source may write. A worker that a client has taken over must not fill
//! the disk.

#![forbid(unsafe_code)]

use std::time::Instant;

/// A token bucket: `burst` lines at once, `per_second` in the long run.
#[derive(Debug)]
pub(crate) struct Quota {
    burst: f64,
    per_second: f64,
    tokens: f64,
    since: Instant,
    dropped: u64,
}

/// What to do with a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Write it, and report the lines that were dropped before it.
    Write {
        /// Lines dropped since the last one that was written.
        dropped: u64,
    },
    /// Drop it.
    Drop,
}

impl Quota {
    /// A full bucket.
    pub(crate) fn new(burst: u32, per_second: u32, now: Instant) -> Quota {
        let burst = f64::from(burst);
        Quota { burst, per_second: per_second.into(), tokens: burst, since: now, dropped: 0 }
    }

    /// Asks for one line.
    pub(crate) fn take(&mut self, now: Instant) -> Verdict {
        self.take_many(1, now)
    }

    /// Whether the bucket is full, so that a new one is equal to it.
    pub(super) fn is_full(&self, now: Instant) -> bool {
        let elapsed = now.saturating_duration_since(self.since).as_secs_f64();
        self.tokens + elapsed * self.per_second >= self.burst
    }

    /// Counts a line that was dropped for another reason.
    pub(super) fn count_dropped(&mut self) {
        self.dropped = self.dropped.saturating_add(1);
    }

    /// Lines dropped since that was last reported.
    pub(super) fn rest(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }

    /// Asks for a line that counts as several. It is permitted if the bucket has one left.
    pub(crate) fn take_many(&mut self, lines: u32, now: Instant) -> Verdict {
        let elapsed = now.saturating_duration_since(self.since).as_secs_f64();
        self.since = now;
        self.tokens = (self.tokens + elapsed * self.per_second).min(self.burst);
        if self.tokens < 1.0 {
            self.dropped = self.dropped.saturating_add(1);
            return Verdict::Drop;
        }
        self.tokens -= f64::from(lines);
        Verdict::Write { dropped: std::mem::take(&mut self.dropped) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_flood_is_cut_and_counted_and_ends() {
        let start = Instant::now();
        let mut quota = Quota::new(3, 1, start);
        for _ in 0..3 {
            assert_eq!(quota.take(start), Verdict::Write { dropped: 0 });
        }
        assert_eq!(quota.take(start), Verdict::Drop);
        assert_eq!(quota.take(start + Duration::from_millis(500)), Verdict::Drop);
        let later = start + Duration::from_secs(2);
        assert_eq!(quota.take(later), Verdict::Write { dropped: 2 });
    }
}
