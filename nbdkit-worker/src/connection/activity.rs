//! What a connection does, for those who have to end it while it is in use: when its input can be
//! shut down without harm.
//!
//! A client on a Unix socket gets EPIPE for what it sends after that. The kernel's client then
//! closes its side of the socket, and with it loses the replies that it has not read yet: their
//! requests stay in its queue for ever. So the input is shut down once the client is quiet. Until
//! then its requests are served: one that connects again must not see an error. A client that does
//! not become quiet in a second has them refused with ESHUTDOWN.

#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

/// How often [`Activity::is_quiet`] has to be called once the server stops.
pub(crate) const LOOK: Duration = Duration::from_millis(20);

/// How many times a client is looked at before its requests are refused: one second.
const SERVED_LOOKS: u32 = 50;

/// How many times a client that does not become quiet is looked at: three seconds, of the five that
/// the listener waits.
const MOST_LOOKS: u32 = 150;

/// What a connection does. Written by the thread that reads its requests and those of its pool,
/// read by whoever ends the connection, which may be a signal handler.
#[derive(Debug, Default)]
pub(crate) struct Activity {
    /// Counts the waits for a request, by two: odd during one. 0 during the handshake.
    waits: AtomicU32,
    /// Whether the pool has a request.
    pooled: AtomicBool,
    /// How often it was looked at, and the wait that it was in then.
    looks: AtomicU32,
    seen: AtomicU32,
}

impl Activity {
    /// The handshake is over.
    pub(super) fn begin(&self) {
        self.waits.store(2, Ordering::Relaxed);
    }

    /// The reader begins to wait for a request. Nothing is in flight but what the pool has.
    pub(super) fn wait_begins(&self) {
        self.count();
    }

    pub(super) fn wait_ends(&self) {
        self.count();
    }

    /// Only the reader writes it.
    fn count(&self) {
        let waits = self.waits.load(Ordering::Relaxed).wrapping_add(1);
        self.waits.store(waits, Ordering::Release);
    }

    /// Whether the pool has a request.
    #[inline]
    pub(super) fn is_pooled(&self) -> bool {
        self.pooled.load(Ordering::Acquire)
    }

    pub(super) fn set_pooled(&self, pooled: bool) {
        self.pooled.store(pooled, Ordering::Release);
    }

    /// Whether new requests are to be refused. Async-signal-safe.
    pub(crate) fn is_refused(&self) -> bool {
        self.looks.load(Ordering::Relaxed) >= SERVED_LOOKS
    }

    /// Whether the input can be shut down: the client has waited for nothing, and sent nothing,
    /// since the last call, or does not become quiet. For one caller, every [`LOOK`].
    /// Async-signal-safe.
    pub(crate) fn is_quiet(&self) -> bool {
        let waits = self.waits.load(Ordering::Acquire);
        if waits == 0 {
            return true;
        }
        let is_waiting = waits % 2 == 1 && !self.is_pooled();
        let before = self.seen.swap(if is_waiting { waits } else { 0 }, Ordering::Relaxed);
        let looks = self.looks.fetch_add(1, Ordering::Relaxed);
        is_waiting && before == waits || looks >= MOST_LOOKS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handshake_is_ended_at_once() {
        assert!(Activity::default().is_quiet());
    }

    #[test]
    fn a_client_is_quiet_that_was_waited_for_twice_in_a_row() {
        let activity = Activity::default();
        activity.begin();
        assert!(!activity.is_quiet() && !activity.is_quiet(), "a request is carried out");
        activity.wait_begins();
        assert!(!activity.is_quiet() && activity.is_quiet());
        activity.wait_ends();
        activity.wait_begins();
        assert!(!activity.is_quiet(), "another request came");
        assert!(activity.is_quiet());
    }

    #[test]
    fn a_request_in_the_pool_is_waited_for() {
        let activity = Activity::default();
        activity.begin();
        activity.set_pooled(true);
        activity.wait_begins();
        assert!(!activity.is_quiet() && !activity.is_quiet());
        activity.set_pooled(false);
        assert!(!activity.is_quiet() && activity.is_quiet());
    }

    #[test]
    fn a_client_that_does_not_become_quiet_is_refused_and_then_ended() {
        let activity = Activity::default();
        activity.begin();
        for look in 0..MOST_LOOKS {
            assert_eq!(activity.is_refused(), look >= SERVED_LOOKS);
            assert!(!activity.is_quiet());
        }
        assert!(activity.is_quiet());
    }
}
