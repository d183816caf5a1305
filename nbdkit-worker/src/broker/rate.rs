//! How many questions one channel may ask: many at once, for a client opens a disk of many files or
//! looks at many exports, and then some each second. Connections, which others see, are fewer. Who
//! asks more waits; others do not.

#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

/// Files at once, besides one for each declared path.
const BURST: u32 = 256;
/// Time for each further one.
const PERIOD: Duration = Duration::from_millis(5);
/// Connections at once.
const CONNECTIONS: u32 = 16;
/// Time for each further one.
const CONNECTION_PERIOD: Duration = Duration::from_millis(250);
/// A process that serves all clients asks for so many of them on each of its channels.
const CLIENTS: u32 = 4;

/// A token bucket for the questions of one channel.
#[derive(Debug)]
pub(super) struct Rate {
    most: u32,
    left: u32,
    period: Duration,
    /// Since when nothing was added.
    since: Instant,
}

impl Rate {
    /// Of opening files, for a stack that has declared so many paths.
    pub(super) fn of_opening(paths: usize, now: Instant) -> Rate {
        let most = BURST.saturating_add(u32::try_from(paths).unwrap_or(u32::MAX));
        Rate::new(most, PERIOD, now)
    }

    /// Of connecting. `for_all`: for a process that serves all clients.
    pub(super) fn of_connecting(for_all: bool, now: Instant) -> Rate {
        let clients = if for_all { CLIENTS } else { 1 };
        Rate::new(CONNECTIONS * clients, CONNECTION_PERIOD / clients, now)
    }

    fn new(most: u32, period: Duration, now: Instant) -> Rate {
        Rate { most, left: most, period, since: now }
    }

    /// How long to wait for the next; `None` if there is one now.
    pub(super) fn wait(&mut self, now: Instant) -> Option<Duration> {
        let more = now.saturating_duration_since(self.since).as_nanos() / self.period.as_nanos();
        let more = u32::try_from(more).unwrap_or(u32::MAX);
        if more > 0 {
            self.left = self.left.saturating_add(more).min(self.most);
            self.since = self.since.checked_add(self.period.saturating_mul(more)).unwrap_or(now);
        }
        (self.left == 0).then(|| (self.since + self.period).saturating_duration_since(now))
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
        let mut rate = Rate::of_opening(2, start);
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

    #[test]
    fn sixteen_connections_at_once_and_four_a_second() {
        let start = Instant::now();
        for (for_all, clients) in [(false, 1), (true, CLIENTS)] {
            let mut rate = Rate::of_connecting(for_all, start);
            for _ in 0..16 * clients {
                assert_eq!(rate.wait(start), None);
                rate.count();
            }
            assert_eq!(rate.wait(start), Some(Duration::from_millis(250) / clients));
        }
    }
}
