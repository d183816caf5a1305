//! Children that ended, and the end of the server: no new clients, the workers finish their
//! requests, the template cleans up, and processes that take too long are killed. A second signal
//! kills them at once.

#![forbid(unsafe_code)]

use std::time::Instant;

use nbdkit_ipc::messages::Purpose;
use nbdkit_ipc::phase::Phase;
use nbdkit_ipc::{ToTemplate, WorkerExit};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use signal_hook::consts::{SIGCHLD, SIGUSR1};

use super::Server;
use super::shutdown::{Expired, Stage, WORKERS_TIMEOUT};
use super::slot::Death;
use super::workers::kill::OwnProcesses;
use crate::notify::State;
use crate::template::Template;

/// How many children are reaped before the other sources get their turn.
const CHILDREN_AT_ONCE: usize = 64;

/// How often messages are taken from a template that has ended; if there are still more, another
/// process has its channel.
const READS_AFTER_END: usize = 64;

impl Server {
    /// Whether nothing is left to wait for.
    pub(super) fn finished(&self) -> bool {
        self.shutdown.is_stopping()
            && self.slot.template().is_none()
            && self.shutdown.captive_pid().is_none()
            && (self.workers.is_empty() || self.shutdown.all_expired())
    }

    pub(super) fn take_signals(&mut self) {
        let signals: Vec<i32> = self.signals.pending().collect();
        for signal in signals {
            match signal {
                SIGCHLD => self.reap_again = true,
                SIGUSR1 => self.reopen_log(),
                signal => self.signalled(signal),
            }
        }
    }

    fn signalled(&mut self, signal: i32) {
        match self.shutdown.stage() {
            Stage::Configuring | Stage::Entering => {
                self.shutdown.end_by_signal(signal);
                self.slot.kill();
                self.stop(1);
            }
            Stage::Serving if self.shutdown.waits_for_captive(Instant::now()) => {
                self.context
                    .log()
                    .debug(|| format!("signal {signal}: the server ends with the command"));
            }
            Stage::Serving => {
                self.context.log().debug(|| format!("shutting down: signal {signal}"));
                self.stop(0);
                self.shutdown.signal_captive(Signal::SIGTERM);
            }
            Stage::Stopping if self.shutdown.has_just_begun(Instant::now()) => {}
            Stage::Stopping => {
                self.shutdown.expire_all();
                self.kill_workers();
                self.slot.kill();
                self.shutdown.signal_captive(Signal::SIGKILL);
            }
        }
    }

    /// Stops because of an error.
    pub(super) fn fail(&mut self, line: &str) {
        match self.shutdown.stage() {
            Stage::Configuring | Stage::Entering => self.context.log().fatal(line),
            Stage::Serving | Stage::Stopping => self.context.log().error(line),
        }
        self.stop(1);
    }

    /// Stops, with this exit status. The first reason counts.
    pub(super) fn stop(&mut self, status: u8) {
        if self.shutdown.is_stopping() {
            return;
        }
        if self.shutdown.is_serving() {
            self.manager.notify(State::Stopping);
        }
        self.shutdown.begin(status, Instant::now());
        self.first = None;
        // Empty once the server is ready.
        for file in std::mem::take(&mut self.made) {
            file.remove();
        }
        self.acceptor.drop_clients();
        self.slot.release_broker(Stage::Stopping, &self.workers, &self.context);
        self.slot.stop_replacing();
        self.acceptor.close(&self.context);
        self.serve_woken();
        self.workers.quiesce();
        self.end_parked(true);
        self.slot.send(ToTemplate::Quiesce);
    }

    /// No template and no new one: the clients that there are go on, others find no listening
    /// socket, and the server ends with the last of them.
    pub(super) fn stop_accepting(&mut self, why: &str) {
        self.slot.stop_accepting();
        self.acceptor.drop_clients();
        self.serve_broker_waiters();
        self.acceptor.close(&self.context);
        // Logged when it is true: a reader may rely on it.
        self.context.log().error(&format!(
            "the template cannot be replaced, since {why}; no more clients are served"
        ));
        self.end_parked(true);
        self.stop_if_unused();
    }

