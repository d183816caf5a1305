//! Once the listener has been killed: how long clients are waited for that wait for the stack,
//! which may be for ever.

#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use nix::poll::PollTimeout;

/// As long as the listener waits for them when it stops.
const PATIENCE: Duration = Duration::from_secs(5);

/// When patience ends.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline(Instant);

impl Deadline {
    /// From now on.
    pub(super) fn new() -> Deadline {
        Deadline(Instant::now() + PATIENCE)
    }

    pub(super) fn has_passed(self) -> bool {
        Instant::now() >= self.0
    }

    /// The time that is left, for poll(2); without a deadline, any.
    pub(super) fn left(this: Option<Deadline>) -> PollTimeout {
        let Some(Deadline(end)) = this else { return PollTimeout::NONE };
        let left = end.saturating_duration_since(Instant::now());
        // At most PATIENCE. Rounded up, so as not to spin at the end.
        PollTimeout::from(u16::try_from(left.as_millis() + 1).unwrap_or(u16::MAX))
    }
}
