//! What template and workers say. The phase of a message was checked when it was received; here it is checked whether
//! it can be true, and what follows from it. Whoever breaks the rules is ended.

#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nbdkit_ipc::keys::KeyRequest;
use nbdkit_ipc::messages::{Isolation, LogRecord, MAX_LOG_TEXT};
use nbdkit_ipc::phase::worker_message;
use nbdkit_ipc::process::Process;
use nbdkit_ipc::{FromTemplate, FromWorker, RecvError, ToWorker, WorkerExit};
use nix::errno::Errno;

use super::ending::Deadlines;
use super::{Server, Stage, WorkerLink};
use crate::connections::Violation;
use crate::log::{Level, Speaker, syscalls};
use crate::template::{self, Incoming};

/// How many messages are taken from one source before the others get their turn.
const MESSAGES_AT_ONCE: usize = 64;

/// The longest name of a layer that makes sense, bytes.
const MAX_LAYER: usize = 256;

/// What is wrong with a `Shutdown` of a stack without the need.
const UNDECLARED_SHUTDOWN: &str = "a shutdown that nothing in its stack may ask for";

/// How long a template may live that has closed its channel.
const GRACE: Duration = Duration::from_secs(1);

/// What a worker's channel holds at most after its end; more means that another process holds the channel too.
const LAST_WORDS: usize = 1024;

impl Server {
    /// Takes some messages of the template, and lets it take what is queued for it.
    pub(super) fn read_template(&mut self) {
        if !std::mem::take(&mut self.template_unread) {
            return;
        }
        if let Some(template) = &mut self.template
            && let Err(error) = template.flush()
            && error.raw_os_error() == Some(Errno::EMSGSIZE as i32)
        {
            return self.fail(template::TOO_LONG);
        }
        for _ in 0..MESSAGES_AT_ONCE {
            let Some(template) = &mut self.template else { return };
            match template.receive() {
                Incoming::Message(message, fds) => self.template_says(message, fds),
                Incoming::Empty => return,
                Incoming::Closed => {
                    // It has ended, which is noticed when it is reaped; or it lives on without a channel.
                    let fd = template.raw_fd();
                    self.template_grace = Some(Instant::now() + GRACE);
                    return self.forget(&fd);
                }
                Incoming::Violation(what) => return self.template_violates(&what),
            }
        }
        self.template_unread = true;
    }

    fn template_says(&mut self, message: FromTemplate, fds: Vec<OwnedFd>) {
        match message {
            FromTemplate::Hello(_) => {}
            FromTemplate::Configured(configured) => self.configured(configured),
            // It ends now, and its end is what counts.
            FromTemplate::Failed => {}
            FromTemplate::Log(record) => self.template_logs(&record),
            FromTemplate::Ready => self.ready(),
            FromTemplate::Forked { connection, pid } => {
                let process = fds.into_iter().next().map(Process::from_fd);
                if let Err(violation) = self.forked(connection, pid, process) {
                    self.template_violates(&violation.to_string());
                }
            }
            FromTemplate::Exited { connection, exit } => {
                if let Err(violation) = self.connection_ended(connection, Some(exit)) {
                    self.template_violates(&violation.to_string());
                }
            }
            // While it is configured, it is what the user started and nothing else.
            FromTemplate::Shutdown if self.configured.is_none() || self.may_shutdown() => {
                self.stop(0);
            }
            FromTemplate::Shutdown => self.template_violates(UNDECLARED_SHUTDOWN),
            FromTemplate::Serving { connection, export } => {
                if let Err(violation) = self.serving_shared(connection, export) {
                    self.template_violates(&violation.to_string());
                }
            }
            FromTemplate::Refused { syscall } => {
                let Some(template) = &self.template else { return };
                self.log.error(&format!(
                    "the sandbox refused system call {} to the template (pid {}, stack {})",
                    syscalls::describe(syscall),
                    template.pid(),
                    self.plan.recipe.stack()
                ));
            }
            FromTemplate::Broker { pid, always } => {
                if let Err(what) = self.listen_to_broker(pid, always, fds) {
                    self.template_violates(what);
                }
            }
            FromTemplate::Key { connection, request } => {
                if let Err(what) = self.key_for_shared(connection, request) {
                    self.template_violates(what);
                }
            }
        }
    }