    pub(super) fn stop_if_unused(&mut self) {
        if self.slot.has_stopped_accepting() && self.workers.is_empty() {
            self.stop(1);
        }
    }

    /// Replaces a template that has ended, if it is time.
    pub(super) fn replace_template(&mut self, now: Instant) {
        let clients = self.workers.len();
        if let Err(why) = self.slot.replace_if_due(clients, now, &self.context) {
            self.stop_accepting(why);
        }
    }

    /// Takes the spawner's answers.
    pub(super) fn read_spawner(&mut self) {
        let (stage, clients) = (self.shutdown.stage(), self.workers.len());
        let private = self.acceptor.private();
        if let Err(why) = self.slot.read_spawner(stage, clients, private, &self.context) {
            self.stop_accepting(why);
        }
    }

    pub(super) fn enforce_deadlines(&mut self, now: Instant) {
        // While the server stops the template may be cleaning up.
        if self.slot.take_close_timeout(now) && !self.shutdown.is_stopping() {
            self.slot.violation("it has closed its control channel", &self.context);
        }
        self.workers.report_survivors(now, &self.context);
        match self.shutdown.take_expired(now) {
            None => {}
            Some(Expired::Workers) => {
                if !self.workers.is_empty() {
                    self.context.log().error(&format!(
                        "{} client(s) did not finish in {} seconds and are disconnected",
                        self.workers.len(),
                        WORKERS_TIMEOUT.as_secs()
                    ));
                }
                self.kill_workers();
                // A template that does not serve has nothing to clean up, and may be too busy to
                // read its channel.
                if !self.slot.is_serving() {
                    self.slot.kill();
                }
            }
            Some(Expired::Template) => {
                if let Some(pid) = self.slot.pid() {
                    self.context
                        .log()
                        .error(&format!("the template (pid {pid}) does not end and is killed"));
                    self.slot.kill();
                }
            }
        }
    }

    fn kill_workers(&mut self) {
        let numbers: Vec<u64> =
            self.workers.connections().iter().map(|(number, _)| number).collect();
        for number in numbers {
            if self.slot.is_shared() {
                self.slot.send(ToTemplate::Disconnect { connection: number });
            } else {
                self.kill_worker(number);
            }
        }
    }

    /// Kills the worker of a connection: now, or as soon as the template names its process.
    pub(super) fn kill_worker(&mut self, number: u64) {
        let own = self.own_processes();
        self.workers.kill(number, &own, &self.context);
    }

    /// The processes of this server that are no workers.
    pub(super) fn own_processes(&self) -> OwnProcesses {
        OwnProcesses {
            template: self.slot.pid(),
            captive: self.shutdown.captive_pid(),
            spawner: self.slot.spawner_pid(),
            broker: self.slot.broker_pid(),
        }
    }

