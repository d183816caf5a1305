//! Messages of template and workers. The phase of a message was checked when it was received; here
//! it is checked whether it can be true, and what follows from it. A process that violates the
//! protocol is killed.

#![forbid(unsafe_code)]

use std::os::fd::OwnedFd;
use std::time::Instant;

use nbdkit_ipc::keys::{KeyAnswer, KeyRequest};
use nbdkit_ipc::messages::{Isolation, LogRecord, Totals};
use nbdkit_ipc::process::Process;
use nbdkit_ipc::{FromTemplate, FromWorker, ToTemplate, ToWorker, WorkerExit};

use super::Server;
use super::workers::{self, signing};
use crate::connections::Violation;
use crate::log::syscalls;
use crate::template::Incoming;

/// How many messages are taken from one source before the others get their turn.
const MESSAGES_AT_ONCE: usize = 64;

/// The violation in a `Shutdown` of a stack that has not declared it.
const UNDECLARED_SHUTDOWN: &str = "a shutdown that nothing in its stack may ask for";

/// More messages than a worker's channel has room for. If there are still more, another process has
/// the channel too.
const MESSAGES_AFTER_END: usize = 1024;

impl Server {
    /// Takes some messages of the template, and sends it what is queued for it.
    pub(super) fn read_template(&mut self) {
        if !self.slot.take_ready() {
            return;
        }
        if let Err(error) = self.slot.flush() {
            return self.fail(&error.to_string());
        }
        for _ in 0..MESSAGES_AT_ONCE {
            match self.slot.receive() {
                Incoming::Message(message, fds) => self.handle_template(message, fds),
                Incoming::Empty => return,
                Incoming::Closed => return self.slot.channel_closed(Instant::now(), &self.context),
                Incoming::Violation(what) => return self.slot.violation(&what, &self.context),
            }
        }
        self.slot.set_ready();
    }

    fn handle_template(&mut self, message: FromTemplate, fds: Vec<OwnedFd>) {
        let handled = match message {
            FromTemplate::Hello(_) => Ok(()),
            FromTemplate::Configured(configured) => {
                self.configured(configured);
                Ok(())
            }
            // The template exits now, and its end is what counts.
            FromTemplate::Failed => Ok(()),
            FromTemplate::Log(record) => self.log_template(&record),
            FromTemplate::Ready => {
                self.ready();
                Ok(())
            }
            FromTemplate::Forked { connection, pid } => {
                let process = fds.into_iter().next().map(Process::from_fd);
                self.forked(connection, pid, process).map_err(Violation::text)
            }
            FromTemplate::Exited { connection, exit } => {
                self.connection_ended(connection, Some(exit)).map_err(Violation::text)
            }
            // While it is configured, the template is what the user started and nothing else.
            FromTemplate::Shutdown
                if self.slot.configured().is_none() || self.slot.may_shutdown() =>
            {
                self.stop(0);
                Ok(())
            }
            FromTemplate::Shutdown => Err(UNDECLARED_SHUTDOWN),
            FromTemplate::Serving { connection, stack: _, export, tls_dn } => {
                self.serving_shared(connection, export, tls_dn).map_err(Violation::text)
            }
            FromTemplate::Refused { syscall } => {
                self.report_refused_template(syscall);
                Ok(())
            }
            FromTemplate::Broker { stack: _, pid, always } => {
                let stage = self.shutdown.stage();
                self.slot.install_broker(pid, always, fds, stage, &self.workers, &self.context)
            }
            FromTemplate::Key { connection, request } => self.key_for_shared(connection, request),
            FromTemplate::Totals { connection, totals } => self.totals_shared(connection, totals),
        };
        if let Err(what) = handled {
            self.slot.violation(what, &self.context);
        }
    }

    fn report_refused_template(&self, syscall: u32) {
        let Some(pid) = self.slot.pid() else { return };
        self.context.log().error(&format!(
            "the sandbox refused system call {} to the template (pid {pid}, stack {})",
            syscalls::describe(syscall),
            self.context.plan().spec.stack()
        ));
    }

