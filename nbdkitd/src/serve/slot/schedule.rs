//! When a template that ended is replaced, how long an attempt may take, and from when on clients
//! are not kept waiting for it. Pure.
//!
//! An attempt fails if no new template comes to serve: its image was moved, the process limit is
//! reached, its plugin hangs. The listener retries for ever, with a backoff. A template that served
//! and died is another matter: each death is a chance for an attacker to guess the address-space
//! layout again, so deaths in a period are limited.

#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Most templates that are replaced in [`PERIOD`] because they died.
const MOST_DEATHS: usize = 5;
const PERIOD: Duration = Duration::from_secs(60);

/// The first interval between attempts, and the longest. It doubles with each attempt that fails,
/// and is the first again when a template has served for [`PERIOD`].
const FIRST_DELAY: Duration = Duration::from_secs(1);
const LONGEST_DELAY: Duration = Duration::from_secs(60);

/// The longest interval as long as clients come. Shorter ones would let clients decide how often
/// the plugin is configured, which may log in somewhere.
const DELAY_WITH_CLIENTS: Duration = Duration::from_secs(10);

/// How long a new template may take until it serves. The first one has no limit: the user may be
/// typing a password.
pub(super) const START_LIMIT: Duration = Duration::from_secs(30);

/// How long clients wait for a template; later they are disconnected.
const CLIENT_WAIT: Duration = Duration::from_secs(5);

/// The state of the replacement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    /// A template serves, or the first is being started.
    #[default]
    Serving,
    /// The next attempt is at this time. `fixed`: clients that come do not bring it nearer.
    Waiting { at: Instant, fixed: bool },
    /// An attempt is under way, which is aborted at this time.
    Starting { until: Instant },
    /// The attempt was aborted, and is not over: its process has not ended, or the spawner has not
    /// answered.
    Overdue,
}

/// The schedule of replacements.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    state: State,
    deaths: VecDeque<Instant>,
    /// Attempts that failed since a template has served for long enough.
    failures: u32,
    failed_at: Option<Instant>,
    serves_since: Option<Instant>,
    without_since: Option<Instant>,
}

impl Schedule {
    /// The template has died in service. Returns when it is replaced, and whether that is so late
    /// because it died too often.
    pub(super) fn died(&mut self, now: Instant) -> (Instant, bool) {
        self.without_since = Some(now);
        let elapsed = |since: &Instant| now.saturating_duration_since(*since);
        if self.serves_since.take().is_none_or(|since| elapsed(&since) >= PERIOD) {
            self.failures = 0;
        }
        while self.deaths.front().is_some_and(|death| elapsed(death) >= PERIOD) {
            self.deaths.pop_front();
        }
        let (at, fixed) = match self.deaths.front() {
            Some(first) if self.deaths.len() >= MOST_DEATHS => (*first + PERIOD, true),
            None if self.failures == 0 => (now, false),
            _ => (now + self.delay(), false),
        };
        self.deaths.push_back(now);
        self.state = State::Waiting { at, fixed };
        (at, fixed)
    }

    /// An attempt has failed. Returns the time until the next.
    pub(super) fn failed(&mut self, now: Instant) -> Duration {
        self.failures = self.failures.saturating_add(1);
        self.failed_at = Some(now);
        let delay = self.delay();
        self.state = State::Waiting { at: now + delay, fixed: false };
        delay
    }

    fn delay(&self) -> Duration {
        let doublings = self.failures.saturating_sub(1).min(31);
        FIRST_DELAY.saturating_mul(1 << doublings).min(LONGEST_DELAY)
    }

    /// Begins an attempt, if it is time. Returns whether it has begun.
    pub(super) fn begin_if_due(&mut self, now: Instant) -> bool {
        let due = matches!(self.state, State::Waiting { at, .. } if at <= now);
        if due {
            self.state = State::Starting { until: now + START_LIMIT };
        }
        due
    }

    /// Whether the attempt that is under way has taken too long. True once.
    pub(super) fn take_overdue(&mut self, now: Instant) -> bool {
        let overdue = matches!(self.state, State::Starting { until } if until <= now);
        if overdue {
            self.state = State::Overdue;
        }
        overdue
    }

    /// The spawner has started the new template. If that has taken too long, the template's time
    /// begins now.
    pub(super) fn answered(&mut self, now: Instant) {
        if self.state == State::Overdue {
            self.state = State::Starting { until: now + START_LIMIT };
        }
    }

    /// Whether a new template is on its way.
    pub(super) fn is_starting(&self) -> bool {
        matches!(self.state, State::Starting { .. } | State::Overdue)
    }

    /// A new template serves.
    pub(super) fn succeeded(&mut self, now: Instant) {
        self.state = State::Serving;
        self.serves_since = Some(now);
        self.without_since = None;
    }

    /// There will be no template.
    pub(super) fn stop(&mut self) {
        self.state = State::Serving;
        self.without_since = None;
    }

    /// Whether clients have waited for a template for long enough.
    pub(super) fn refuses_clients(&self, now: Instant) -> bool {
        self.without_since.is_some_and(|since| now >= since + CLIENT_WAIT)
    }

