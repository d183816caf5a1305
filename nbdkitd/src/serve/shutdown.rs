//! The end of the server: how far the server has come, its exit status, the deadlines of the stop,
//! and the command of `--run`, with which the server ends.

#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;

use super::End;
use crate::captive::{self, Captive, Streams};

/// How long clients may take to finish their requests.
pub(super) const WORKERS_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the template may take after that, for `cleanup` and `unload`: a plugin may have data to
/// write.
const TEMPLATE_TIMEOUT: Duration = Duration::from_secs(30);

/// A second signal sooner than this after the first is ignored.
const SIGNAL_INTERVAL: Duration = Duration::from_secs(1);

/// How far the server has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// The template is being configured, or prints what it was asked for.
    Configuring,
    /// There are sockets; the template changes to its user.
    Entering,
    /// Clients are served. The template may have to be replaced.
    Serving,
    /// The server is stopping.
    Stopping,
}

/// When processes that have not ended by themselves are killed.
#[derive(Debug)]
struct Deadlines {
    workers: Option<Instant>,
    template: Option<Instant>,
}

/// A deadline that has passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expired {
    /// That of the workers: they are killed.
    Workers,
    /// That of the template: it is killed.
    Template,
}

/// Stage, exit status, deadlines, and the command of `--run`.
pub(super) struct Shutdown {
    stage: Stage,
    status: u8,
    /// The signal that ended the server before it was ready.
    signal: Option<i32>,
    deadlines: Option<Deadlines>,
    /// Standard input and output for the command, until it is started.
    captive_streams: Option<Streams>,
    captive: Option<Captive>,
    captive_status: Option<u8>,
    /// When the first signal came that makes the server end with the command of `--run`.
    ends_with_captive: Option<Instant>,
}

impl Shutdown {
    pub(super) fn new(stage: Stage) -> Shutdown {
        Shutdown {
            stage,
            status: 0,
            signal: None,
            deadlines: None,
            captive_streams: None,
            captive: None,
            captive_status: None,
            ends_with_captive: None,
        }
    }

    pub(super) fn stage(&self) -> Stage {
        self.stage
    }

    pub(super) fn is_serving(&self) -> bool {
        self.stage == Stage::Serving
    }

    /// Whether the server is not yet ready.
    pub(super) fn is_starting(&self) -> bool {
        matches!(self.stage, Stage::Configuring | Stage::Entering)
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stage == Stage::Stopping
    }

    /// A later stage of start-up is reached. Stopping begins with [`begin`](Self::begin).
    pub(super) fn set_stage(&mut self, stage: Stage) {
        self.stage = stage;
    }

    /// Begins to stop, with this exit status.
    pub(super) fn begin(&mut self, status: u8, now: Instant) {
        let workers = now + WORKERS_TIMEOUT;
        self.status = status;
        self.stage = Stage::Stopping;
        self.deadlines =
            Some(Deadlines { workers: Some(workers), template: Some(workers + TEMPLATE_TIMEOUT) });
    }

    /// The server ends by this signal, which came before it was ready.
    pub(super) fn end_by_signal(&mut self, signal: i32) {
        self.signal = Some(signal);
    }

    /// How the server ends. The command's exit status counts only where the server has none of its
    /// own.
    pub(super) fn end(&self) -> End {
        match self.signal {
            Some(signal) => End::Signal(signal),
            None => {
                End::Status(self.captive_status.filter(|_| self.status == 0).unwrap_or(self.status))
            }
        }
    }

