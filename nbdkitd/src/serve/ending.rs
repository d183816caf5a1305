//! Children that ended, and the end of the server: no new clients, the workers finish their requests, the template
//! cleans up, and whoever takes too long is killed. A second signal skips the patience.

#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use nbdkit_ipc::messages::Purpose;
use nbdkit_ipc::phase::Phase;
use nbdkit_ipc::{ToTemplate, ToWorker, WorkerExit};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use signal_hook::consts::SIGCHLD;

use super::rebuild::Maker;
use super::{Server, Stage};
use crate::captive;
use crate::notify::State;
use crate::template::Template;

/// How long clients may take to finish their requests.
const PATIENCE: Duration = Duration::from_secs(5);

/// A second signal sooner than this after the first does not count.
const IMPATIENCE: Duration = Duration::from_secs(1);

/// How long the template may take after that, for `cleanup` and `unload`: it may have data to write.
const TEMPLATE_PATIENCE: Duration = Duration::from_secs(30);

/// How many children are reaped before the other sources get their turn.
const CHILDREN_AT_ONCE: usize = 64;

/// How often messages are taken from a template that has ended; if there are still more, another process holds its
/// channel.
const LAST_WORDS: usize = 64;

/// When patience ends.
#[derive(Debug)]
pub(super) struct Deadlines {
    workers: Option<Instant>,
    template: Option<Instant>,
}

impl Deadlines {
    pub(super) fn next(&self) -> Option<Instant> {
        self.workers.or(self.template)
    }

    /// Whether workers are not waited for any more.
    pub(super) fn workers_passed(&self) -> bool {
        self.workers.is_none()
    }

    fn over(&self) -> bool {
        self.next().is_none()
    }
}

impl Server {
    /// Whether nothing is left to wait for.
    pub(super) fn finished(&self) -> bool {
        self.stage == Stage::Stopping
            && self.template.is_none()
            && self.captive.is_none()
            && (self.connections.is_empty() || self.deadlines.as_ref().is_some_and(Deadlines::over))
    }

    pub(super) fn take_signals(&mut self) {
        let signals: Vec<i32> = self.signals.pending().collect();
        for signal in signals {
            match signal {
                SIGCHLD => self.reap_again = true,
                signal => self.signalled(signal),
            }
        }
    }

    fn signalled(&mut self, signal: i32) {
        let stage = self.stage;
        match stage {
            Stage::Configuring | Stage::Entering => {
                self.signal = Some(signal);
                if let Some(template) = &self.template {
                    template.kill();
                }
                self.stop(1);
            }
            Stage::Serving if self.waits_for_captive(Instant::now()) => {
                self.log.debug(|| format!("signal {signal}: the server ends with the command"));
            }
            Stage::Serving => {
                self.log.debug(|| format!("shutting down: signal {signal}"));
                self.stop(0);
                if let Some(captive) = &self.captive {
                    captive.signal(Signal::SIGTERM);
                }
            }
            Stage::Stopping if self.has_just_begun_to_stop(Instant::now()) => {}
            Stage::Stopping => {
                self.deadlines = Some(Deadlines { workers: None, template: None });
                self.kill_workers();
                if let Some(template) = &self.template {
                    template.kill();
                }
                if let Some(captive) = &self.captive {
                    captive.signal(Signal::SIGKILL);
                }
            }
        }
    }

    /// Whether a signal makes the server wait for the command of `--run`, which needs it, as nbdkit does. Who signals again
    /// later wants both to end.
    fn waits_for_captive(&mut self, now: Instant) -> bool {
        if self.captive.is_none() {
            return false;
        }
        let since = *self.ends_with_captive.get_or_insert(now);
        now < since + IMPATIENCE
    }

    /// timeout(1), for one, signals the process and then its whole group. That is not an impatient user.
    fn has_just_begun_to_stop(&self, now: Instant) -> bool {
        let patience_ends = self.deadlines.as_ref().and_then(|deadlines| deadlines.workers);
        patience_ends.is_some_and(|at| now + PATIENCE < at + IMPATIENCE)
    }

    /// Stops because of an error.
    pub(super) fn fail(&mut self, line: &str) {
        match self.stage {
            Stage::Configuring | Stage::Entering => self.log.fatal(line),
            Stage::Serving | Stage::Stopping => self.log.error(line),
        }
        self.stop(1);
    }

