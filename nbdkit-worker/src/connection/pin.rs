//! Pins a policy, so that what it is worth can be measured on the machine at hand: a debug flag
//! `-D nbdkit.policy.NAME=1` has it decide for what it is about in every case, `=-1` in none. See
//! docs/speed.md.

#![forbid(unsafe_code)]

use nbdkit_api::log;

/// What a pinned policy decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pin {
    /// For it, whenever that is possible.
    Always,
    /// Against it.
    Never,
}

impl Pin {
    /// The pin of a policy by the name of its debug flag; `None` if it is free.
    pub(super) fn of(flag: &str) -> Option<Pin> {
        match log::flag("nbdkit", flag) {
            0 => None,
            1.. => Some(Pin::Always),
            _ => Some(Pin::Never),
        }
    }
}

/// The reader polls before it sleeps: `busy_poll`.
pub(crate) const BUSY_POLL: &str = "policy.busypoll";
/// The reader polls before it replies: `request_poll`.
pub(crate) const REQUEST_POLL: &str = "policy.requestpoll";
/// The reader makes the calls of a plugin in C: `inline_calls`.
pub(crate) const CALLS: &str = "policy.calls";
/// The reader carries out writes to a local device: `inline_writes`.
pub(crate) const WRITES: &str = "policy.writes";
/// The reader tries to answer reads that were not in memory of late: `read_attempts`.
pub(crate) const ATTEMPTS: &str = "policy.attempts";
/// A thread of the pool takes several reads at once: `read_groups`.
pub(crate) const GROUPS: &str = "policy.groups";
/// Large reads and writes are spliced: `splice`.
pub(crate) const SPLICE: &str = "policy.splice";
/// Calls of a plugin are made one at a time: `turns`.
pub(crate) const TURNS: &str = "policy.turns";