    fn log_template(&mut self, record: &LogRecord) -> Result<(), &'static str> {
        if !record.is_plausible() {
            return Err("a log record that is too long");
        }
        let connection = self.workers.connections().get(record.connection);
        self.slot.log(record, connection, &self.context);
        Ok(())
    }

    /// A connection of the shared template asks for a signature or a key.
    fn key_for_shared(&mut self, number: u64, request: KeyRequest) -> Result<(), &'static str> {
        if !self.slot.is_shared() {
            return Err("a key for a connection that has a worker");
        }
        self.workers.count_shared_key(number, &request)?;
        self.queue_signature(number, request)
    }

    /// A handshake in the one process that serves all is over. Workers report this themselves.
    fn serving_shared(
        &mut self,
        number: u64,
        export: String,
        tls_dn: Option<String>,
    ) -> Result<(), Violation> {
        if !self.slot.is_shared() {
            return Err(Violation::Serving);
        }
        self.workers.serving(number, export, tls_dn)
    }

    /// A connection of the one process that serves all is over.
    fn totals_shared(&mut self, number: u64, totals: Totals) -> Result<(), &'static str> {
        if !self.slot.is_shared() {
            return Err("the totals of a connection that has a worker");
        }
        self.workers.set_shared_totals(number, totals)
    }

    pub(super) fn forked(
        &mut self,
        number: u64,
        pid: i32,
        process: Option<Process>,
    ) -> Result<(), Violation> {
        let isolation = self.slot.isolation().unwrap_or(Isolation::Shared);
        self.workers.forked(number, pid, process, isolation)?;
        if self.workers.is_kill_requested(number) || self.shutdown.workers_expired() {
            self.kill_worker(number);
        } else if self.shutdown.is_stopping() {
            // It was not there yet when the others were sent this.
            self.workers.send(number, &ToWorker::Quiesce, &[]);
        }
        Ok(())
    }

    /// Takes some messages of each worker that has sent any.
    pub(super) fn read_workers(&mut self) {
        for number in self.workers.take_readable() {
            self.read_worker_of(number);
        }
    }

    /// Takes some messages of one connection's worker.
    pub(super) fn read_worker_of(&mut self, number: u64) {
        if self.take_parked(number) {
            return;
        }
        match self.read_worker(number, MESSAGES_AT_ONCE) {
            Left::Nothing => {}
            Left::More => self.workers.set_readable(number),
            Left::Closed => {
                self.workers.close_link(number, &self.context);
                // The template reports how the worker has ended, or it is reaped here.
                let own = self.own_processes();
                if self.workers.is_over_without_link(number, &own) {
                    let _ = self.connection_ended(number, None);
                }
            }
        }
    }

    fn read_worker(&mut self, number: u64, most: usize) -> Left {
        for _ in 0..most {
            let violation = match self.workers.receive(number) {
                workers::Incoming::Message(message) => match self.handle_worker(number, message) {
                    Ok(()) => continue,
                    Err(what) => what.into(),
                },
                workers::Incoming::Empty => return Left::Nothing,
                workers::Incoming::Closed => return Left::Closed,
                workers::Incoming::Violation(what) => what,
            };
            self.worker_violates(number, &violation);
            return Left::Closed;
        }
        Left::More
    }

    fn handle_worker(&mut self, number: u64, message: FromWorker) -> Result<(), &'static str> {
        match message {
            FromWorker::Log(record) => {
                if !record.is_plausible() {
                    return Err("a log record that is too long");
                }
                #[cfg(feature = "red-team")]
                crate::sys::hijacked::call_for_test(&record.text);
                self.workers.log(number, &record, &self.context);
            }
            FromWorker::Shutdown if self.slot.may_shutdown() => self.stop(0),
            FromWorker::Shutdown => return Err(UNDECLARED_SHUTDOWN),
            FromWorker::Refused { syscall } => self.report_refused_worker(number, syscall),
            FromWorker::Broker { stack: _ } => {
                let stage = self.shutdown.stage();
                self.slot.request_broker(number, stage, &mut self.workers, &self.context)?;
            }
            FromWorker::Key(request) => self.queue_signature(number, request)?,
            FromWorker::Serving { stack: _, export, tls_dn } => {
                self.workers.serving(number, export, tls_dn).map_err(Violation::text)?;
            }
            FromWorker::Totals(totals) => self.workers.set_totals(number, totals),
            FromWorker::Park { state, totals } => {
                self.workers.ask_to_park(number, state, totals)?;
            }
        }
        Ok(())
    }

    /// A worker's system call was refused, and the worker ends.
    fn report_refused_worker(&self, number: u64, syscall: u32) {
        let Some(connection) = self.workers.connections().get(number) else { return };
        let pid = connection.pid.map_or_else(|| "unknown".to_owned(), |pid| pid.to_string());
        let text = format!(
            "the sandbox refused system call {} to the worker (pid {pid}, {connection}, stack {})",
            syscalls::describe(syscall),
            self.context.plan().spec.stack()
        );
        self.workers.error(number, &text, &self.context);
    }

    /// Kills a worker that violates the protocol. The template reports its end in the usual way.
    fn worker_violates(&mut self, number: u64, what: &str) {
        let Some(worker) = self.workers.name(number) else { return };
        let text = format!("protocol violation by {worker}: {what}; killed");
        self.workers.error(number, &text, &self.context);
        self.workers.set_violated(number);
        self.kill_worker(number);
    }

    /// Sends channels to the broker to the workers that wait for one.
    pub(super) fn serve_broker_waiters(&mut self) {
        let stage = self.shutdown.stage();
        self.slot.serve_broker_waiters(stage, &self.workers, &self.context);
    }

    /// Takes some messages of the broker.
    pub(super) fn read_broker(&mut self) {
        let (stage, own) = (self.shutdown.stage(), self.own_processes());
        self.slot.read_broker(stage, &self.workers, &own, &self.context);
    }

    fn queue_signature(&mut self, number: u64, request: KeyRequest) -> Result<(), &'static str> {
        if let Some(surplus) = self.workers.queue_signature(number, request, &self.context)? {
            self.answer_key(surplus, KeyAnswer::Denied);
        }
        Ok(())
    }

    /// Makes some of the signatures that were asked for.
    pub(super) fn sign_some(&mut self) {
        let end = Instant::now() + signing::TURN;
        while let Some((number, request)) = self.workers.next_signature() {
            self.answer_key(number, request.answer());
            self.workers.count_signature(number, &self.context);
            if Instant::now() >= end {
                return;
            }
        }
    }

    fn answer_key(&mut self, number: u64, answer: KeyAnswer) {
        if self.slot.is_shared() {
            self.slot.send(ToTemplate::Key { connection: number, answer });
        } else {
            self.workers.answer_key(number, answer);
        }
    }

    /// A connection is over. `exit` is `None` if it is not known how.
    ///
    /// # Errors
    /// There was no such connection.
    pub(super) fn connection_ended(
        &mut self,
        number: u64,
        exit: Option<WorkerExit>,
    ) -> Result<(), Violation> {
        // The worker's last messages may still be in its channel.
        self.read_worker(number, MESSAGES_AFTER_END);
        self.slot.forget_broker_request(number);
        if self.goes_on_parked(number, exit) {
            self.slot.replace_if_broker_lost(self.shutdown.stage(), &self.workers);
            return Ok(());
        }
        let mut connection = self.workers.remove(number, &self.context)?;
        if let Some(client) = connection.client.take()
            && !connection.evicted
            && !connection.is_taken
            && self.shutdown.is_serving()
            && self.slot.can_requeue(exit)
        {
            self.context.log().debug(|| format!("requeued for the next template: {connection}"));
            self.acceptor.queue(client, connection.peer, Instant::now(), &self.context);
            return Ok(());
        }
        self.report_end(number, &connection, exit);
        if self.context.is_single() {
            self.stop(0);
        }
        self.stop_if_unused();
        self.slot.replace_if_broker_lost(self.shutdown.stage(), &self.workers);
        Ok(())
    }
}

/// Whether there is more to read.
enum Left {
    Nothing,
    More,
    Closed,
}
