//! What scripts leave behind when their template, which would have killed it, was killed itself, or workers end after it.
//! The listener has adopted it.

#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use mio::Events;
use nbdkit_ipc::strays;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use super::{Server, Stage};

impl Server {
    /// Kills strays, and says whether there were any. Not with `--run`: what its command leaves in the background is
    /// adopted, too, and is not ours to kill.
    pub(super) fn kill_strays(&self) -> bool {
        // Of a start that failed nothing is to be left, either.
        let programs = self.configured.as_ref().is_none_or(|configured| configured.programs);
        // A new template that is on its way is a child that is not known yet.
        let rebuilding = self.template.is_none() && self.stage == Stage::Serving && !self.retiring;
        if !programs || rebuilding || self.plan.options.run.is_some() {
            return false;
        }
        // Workers are in the group of their template, which may lead one of its own.
        strays::kill_unknown(|pid| self.is_known(pid), |group| self.templates.contains(&group))
    }

    /// Before the server ends: kills strays until there are none, and waits for their ends.
    pub(super) fn end_strays(&mut self) {
        /// How often is looked whether there are others.
        const LOOK: Duration = Duration::from_millis(2);
        /// One that is inside of the kernel, waiting for a disk, cannot be waited for.
        const PATIENCE: Duration = Duration::from_secs(2);
        let end = Instant::now() + PATIENCE;
        while (self.kill_strays() || self.awaits_workers()) && Instant::now() < end {
            while waitpid(None, Some(WaitPidFlag::WNOHANG)).is_ok_and(|it| it.pid().is_some()) {}
            let _ = self.poll.poll(&mut Events::with_capacity(1), Some(LOOK));
        }
    }

    /// Whether workers that were killed have yet to end: then their scripts come here.
    fn awaits_workers(&self) -> bool {
        let programs = self.configured.as_ref().is_some_and(|configured| configured.programs);
        let is_worker = |pid: &Pid| self.connections.of_pid(pid.as_raw()).is_some();
        programs && strays::children().iter().any(is_worker)
    }

    fn is_known(&self, pid: Pid) -> bool {
        self.template.as_ref().is_some_and(|template| template.pid() == pid)
            || self.spawner_pid() == Some(pid)
            || self.captive.as_ref().is_some_and(|captive| captive.pid() == pid)
            || self.connections.of_pid(pid.as_raw()).is_some()
    }
}
