//! What all parts of the listener use: the settings of this run, the log, and the poll instance.

#![forbid(unsafe_code)]

use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Interest, Poll, Token};

use super::Plan;
use crate::cli::command_line::{Sandbox, ServiceMode};
use crate::log::{Log, Speaker, Subject};

/// Settings, log and poll instance. Passed to the functions that need one of them.
pub(super) struct Context {
    plan: Plan,
    log: Log,
    poll: Poll,
}

impl Context {
    pub(super) fn new(plan: Plan, log: Log, poll: Poll) -> Context {
        Context { plan, log, poll }
    }

    pub(super) fn plan(&self) -> &Plan {
        &self.plan
    }

    /// For start-up, which fills in the plan (the port) and uses parts of it up (the client of
    /// `-s`).
    pub(super) fn plan_mut(&mut self) -> &mut Plan {
        &mut self.plan
    }

    pub(super) fn log(&self) -> &Log {
        &self.log
    }

    pub(super) fn poll(&mut self) -> &mut Poll {
        &mut self.poll
    }

    /// Adds a descriptor to the poll instance.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub(super) fn register(&self, fd: RawFd, token: Token, interest: Interest) -> io::Result<()> {
        self.poll.registry().register(&mut SourceFd(&fd), token, interest)
    }

    /// Changes what a descriptor of the poll instance is polled for. One that is not registered is
    /// ignored.
    pub(super) fn reregister(&self, fd: RawFd, token: Token, interest: Interest) {
        let _ = self.poll.registry().reregister(&mut SourceFd(&fd), token, interest);
    }

    /// Removes a descriptor from the poll instance. One that is not registered is ignored.
    pub(super) fn deregister(&self, fd: RawFd) {
        let _ = self.poll.registry().deregister(&mut SourceFd(&fd));
    }

    /// Who speaks in log lines that concern a connection. Like nbdkit, `-s` does not number its one
    /// client.
    pub(super) fn speaker<'a>(
        &'a self,
        layer: Option<&'a str>,
        connection: u64,
        client: Option<Subject<'a>>,
    ) -> Speaker<'a> {
        let connection = if self.is_single() { 0 } else { connection };
        Speaker { layer: layer.or(Some(&self.plan.plugin)), connection, client }
    }

    /// Whether the only client is the one on standard input and output (`-s`).
    pub(super) fn is_single(&self) -> bool {
        self.plan.mode == Some(ServiceMode::Stdin)
    }

    /// How long clients have to be idle to be parked at first; `None` if they never are.
    pub(super) fn park_idle(&self) -> Option<Duration> {
        /// Longer than the pauses of a client that is at work, as far as most are concerned.
        const DEFAULT: Duration = Duration::from_secs(5);
        let after = self.plan.options.park_idle.unwrap_or(DEFAULT);
        (!after.is_zero() && !self.is_single()).then_some(after)
    }

    /// Whether any process is confined (not with `--sandbox=off`).
    pub(super) fn is_sandboxed(&self) -> bool {
        self.plan.options.sandbox != Some(Sandbox::Off)
    }
}