    /// A client was disconnected since there is no template: the next attempt comes sooner.
    pub(super) fn client_refused(&mut self) {
        if let (State::Waiting { at, fixed: false }, Some(failed_at)) =
            (&mut self.state, self.failed_at)
        {
            *at = (*at).min(failed_at + DELAY_WITH_CLIENTS);
        }
    }

    /// When [`begin_if_due`](Self::begin_if_due), [`take_overdue`](Self::take_overdue) or, if
    /// clients wait, [`refuses_clients`](Self::refuses_clients) will be true.
    pub(super) fn next(&self, now: Instant) -> Option<Instant> {
        let wait_ends = self.without_since.map(|since| since + CLIENT_WAIT);
        let next = match self.state {
            State::Waiting { at, .. } => Some(at),
            State::Starting { until } => Some(until),
            State::Serving | State::Overdue => None,
        };
        [next, wait_ends.filter(|at| *at > now)].into_iter().flatten().min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// An attempt that begins at once and succeeds.
    fn serves(schedule: &mut Schedule, now: Instant) {
        assert!(schedule.begin_if_due(now));
        schedule.succeeded(now);
    }

    #[test]
    fn the_first_replacement_is_immediate_and_a_sixth_death_within_a_minute_has_to_wait() {
        let start = Instant::now();
        let mut schedule = Schedule::default();
        assert_eq!(schedule.died(start), (start, false));
        serves(&mut schedule, start);
        for death in 1..5 {
            let now = start + seconds(death * 2);
            assert_eq!(schedule.died(now), (now + FIRST_DELAY, false));
            serves(&mut schedule, now + FIRST_DELAY);
        }
        let now = start + seconds(20);
        assert_eq!(schedule.died(now), (start + PERIOD, true));
        schedule.client_refused();
        assert!(!schedule.begin_if_due(start + PERIOD - seconds(1)), "no client shortens that");
        serves(&mut schedule, start + PERIOD);
        // The second death was two seconds after the first.
        let now = start + PERIOD + seconds(1);
        assert_eq!(schedule.died(now), (start + seconds(2) + PERIOD, true));
    }

    #[test]
    fn failures_are_retried_for_ever_at_intervals_that_grow_to_a_minute() {
        let mut now = Instant::now();
        let mut schedule = Schedule::default();
        schedule.died(now);
        for delay in [1, 2, 4, 8, 16, 32, 60, 60, 60] {
            assert!(schedule.begin_if_due(now));
            assert!(!schedule.begin_if_due(now), "it has begun");
            assert_eq!(schedule.failed(now), seconds(delay));
            assert!(!schedule.begin_if_due(now + seconds(delay) - FIRST_DELAY / 2));
            now += seconds(delay);
        }
        // A template that dies soon has not ended that; one that has served for long has.
        serves(&mut schedule, now);
        assert_eq!(schedule.died(now + seconds(59)).0, now + seconds(59 + 60));
        now += seconds(200);
        serves(&mut schedule, now);
        assert_eq!(schedule.died(now + seconds(60)).0, now + seconds(60));
    }

    #[test]
    fn clients_wait_for_a_moment_and_those_that_come_later_bring_the_next_attempt_nearer() {
        let start = Instant::now();
        let mut schedule = Schedule::default();
        assert!(!schedule.refuses_clients(start));
        schedule.died(start);
        assert_eq!(schedule.next(start), Some(start));
        assert!(schedule.begin_if_due(start));
        assert_eq!(schedule.next(start), Some(start + CLIENT_WAIT));
        assert!(!schedule.refuses_clients(start + CLIENT_WAIT - seconds(1)));
        let now = start + CLIENT_WAIT;
        assert!(schedule.refuses_clients(now));
        assert_eq!(schedule.next(now), Some(start + START_LIMIT));
        for _ in 0..10 {
            schedule.failed(now);
        }
        assert_eq!(schedule.next(now), Some(now + LONGEST_DELAY));
        schedule.client_refused();
        assert_eq!(schedule.next(now), Some(now + DELAY_WITH_CLIENTS));
        serves(&mut schedule, now + DELAY_WITH_CLIENTS);
        assert!(!schedule.refuses_clients(now + DELAY_WITH_CLIENTS));
        assert_eq!(schedule.next(now), None);
    }

    #[test]
    fn an_attempt_that_takes_too_long_is_overdue_once_and_no_other_begins_before_it_is_over() {
        let start = Instant::now();
        let mut schedule = Schedule::default();
        schedule.died(start);
        assert!(schedule.begin_if_due(start) && schedule.is_starting());
        assert!(!schedule.take_overdue(start + START_LIMIT - seconds(1)));
        assert!(schedule.take_overdue(start + START_LIMIT));
        assert!(!schedule.take_overdue(start + 2 * START_LIMIT));
        assert!(!schedule.begin_if_due(start + 2 * START_LIMIT));
        assert!(schedule.is_starting());
        schedule.failed(start + 2 * START_LIMIT);
        assert!(!schedule.is_starting());
        assert!(schedule.begin_if_due(start + 2 * START_LIMIT + FIRST_DELAY));
    }
}