    /// Reaps children that have ended.
    pub(super) fn reap(&mut self) {
        for _ in 0..CHILDREN_AT_ONCE {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(status @ (WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, ..))) => {
                    self.reaped(pid, status);
                }
                Ok(WaitStatus::StillAlive) | Err(_) => return,
                Ok(_) => {}
            }
        }
        self.reap_again = true;
    }

    fn reaped(&mut self, pid: Pid, status: WaitStatus) {
        // The spawner has sent its answer about a new template before the end of that template can
        // be seen here.
        if self.slot.template().is_none() {
            self.slot.set_spawner_ready();
        }
        self.read_spawner();
        let own = self.own_processes();
        if own.template == Some(pid) {
            self.template_ended(status);
        } else if own.captive == Some(pid) {
            if let Some(text) = self.shutdown.captive_ended(status) {
                self.context.log().error(&text);
            }
            self.stop(0);
        } else if own.spawner == Some(pid) {
            self.slot.set_spawner_reaped();
        } else {
            // A worker whose template has ended before it; or a stray, whose children have become
            // the listener's.
            if let Some(number) = self.workers.connections().of_pid(pid.as_raw()) {
                let _ = self.connection_ended(number, Some(exit_of(status)));
            }
            self.kill_strays();
        }
    }

    pub(super) fn template_ended(&mut self, status: WaitStatus) {
        self.slot.set_reaped();
        // The messages that are still in its channel come first.
        for _ in 0..READS_AFTER_END {
            self.slot.set_ready();
            self.read_template();
            if !self.slot.is_ready() {
                break;
            }
        }
        // One that has not served has no workers.
        self.slot.note_former();
        self.kill_strays();
        let Some(template) = self.slot.remove(&self.context) else { return };
        let how = match status {
            WaitStatus::Exited(_, code) => format!("exited with status {code}"),
            WaitStatus::Signaled(_, signal, _) => format!("was killed by {signal}"),
            _ => "ended".to_owned(),
        };
        let well = matches!(status, WaitStatus::Exited(_, 0));
        let dead = format!("the template (pid {}) {how}", template.pid());
        let log = self.context.log();
        match self.shutdown.stage() {
            Stage::Configuring if template.may_exit_as_it_likes() => {
                if let WaitStatus::Exited(_, code) = status {
                    log.debug(|| dead);
                    // An exit status has eight bits.
                    self.stop(u8::try_from(code).unwrap_or(1));
                } else {
                    log.error(&dead);
                    self.stop(1);
                }
            }
            Stage::Configuring if self.context.plan().spec.purpose() != Purpose::Serve => {
                if !well && !template.is_explained() {
                    log.error(&dead);
                }
                self.stop(u8::from(!well));
            }
            Stage::Configuring | Stage::Entering => {
                if !template.is_explained() {
                    log.error(&dead);
                }
                self.stop(1);
            }
            Stage::Stopping => {
                if !well && !template.is_explained() {
                    log.error(&dead);
                }
            }
            Stage::Serving => return self.template_ended_in_service(&template, &dead, &how),
        }
        self.settle_orphans();
    }

    fn template_ended_in_service(&mut self, template: &Template, dead: &str, how: &str) {
        let served = template.phase() == Phase::Serving;
        if served && !template.is_explained() {
            self.context.log().error(dead);
        }
        // First, since what follows depends on the clients that are left.
        self.settle_orphans();
        if !self.shutdown.is_serving() {
            // The one client of -s has ended.
            return;
        }
        let (now, clients) = (Instant::now(), self.workers.len());
        if !served {
            let new = format!("the new one (pid {}) {how}", template.pid());
            let why = template.failure().unwrap_or(&new);
            self.slot.attempt_failed(why, clients, now, &self.context);
        } else {
            match self.slot.died(clients, now, &self.context) {
                Death::Replace => {}
                Death::StopAccepting(why) => self.stop_accepting(why),
                Death::Fail => self.fail("the template ended too often and is not replaced again"),
            }
        }
        self.settle_orphans();
    }

    /// The template has ended: so have connections that it served itself, and those whose worker it
    /// has reaped.
    fn settle_orphans(&mut self) {
        let own = self.own_processes();
        for number in self.workers.orphan_all(self.slot.is_shared(), &own) {
            let _ = self.connection_ended(number, None);
        }
        self.stop_if_unused();
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
    fn a_worker_that_its_template_never_named_is_removed_when_its_channel_closes() {
        let mut listener = Listener::new(2, false).unwrap();
        listener.template_ends();
        listener.turn();
        assert_eq!(listener.server.workers.connections().len(), 2);
        let (link, _next) = Channel::pair().unwrap();
        listener.server.slot.set(Template::new(Pid::this(), link, Origin::Rebuild));
        drop(listener.workers.remove(0));
        // A program that another test starts has the other end, too, until it is executed.
        let end = Instant::now() + Duration::from_secs(20);
        while listener.server.workers.connections().get(1).is_some() && Instant::now() < end {
            listener.turn();
        }
        assert!(listener.server.workers.connections().get(1).is_none());
        assert!(listener.server.workers.connections().get(2).is_some());
    }
}
