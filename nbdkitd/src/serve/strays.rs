//! Strays: processes of scripts, which the listener adopts when the template that would have killed
//! them was killed itself, or when workers end after their template.

#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use mio::Events;
use nbdkit_ipc::strays;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use super::Server;

impl Server {
    /// Kills strays, and returns whether there were any. Not with `--run`: what its command leaves
    /// in the background is adopted, too, and is not to be killed.
    pub(super) fn kill_strays(&self) -> bool {
        // A start that failed must leave none, either.
        let programs = self.slot.configured().is_none_or(|configured| configured.programs);
        // A new template that is on its way is a child that is not known yet.
        let replacing = self.shutdown.is_serving() && self.slot.is_starting();
        if !programs || replacing || self.context.plan().options.run.is_some() {
            return false;
        }
        // Workers are in the process group of their template, which may lead one of its own.
        strays::kill_unknown(|pid| self.is_known(pid), |group| self.slot.was_template(group))
    }

    /// Before the server ends: kills strays until there are none, and waits for their ends.
    pub(super) fn end_strays(&mut self) {
        /// Interval between two looks for others.
        const INTERVAL: Duration = Duration::from_millis(2);
        /// A process inside the kernel, waiting for a disk, cannot be waited for.
        const TIMEOUT: Duration = Duration::from_secs(2);
        let end = Instant::now() + TIMEOUT;
        while (self.kill_strays() || self.awaits_workers()) && Instant::now() < end {
            while waitpid(None, Some(WaitPidFlag::WNOHANG)).is_ok_and(|it| it.pid().is_some()) {}
            let _ = self.context.poll().poll(&mut Events::with_capacity(1), Some(INTERVAL));
        }
    }

    /// Whether workers that were killed have yet to end: then the listener adopts their scripts.
    fn awaits_workers(&self) -> bool {
        let is_worker = |pid: &Pid| self.workers.connections().of_pid(pid.as_raw()).is_some();
        self.slot.has_programs() && strays::children().iter().any(is_worker)
    }

    fn is_known(&self, pid: Pid) -> bool {
        let own = self.own_processes();
        [own.template, own.spawner, own.captive].contains(&Some(pid))
            || self.workers.connections().of_pid(pid.as_raw()).is_some()
    }
}
