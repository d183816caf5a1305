//! When the service manager is sent something. Pure.
//!
//! The watchdog gets its message at half of the time that it lets the server be silent, as
//! sd_watchdog_enabled(3) advises. The status line is sent at most once a second, however many
//! clients come and go, and a server on which nothing happens does not wake up for it.

#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

/// The least time between two status lines.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);

/// When messages are due.
#[derive(Debug)]
pub(super) struct Schedule {
    ping: Option<Ping>,
    /// The status line may be another than the one that was sent.
    changed: bool,
    /// Not before this.
    status_at: Instant,
}

#[derive(Debug)]
struct Ping {
    interval: Duration,
    at: Instant,
}

impl Schedule {
    /// `silence`: how long the watchdog lets the server be silent, if there is one. The first
    /// messages are due at once.
    pub(super) fn new(silence: Option<Duration>, now: Instant) -> Schedule {
        let ping = silence.map(|silence| Ping { interval: silence / 2, at: now });
        Schedule { ping, changed: true, status_at: now }
    }

    pub(super) fn status_may_have_changed(&mut self) {
        self.changed = true;
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let status = self.changed.then_some(self.status_at);
        self.ping.as_ref().map(|ping| ping.at).into_iter().chain(status).min()
    }

    /// Whether the watchdog is to be sent its message now.
    pub(super) fn take_ping(&mut self, now: Instant) -> bool {
        let Some(ping) = self.ping.as_mut().filter(|ping| now >= ping.at) else { return false };
        ping.at = now + ping.interval;
        true
    }

    /// Whether the status line is to be looked at now.
    pub(super) fn take_status(&mut self, now: Instant) -> bool {
        if !self.changed || now < self.status_at {
            return false;
        }
        self.changed = false;
        self.status_at = now + STATUS_INTERVAL;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watchdog_hears_of_the_server_at_half_of_its_patience() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let mut schedule = Schedule::new(Some(20 * second), start);
        assert!(schedule.take_status(start));
        assert!(schedule.take_ping(start));
        assert_eq!(schedule.next_deadline(), Some(start + 10 * second));
        assert!(!schedule.take_ping(start + 9 * second));
        // A loop that was busy pings late, and the next ping is half of the patience after that.
        assert!(schedule.take_ping(start + 12 * second));
        assert_eq!(schedule.next_deadline(), Some(start + 22 * second));
    }

    #[test]
    fn a_change_is_shown_at_most_once_a_second_and_nothing_wakes_an_idle_server() {
        let start = Instant::now();
        let mut schedule = Schedule::new(None, start);
        assert_eq!(schedule.next_deadline(), Some(start));
        assert!(schedule.take_status(start));
        assert_eq!(schedule.next_deadline(), None);
        schedule.status_may_have_changed();
        assert!(!schedule.take_status(start + STATUS_INTERVAL / 2));
        assert_eq!(schedule.next_deadline(), Some(start + STATUS_INTERVAL));
        assert!(schedule.take_status(start + STATUS_INTERVAL));
        assert!(!schedule.take_status(start + 5 * STATUS_INTERVAL));
        assert!(!schedule.take_ping(start + 5 * STATUS_INTERVAL), "there is no watchdog");
    }
}