    /// Stops, with this exit status. The first reason counts.
    pub(super) fn stop(&mut self, status: u8) {
        if self.stage == Stage::Stopping {
            return;
        }
        if self.stage == Stage::Serving {
            self.manager.notify(State::Stopping);
        }
        self.status = status;
        self.stage = Stage::Stopping;
        self.first = None;
        // Empty once the server is ready.
        for file in std::mem::take(&mut self.made) {
            file.remove();
        }
        self.forget_clients();
        self.release_broker();
        self.schedule.stop();
        self.close_listeners();
        for link in self.links.values() {
            // A worker that does not even take this is killed when patience ends.
            let _ = link.try_send(&ToWorker::Quiesce, &[]);
        }
        if let Some(template) = &mut self.template {
            template.say(ToTemplate::Quiesce);
        }
        let workers = Instant::now() + PATIENCE;
        self.deadlines =
            Some(Deadlines { workers: Some(workers), template: Some(workers + TEMPLATE_PATIENCE) });
    }

    pub(super) fn enforce_deadlines(&mut self, now: Instant) {
        if self.template_grace.is_some_and(|at| now >= at) {
            self.template_grace = None;
            // On the way out it may be cleaning up.
            if self.stage != Stage::Stopping {
                self.template_violates("it has closed its control channel");
            }
        }
        self.report_missing_ends(now);
        let Some(deadlines) = &mut self.deadlines else { return };
        if deadlines.workers.is_some_and(|at| now >= at) {
            deadlines.workers = None;
            if !self.connections.is_empty() {
                self.log.error(&format!(
                    "{} client(s) did not finish in {} seconds and are disconnected",
                    self.connections.len(),
                    PATIENCE.as_secs()
                ));
            }
            self.kill_workers();
            // One that has not come to serving has nothing to clean up, and may be too busy to listen.
            if let Some(template) = &self.template
                && template.phase() != Phase::Serving
            {
                template.kill();
            }
        } else if deadlines.template.is_some_and(|at| now >= at) {
            deadlines.template = None;
            if let Some(template) = &self.template {
                self.log.error(&format!(
                    "the template (pid {}) does not end and is killed",
                    template.pid()
                ));
                template.kill();
            }
        }
    }

    fn kill_workers(&mut self) {
        let shared = self.is_shared();
        let numbers: Vec<u64> = self.connections.iter().map(|(number, _)| number).collect();
        for number in numbers {
            if !shared {
                self.end_worker(number);
            } else if let Some(template) = &mut self.template {
                template.say(ToTemplate::Disconnect { connection: number });
            }
        }
    }