    /// The next deadline.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.as_ref().and_then(|deadlines| deadlines.workers.or(deadlines.template))
    }

    /// Whether workers are killed at once from now on.
    pub(super) fn workers_expired(&self) -> bool {
        self.deadlines.as_ref().is_some_and(|deadlines| deadlines.workers.is_none())
    }

    /// Whether connections that are left do not keep the server from ending.
    pub(super) fn all_expired(&self) -> bool {
        self.deadlines.is_some() && self.next_deadline().is_none()
    }

    /// Takes a deadline that has passed, the workers' first.
    pub(super) fn take_expired(&mut self, now: Instant) -> Option<Expired> {
        let deadlines = self.deadlines.as_mut()?;
        if deadlines.workers.take_if(|at| now >= *at).is_some() {
            Some(Expired::Workers)
        } else if deadlines.template.take_if(|at| now >= *at).is_some() {
            Some(Expired::Template)
        } else {
            None
        }
    }

    /// Nothing is waited for any more.
    pub(super) fn expire_all(&mut self) {
        self.deadlines = Some(Deadlines { workers: None, template: None });
    }

    /// timeout(1), for one, signals the process and then its whole group: the second signal is no
    /// impatient user's.
    pub(super) fn has_just_begun(&self, now: Instant) -> bool {
        let workers = self.deadlines.as_ref().and_then(|deadlines| deadlines.workers);
        workers.is_some_and(|at| now + WORKERS_TIMEOUT < at + SIGNAL_INTERVAL)
    }

    /// Keeps standard input and output for the command of `--run`.
    pub(super) fn keep_streams(&mut self, streams: Streams) {
        self.captive_streams = Some(streams);
    }

    /// What was kept, if there is a command to be started.
    pub(super) fn take_streams(&mut self) -> Option<Streams> {
        self.captive_streams.take()
    }

    /// The command of `--run` was started.
    pub(super) fn set_captive(&mut self, captive: Captive) {
        self.captive = Some(captive);
    }

    /// The command's process id, while it runs.
    pub(super) fn captive_pid(&self) -> Option<Pid> {
        self.captive.as_ref().map(Captive::pid)
    }

    /// Signals the command, if it runs.
    pub(super) fn signal_captive(&self, signal: Signal) {
        if let Some(captive) = &self.captive {
            captive.signal(signal);
        }
    }

    /// Whether a signal makes the server wait for the command of `--run`, which needs the server,
    /// as in nbdkit. A user who signals again later wants both to end.
    pub(super) fn waits_for_captive(&mut self, now: Instant) -> bool {
        if self.captive.is_none() {
            return false;
        }
        let since = *self.ends_with_captive.get_or_insert(now);
        now < since + SIGNAL_INTERVAL
    }

    /// The command has ended. Returns a line for the user, if its end is worth one.
    pub(super) fn captive_ended(&mut self, status: WaitStatus) -> Option<String> {
        let (code, text) = captive::outcome(status);
        // While the server is stopping, the signal was meant for both.
        let signalled = self.is_stopping() || self.ends_with_captive.is_some();
        self.captive = None;
        self.captive_status = Some(code);
        text.filter(|_| !signalled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_expire_once_and_the_workers_first() {
        let now = Instant::now();
        let mut shutdown = Shutdown::new(Stage::Serving);
        assert_eq!((shutdown.take_expired(now), shutdown.all_expired()), (None, false));
        shutdown.begin(3, now);
        assert!(shutdown.has_just_begun(now));
        assert!(!shutdown.has_just_begun(now + SIGNAL_INTERVAL));
        assert_eq!(shutdown.next_deadline(), Some(now + WORKERS_TIMEOUT));
        assert_eq!(shutdown.take_expired(now + WORKERS_TIMEOUT), Some(Expired::Workers));
        assert!(shutdown.workers_expired() && !shutdown.all_expired());
        assert_eq!(shutdown.take_expired(now + WORKERS_TIMEOUT), None);
        let end = now + WORKERS_TIMEOUT + TEMPLATE_TIMEOUT;
        assert_eq!(shutdown.take_expired(end), Some(Expired::Template));
        assert!(shutdown.all_expired());
        assert_eq!(shutdown.end(), End::Status(3));
    }

    #[test]
    fn the_status_of_the_command_counts_if_the_server_has_no_error() {
        let exited = WaitStatus::Exited(Pid::from_raw(1), 7);
        for (own, status) in [(0, 7), (1, 1)] {
            let mut shutdown = Shutdown::new(Stage::Serving);
            assert_eq!(shutdown.captive_ended(exited), None);
            shutdown.begin(own, Instant::now());
            assert_eq!(shutdown.end(), End::Status(status));
        }
    }
}
