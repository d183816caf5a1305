//! The watcher of a grace period: when nobody has left for so long, the template looks whether
//! anybody is there.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nbdkit_api::Watcher;
use nbdkit_api::watcher::{Server, WatcherNeeds};
use nix::poll::{PollFd, PollFlags, PollTimeout};

use super::Shared;

#[derive(Debug)]
pub(super) struct Grace {
    period: Duration,
    shared: Arc<Shared>,
}

impl Grace {
    pub(super) fn new(period: Duration, shared: Arc<Shared>) -> Grace {
        Grace { period, shared }
    }
}

impl Watcher for Grace {
    fn needs(&self) -> WatcherNeeds {
        WatcherNeeds::default()
    }

    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        self.shared.gone.iter().map(AsFd::as_fd).collect()
    }

    fn run(&self, server: &Server<'_>) {
        let Some(gone) = &self.shared.gone else { return };
        let mut end: Option<Instant> = None;
        loop {
            let left = end.map(|end| end.saturating_duration_since(Instant::now()));
            // One millisecond more, poll's resolution.
            let timeout = left.map_or(PollTimeout::NONE, |left| {
                PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
            });
            let fds = [PollFd::new(gone.as_fd(), PollFlags::POLLIN)];
            let Some(ready) = server.wait(&fds, timeout) else { return };
            if ready[0] {
                let _ = gone.read();
                end = Some(Instant::now() + self.period);
            } else if end.is_some_and(|end| end <= Instant::now()) {
                server.notify();
                end = None;
            }
        }
    }
}