    /// Collects children that have ended.
    pub(super) fn reap(&mut self) {
        for _ in 0..CHILDREN_AT_ONCE {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(status @ (WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, ..))) => {
                    // What the spawner has said of a new template was said before that could come here.
                    self.spawner_unread |= self.template.is_none();
                    self.read_spawner();
                    if self.template.as_ref().is_some_and(|template| template.pid() == pid) {
                        self.template_ended(status);
                    } else if self.captive.as_ref().is_some_and(|captive| captive.pid() == pid) {
                        self.captive_ended(status);
                    } else if let Maker::Spawner(spawner) = &mut self.maker
                        && spawner.pid() == pid
                    {
                        spawner.set_reaped();
                    } else if let Some(number) = self.connections.of_pid(pid.as_raw()) {
                        // Its template has ended before it.
                        let _ = self.connection_ended(number, Some(exit_of(status)));
                        self.kill_strays();
                    } else {
                        // A stray; its children have come here.
                        self.kill_strays();
                    }
                }
                Ok(WaitStatus::StillAlive) | Err(_) => return,
                Ok(_) => {}
            }
        }
        self.reap_again = true;
    }

    fn captive_ended(&mut self, status: WaitStatus) {
        let (code, text) = captive::outcome(status);
        // While the server is being stopped, the signal was meant for both.
        let signalled = self.stage == Stage::Stopping || self.ends_with_captive.is_some();
        if let Some(text) = text.filter(|_| !signalled) {
            self.log.error(&text);
        }
        self.captive = None;
        self.captive_status = Some(code);
        self.stop(0);
    }

    pub(super) fn template_ended(&mut self, status: WaitStatus) {
        if let Some(template) = &mut self.template {
            template.set_reaped();
        }
        // What it said last comes first.
        for _ in 0..LAST_WORDS {
            self.template_unread = true;
            self.read_template();
            if !self.template_unread {
                break;
            }
        }
        // One that has not served has no workers.
        let served = self.template.as_ref().filter(|it| it.phase() == Phase::Serving);
        self.templates.extend(served.map(Template::pid));
        self.kill_strays();
        let Some(template) = self.template.take() else { return };
        self.template_unread = false;
        self.template_grace = None;
        self.forget(&template.raw_fd());
        let how = match status {
            WaitStatus::Exited(_, code) => format!("exited with status {code}"),
            WaitStatus::Signaled(_, signal, _) => format!("was killed by {signal}"),
            _ => "ended".to_owned(),
        };
        let well = matches!(status, WaitStatus::Exited(_, 0));
        let dead = format!("the template (pid {}) {how}", template.pid());
        match self.stage {
            Stage::Configuring if template.may_exit_as_it_likes() => {
                if let WaitStatus::Exited(_, code) = status {
                    self.log.debug(|| dead);
                    // An exit status has eight bits.
                    self.stop(u8::try_from(code).unwrap_or(1));
                } else {
                    self.log.error(&dead);
                    self.stop(1);
                }
            }
            Stage::Configuring if self.plan.recipe.purpose() != Purpose::Serve => {
                if !well && !template.is_explained() {
                    self.log.error(&dead);
                }
                self.stop(u8::from(!well));
            }
            Stage::Configuring | Stage::Entering => {
                if !template.is_explained() {
                    self.log.error(&dead);
                }
                self.stop(1);
            }
            Stage::Stopping => {
                if !well && !template.is_explained() {
                    self.log.error(&dead);
                }
            }
            Stage::Serving => {
                let served = template.phase() == Phase::Serving;
                if served && !template.is_explained() {
                    self.log.error(&dead);
                }
                // First, since what is done depends on who is left.
                self.settle_orphans();
                if self.stage != Stage::Serving {
                    // The one client of -s has ended.
                    return;
                }
                let now = Instant::now();
                if served {
                    self.plan_rebuild(now);
                } else {
                    let new = format!("the new one (pid {}) {how}", template.pid());
                    self.attempt_failed(template.failure().unwrap_or(&new), now);
                }
            }
        }
        self.settle_orphans();
    }

    /// The template has ended: connections that lived in it are over, and those whose worker it had reaped without saying
    /// so. The others are over when their worker is reaped here, or closes its channel without being known.
    fn settle_orphans(&mut self) {
        self.connections.orphan_all();
        let shared = self.is_shared();
        let over: Vec<u64> = self
            .connections
            .iter()
            .filter(|(number, it)| {
                shared || (!self.links.contains_key(number) && !self.has_worker(it))
            })
            .map(|(number, _)| number)
            .collect();
        for number in over {
            let _ = self.connection_ended(number, None);
        }
        self.stop_if_retired();
    }

    /// A worker has closed its channel, and is ending. How it ended is learned from the template, or by reaping it.
    pub(super) fn link_closed(&mut self, number: u64) {
        let connection = self.connections.get(number);
        if connection.is_some_and(|it| it.orphan && !self.has_worker(it)) {
            let _ = self.connection_ended(number, None);
        }
    }

    pub(super) fn close_listeners(&mut self) {
        for listener in std::mem::take(&mut self.listeners) {
            self.forget(&listener.socket);
        }
    }
}

fn exit_of(status: WaitStatus) -> WorkerExit {
    match status {
        WaitStatus::Exited(_, code) => WorkerExit::from_code(code),
        WaitStatus::Signaled(_, signal, _) => WorkerExit::Killed(signal as i32),
        _ => WorkerExit::Unknown(-1),
    }
}

#[cfg(test)]
mod tests {
    use crate::serve::fuzz::Listener;
    use crate::template::{Origin, Template};
    use nbdkit_ipc::Channel;
    use nix::unistd::Pid;
    use std::time::{Duration, Instant};

    #[test]
    fn a_worker_that_its_template_never_spoke_of_is_not_counted_for_ever() {
        let mut listener = Listener::new(2, false).unwrap();
        listener.template_ends();
        listener.turn();
        assert_eq!(listener.server.connections.len(), 2);
        let (link, _next) = Channel::pair().unwrap();
        listener.server.template = Some(Template::new(Pid::this(), link, Origin::Rebuild));
        drop(listener.workers.remove(0));
        // A program that another test starts has the other end, too, until it is executed.
        let end = Instant::now() + Duration::from_secs(20);
        while listener.server.connections.get(1).is_some() && Instant::now() < end {
            listener.turn();
        }
        assert!(listener.server.connections.get(1).is_none());
        assert!(listener.server.connections.get(2).is_some());
    }
}
