//! How far a client has come on the way to being parked, and when it is parked. Pure.
//!
//! A parked client is one that is idle and has given up its worker; [`crate::serve`] parks it.

#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use nbdkit_ipc::messages::ParkedState;

/// The most times that the time is doubled until a client is parked.
const MOST_DOUBLINGS: u32 = 6;

/// How many times as long as it took to be parked a client has to stay, for that to have been
/// right.
const WORTH_IT: u32 = 8;

/// How long a client has to be idle to be parked. A client that comes back soon is parked later the
/// next time: each return costs a fork.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Patience {
    base: Duration,
    doublings: u32,
}

impl Patience {
    pub(crate) const fn new(base: Duration) -> Patience {
        Patience { base, doublings: 0 }
    }

    /// The time.
    pub(crate) fn time(self) -> Duration {
        self.base.saturating_mul(1 << self.doublings)
    }

    /// A client that was parked for this long has come back.
    pub(crate) fn came_back(&mut self, after: Duration) {
        self.doublings = if after >= self.time().saturating_mul(WORTH_IT) {
            0
        } else {
            (self.doublings + 1).min(MOST_DOUBLINGS)
        };
    }
}

/// How far parking a client has come.
#[derive(Debug, Default)]
pub(crate) enum Parking {
    /// It has a worker, or will have its first.
    #[default]
    No,
    /// Its worker has asked for it, and has yet to end.
    Asked(ParkedState),
    /// It is parked, since then.
    Parked(ParkedState, Instant),
    /// It has come back, and waits for the template.
    Back(ParkedState),
    /// The template was sent it, and may not have forked its worker.
    Sent(ParkedState),
}

impl Parking {
    /// Whether the client has no worker and none was asked for.
    pub(crate) fn has_no_worker(&self) -> bool {
        matches!(self, Parking::Parked(..) | Parking::Back(_))
    }

    /// The next step.
    pub(crate) fn advance(&mut self, to: impl FnOnce(ParkedState) -> Parking) {
        *self = match std::mem::take(self) {
            Parking::No => Parking::No,
            Parking::Asked(state)
            | Parking::Parked(state, _)
            | Parking::Back(state)
            | Parking::Sent(state) => to(state),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_that_comes_back_soon_is_parked_later() {
        let second = Duration::from_secs(1);
        let mut patience = Patience::new(second);
        patience.came_back(7 * second);
        assert_eq!(patience.time(), 2 * second);
        for _ in 0..20 {
            patience.came_back(second);
        }
        assert_eq!(patience.time(), 64 * second);
        patience.came_back(511 * second);
        assert_eq!(patience.time(), 64 * second);
        patience.came_back(512 * second);
        assert_eq!(patience.time(), second);
    }
}
