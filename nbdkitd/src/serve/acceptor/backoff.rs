//! What follows from a failure of accept(2).

#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use nix::errno::Errno;

/// What a failure of accept(2) means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// There are no more clients.
    Nothing,
    /// This client is gone, or its network has a problem. The next one may succeed.
    Client,
    /// Denied, by a security module perhaps. The client may still be in the queue.
    Forbidden,
    /// The system, or this process, is out of descriptors or memory.
    Exhausted,
    /// The listening socket cannot be used.
    Socket,
}

/// accept(2), "Error handling".
pub(super) fn failure(errno: Errno) -> Failure {
    match errno {
        Errno::EAGAIN => Failure::Nothing,
        Errno::EPERM | Errno::EACCES => Failure::Forbidden,
        Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM | Errno::ETOOMANYREFS => {
            Failure::Exhausted
        }
        Errno::EBADF | Errno::EINVAL | Errno::ENOTSOCK | Errno::EOPNOTSUPP | Errno::EFAULT => {
            Failure::Socket
        }
        _ => Failure::Client,
    }
}

/// Backoff after accept(2) has failed with EMFILE, ENFILE, ENOBUFS, ENOMEM, or an error of a
/// security module. Clients wait in the kernel's queue, so none is disconnected.
#[derive(Debug, Default)]
pub(super) struct AcceptBackoff {
    until: Option<Instant>,
    length: Duration,
    reported: Option<Instant>,
}

impl AcceptBackoff {
    const FIRST: Duration = Duration::from_millis(100);
    const LONGEST: Duration = Duration::from_secs(1);
    /// Shortest interval between two log lines.
    const LOG_INTERVAL: Duration = Duration::from_secs(60);

    /// When the backoff ends.
    pub(super) fn until(&self) -> Option<Instant> {
        self.until
    }

    /// Begins to back off, for longer each time. True if that is worth a log line.
    pub(super) fn begin(&mut self, now: Instant) -> bool {
        self.length = (self.length * 2).clamp(Self::FIRST, Self::LONGEST);
        self.until = Some(now + self.length);
        let silent =
            self.reported.is_some_and(|at| now.saturating_duration_since(at) < Self::LOG_INTERVAL);
        if !silent {
            self.reported = Some(now);
        }
        !silent
    }

    /// Whether the backoff is over, or there was none.
    pub(super) fn is_over(&mut self, now: Instant) -> bool {
        if self.until.is_some_and(|until| now >= until) {
            self.until = None;
        }
        self.until.is_none()
    }

    /// What had run out is there again.
    pub(super) fn reset(&mut self) {
        self.length = Duration::ZERO;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accept_errors_are_classified() {
        for (errno, expected) in [
            (Errno::EAGAIN, Failure::Nothing),
            (Errno::ECONNABORTED, Failure::Client),
            (Errno::ENETDOWN, Failure::Client),
            (Errno::EINTR, Failure::Client),
            (Errno::EMFILE, Failure::Exhausted),
            (Errno::EPERM, Failure::Forbidden),
            (Errno::EACCES, Failure::Forbidden),
            (Errno::ENOMEM, Failure::Exhausted),
            (Errno::EBADF, Failure::Socket),
        ] {
            assert_eq!(failure(errno), expected, "{errno}");
        }
    }

    #[test]
    fn a_backoff_is_logged_once_a_minute_and_grows_to_a_second() {
        let now = Instant::now();
        let mut backoff = AcceptBackoff::default();
        assert!(backoff.is_over(now));
        assert!(backoff.begin(now));
        assert!(!backoff.is_over(now + Duration::from_millis(99)));
        assert!(backoff.is_over(now + Duration::from_millis(100)));
        for _ in 0..10 {
            assert!(!backoff.begin(now));
        }
        assert_eq!(backoff.until(), Some(now + Duration::from_secs(1)));
        backoff.reset();
        let later = now + AcceptBackoff::LOG_INTERVAL;
        assert!(backoff.begin(later));
        assert_eq!(backoff.until(), Some(later + AcceptBackoff::FIRST));
    }
}
