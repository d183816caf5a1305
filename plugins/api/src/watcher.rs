//! Work of a filter that goes on beside the clients: a control socket that is served, an event
//! outside the server that is waited for.
//!
//! It is done by a process of its own, the *watcher*, a fork of the template from before its
//! sandbox closes: it has no client's socket, no disk and no code of a plugin, and workers have
//! neither the control socket nor the right to run what it runs. State that the two share is in
//! [`shared`](crate::shared) objects, made in `get_ready`.

#![forbid(unsafe_code)]

use std::os::fd::BorrowedFd;
use std::path::PathBuf;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// What a filter's watcher does. Made in the template, in `get_ready`, and run in the watcher.
pub trait Watcher: Send + Sync {
    /// What it does beyond waiting for descriptors and using shared memory.
    fn needs(&self) -> WatcherNeeds;

    /// The descriptors that it uses. All others are closed.
    fn descriptors(&self) -> Vec<BorrowedFd<'_>>;

    /// Runs in the watcher, as the final user, in its sandbox, until [`Server::wait`] reports
    /// that the server has ended. If it returns earlier there is nothing left to watch.
    fn run(&self, server: &Server<'_>);
}

/// What a watcher may do.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WatcherNeeds {
    /// Accepts connections on a socket that is open.
    pub accepts: bool,
    /// Looks whether files are there, and watches directories: these files.
    pub looks_for: Vec<PathBuf>,
    /// Removes this file when the server ends.
    pub removes: Option<PathBuf>,
    /// Runs programs, as the final user.
    pub programs: bool,
}

/// The server, as its watcher sees it.
pub struct Server<'a> {
    end: BorrowedFd<'a>,
    notify: &'a (dyn Fn() + Sync),
}

impl std::fmt::Debug for Server<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("end", &self.end).finish_non_exhaustive()
    }
}

impl<'a> Server<'a> {
    /// `end` hangs up when the server ends; `notify` tells the template.
    pub fn new(end: BorrowedFd<'a>, notify: &'a (dyn Fn() + Sync)) -> Server<'a> {
        Server { end, notify }
    }

    /// Has [`Filter::notified`](crate::Filter::notified) called in the template.
    pub fn notify(&self) {
        (self.notify)();
    }

    /// Waits until one of `fds` is ready or time is over, and returns which are ready; `None` once
    /// the server has ended. A signal may end the wait early.
    pub fn wait(&self, fds: &[PollFd<'_>], timeout: PollTimeout) -> Option<Vec<bool>> {
        // That it hangs up is always reported.
        let mut all = vec![PollFd::new(self.end, PollFlags::empty())];
        all.extend(fds.iter().cloned());
        let _ = poll(&mut all, timeout);
        let mut ready = all.iter().map(|fd| fd.any() == Some(true));
        (ready.next() != Some(true)).then(|| ready.collect())
    }
}