    /// What a connection of the shared template asks.
    fn key_for_shared(&mut self, number: u64, request: KeyRequest) -> Result<(), &'static str> {
        let isolation = self.configured.as_ref().map(|configured| configured.isolation);
        if isolation != Some(Isolation::Shared) {
            return Err("a key for a connection that has a worker");
        }
        let connection =
            self.connections.get_mut(number).ok_or("a key for a connection that does not exist")?;
        let message = FromWorker::Key(request);
        connection.phase =
            connection.phase.after(&message).ok_or("a second key for the same connection")?;
        let FromWorker::Key(request) = message else { return Ok(()) };
        self.queue_signature(number, request)
    }

    /// Ends a template that breaks the rules; what becomes of its clients is decided when it has ended.
    pub(super) fn template_violates(&mut self, what: &str) {
        let Some(template) = &mut self.template else { return };
        let text =
            format!("the template (pid {}) broke the rules and is ended: {what}", template.pid());
        self.log.error(&text);
        template.set_failure(what);
        template.kill();
        let fd = template.raw_fd();
        self.forget(&fd);
        self.template_unread = false;
    }

    fn template_logs(&mut self, record: &LogRecord) {
        if !is_plausible(record) {
            return self.template_violates("a log record that is too long");
        }
        let known = self.connections.get_mut(record.connection).is_some();
        let connection = if known { record.connection } else { 0 };
        self.note_failure(record);
        // As in nbdkit, only lines that concern a connection name the plugin. Field by field, because the quota is
        // borrowed at the same time.
        let speaker = if connection == 0 {
            Speaker::default()
        } else {
            Speaker { layer: record.layer.as_deref().or(Some(&self.plan.plugin)), connection }
        };
        self.log.record(record, speaker, &mut self.template_quota);
    }

    /// A handshake in the one process that serves all is over. Workers say so themselves.
    fn serving_shared(&mut self, number: u64, export: String) -> Result<(), Violation> {
        if !self.is_shared() {
            return Err(Violation::Serving);
        }
        self.enters_transmission(number, export)
    }

    /// A connection's handshake is over.
    fn enters_transmission(&mut self, number: u64, export: String) -> Result<(), Violation> {
        let connection = self.connections.get_mut(number).ok_or(Violation::UnknownConnection)?;
        connection.serving(export)?;
        if connection.signed_for {
            self.signing.led_to_transmission(connection.key);
        }
        Ok(())
    }

    /// Whether the stack has declared that it may stop the server. Else it is one client's way to stop it for all.
    fn may_shutdown(&self) -> bool {
        self.configured.as_ref().is_some_and(|configured| configured.may_shutdown)
    }

    /// Whether one process serves all clients.
    pub(super) fn is_shared(&self) -> bool {
        self.configured.as_ref().is_some_and(|it| it.isolation == Isolation::Shared)
    }

    pub(super) fn forked(
        &mut self,
        number: u64,
        pid: i32,
        process: Option<Process>,
    ) -> Result<(), Violation> {
        let isolation = self.configured.as_ref().map_or(Isolation::Shared, |it| it.isolation);
        // Number and handle may be anything, even another program's: they are checked before they are used, by
        // `signal_child`.
        let connection = self.connections.forked(number, pid, isolation)?;
        connection.process = process;
        if connection.doomed || self.deadlines.as_ref().is_some_and(Deadlines::workers_passed) {
            self.end_worker(number);
        } else if self.stage == Stage::Stopping
            && let Some(link) = self.links.get(&number)
        {
            // It was on its way when the others were told.
            let _ = link.try_send(&ToWorker::Quiesce, &[]);
        }
        Ok(())
    }

    /// Takes some messages of each worker that has any.
    pub(super) fn read_workers(&mut self) {
        for number in std::mem::take(&mut self.unread) {
            self.read_worker_of(number);
        }
    }

    /// Takes some messages of one connection's worker.
    pub(super) fn read_worker_of(&mut self, number: u64) {
        let Some(link) = self.links.remove(&number) else { return };
        match self.read_worker(number, &link, MESSAGES_AT_ONCE) {
            Rest::Nothing => drop(self.links.insert(number, link)),
            Rest::More => {
                self.links.insert(number, link);
                self.unread.insert(number);
            }
            Rest::Closed => {
                self.forget(&link.as_fd().as_raw_fd());
                drop(link);
                self.link_closed(number);
            }
        }
    }

    fn read_worker(&mut self, number: u64, link: &WorkerLink, most: usize) -> Rest {
        for _ in 0..most {
            match link.try_recv() {
                Ok(received) if received.fds.is_empty() && !received.lost => {
                    if let Err(what) = self.worker_says(number, link, received.message) {
                        self.worker_violates(number, &what);
                        return Rest::Closed;
                    }
                }
                Ok(_) => {
                    self.worker_violates(number, "descriptors where none belong");
                    return Rest::Closed;
                }
                Err(RecvError::Empty | RecvError::Io(Errno::EINTR)) => return Rest::Nothing,
                Err(RecvError::Closed) => return Rest::Closed,
                Err(error) => {
                    self.worker_violates(number, &error.to_string());
                    return Rest::Closed;
                }
            }
        }
        Rest::More
    }

    fn worker_says(
        &mut self,
        number: u64,
        link: &WorkerLink,
        message: FromWorker,
    ) -> Result<(), Cow<'static, str>> {
        let Some(connection) = self.connections.get_mut(number) else { return Ok(()) };
        connection.client = None;
        let phase = connection.phase;
        connection.phase = phase
            .after(&message)
            .ok_or_else(|| format!("unexpected {} in phase {phase:?}", worker_message(&message)))?;
        match message {
            FromWorker::Log(record) => {
                if !is_plausible(&record) {
                    return Err("a log record that is too long".into());
                }
                #[cfg(feature = "red-team")]
                crate::sys::process::call_for_test(&record.text);
                let single = self.speaker(None, number).connection;
                let Some(connection) = self.connections.get_mut(number) else { return Ok(()) };
                let layer = record.layer.as_deref().or(Some(&self.plan.plugin));
                // Whatever number it gives itself.
                let speaker = Speaker { layer, connection: single };
                let own = Some(&mut connection.quota);
                self.log.about(connection.key, own, speaker, record.level, &record.text);
            }
            FromWorker::Shutdown if self.may_shutdown() => self.stop(0),
            FromWorker::Shutdown => return Err(UNDECLARED_SHUTDOWN.into()),
            FromWorker::Refused { syscall } => self.worker_refused(number, syscall),
            FromWorker::Broker => self.broker_wanted(number, link)?,
            FromWorker::Key(request) => self.queue_signature(number, request)?,
            FromWorker::Serving { export } => {
                // One that is not known any more has ended.
                if self.enters_transmission(number, export) == Err(Violation::Serving) {
                    return Err("an export that cannot be".into());
                }
            }
        }
        Ok(())
    }

    /// A worker's last words.
    fn worker_refused(&mut self, number: u64, syscall: u32) {
        let Some(connection) = self.connections.get_mut(number) else { return };
        let client = connection.to_string();
        let pid = connection.pid.map_or_else(|| "unknown".to_owned(), |pid| pid.to_string());
        self.connection_error(
            number,
            &format!(
                "the sandbox refused system call {} to the worker (pid {pid}, {client}, stack {})",
                syscalls::describe(syscall),
                self.plan.recipe.stack()
            ),
        );
    }

    /// Ends a worker that breaks the rules. Its end is reported by the template in the usual way.
    pub(super) fn worker_violates(&mut self, number: u64, what: &str) {
        let Some(connection) = self.connections.get_mut(number) else { return };
        let client = connection.to_string();
        let pid = connection.pid.map_or_else(|| "unknown".to_owned(), |pid| pid.to_string());
        self.connection_error(
            number,
            &format!("the worker (pid {pid}, {client}) broke the rules and is ended: {what}"),
        );
        self.end_worker(number);
    }

    /// A connection is over. `exit` is `None` if nobody can say how.
    ///
    /// # Errors
    /// There was no such connection.
    pub(super) fn connection_ended(
        &mut self,
        number: u64,
        exit: Option<WorkerExit>,
    ) -> Result<(), Violation> {
        // What the worker said last may still be in its channel.
        if let Some(link) = self.links.remove(&number) {
            self.read_worker(number, &link, LAST_WORDS);
            self.forget(&link.as_fd().as_raw_fd());
        }
        self.unread.remove(&number);
        self.brokers.waiting.remove(&number);
        let mut connection = self.connections.remove(number)?;
        if let Some(client) = connection.client.take()
            && self.may_return(&connection, exit)
        {
            self.log.debug(|| format!("waits for the next template: {connection}"));
            self.wait_for_room(client, connection.peer, Instant::now());
            return Ok(());
        }
        let now = Instant::now();
        if connection.gave_way {
            let text = format!("handshake ended in favour of a newer client's ({connection})");
            self.report_turned_away(number, &text, now);
        } else if exit == Some(WorkerExit::Deadline) {
            let report = WorkerExit::Deadline.report().unwrap_or_default();
            self.report_turned_away(number, &format!("{report} ({connection})"), now);
        } else if let Some(report) = exit.and_then(WorkerExit::report) {
            let text = format!("{report} ({connection})");
            self.log.about(connection.key, None, self.speaker(None, number), Level::Error, &text);
        }
        if self.log.verbose() {
            let exit = exit.map_or_else(|| "unknown".to_owned(), |exit| format!("{exit:?}"));
            let text = format!("connection ended: {exit} ({connection})");
            self.log.write(self.speaker(None, number), Level::Debug, &text);
        }
        if self.plan.mode == Some(crate::cli::command_line::ServiceMode::Stdin) {
            self.stop(0);
        }
        self.stop_if_retired();
        self.replace_if_broker_lost();
        Ok(())
    }
}

/// What is left of a source.
enum Rest {
    Nothing,
    More,
    Closed,
}

pub(super) fn is_plausible(record: &LogRecord) -> bool {
    record.text.len() <= MAX_LOG_TEXT
        && record.layer.as_ref().is_none_or(|layer| layer.len() <= MAX_LAYER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_that_are_too_long_are_not_plausible() {
        let record = |layer: usize, text: usize| LogRecord {
            level: Level::Error,
            layer: Some("l".repeat(layer)),
            connection: 1,
            text: "t".repeat(text),
        };
        assert!(is_plausible(&record(MAX_LAYER, MAX_LOG_TEXT)));
        assert!(!is_plausible(&record(MAX_LAYER + 1, 0)));
        assert!(!is_plausible(&record(0, MAX_LOG_TEXT + 1)));
    }
}
