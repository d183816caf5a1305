//! The template of the stack, from its start to its replacement: the process and its channel, what
//! it has declared, its broker, and the spawner or schedule by which another takes its place.
//!
//! - `broker`: the broker of the template, and channels to it
//! - `replace`: starting the next template; `schedule`: when; `cgroup`: moving with the listener

#![forbid(unsafe_code)]

mod broker;
mod cgroup;
mod replace;
mod schedule;

use std::io::ErrorKind;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use mio::Interest;
use nbdkit_ipc::messages::{Configured, EnterService, Isolation, LogRecord, Serve};
use nbdkit_ipc::phase::Phase;
use nbdkit_ipc::{ToTemplate, WorkerExit};
use nix::errno::Errno;
use nix::unistd::Pid;

use super::TEMPLATE;
use super::context::Context;
use super::workers::Workers;
use crate::connections::Connection;
use crate::log::{Quota, Speaker};
use crate::system_error::{self, SystemError};
use crate::template::ProgramError;
use crate::template::{Incoming, Origin, Template};
use broker::BrokerSlot;
use cgroup::Groups;
pub(super) use replace::{Death, Maker};
use schedule::Schedule;

/// Error lines that the template may cause: at once, and each second. Many clients may share it.
const LINES: (u32, u32) = (1000, 200);

/// How long a template may live that has closed its channel.
const CLOSED_TIMEOUT: Duration = Duration::from_secs(1);

/// The slot of the stack's template. It is empty between the end of one template and the start of
/// the next.
pub(super) struct TemplateSlot {
    template: Option<Template>,
    quota: Quota,
    /// Until when the template has to end, since it has closed its channel.
    close_timeout: Option<Instant>,
    /// Process ids of templates that have ended; their workers may go on.
    former: Vec<Pid>,
    /// What the latest template has declared. Not all of it may change: see
    /// [`startup`](super::startup).
    configured: Option<Configured>,
    broker: BrokerSlot,
    /// When templates are replaced.
    schedule: Schedule,
    maker: Maker,
    /// The listener's control groups, where there is a spawner that can move the other processes.
    groups: Option<Groups>,
    unread: bool,
    /// Whether the template's channel is polled for room, too.
    polled_for_room: bool,
    spawner_unread: bool,
    /// There is no template and there will be none.
    stopped_accepting: bool,
}

impl TemplateSlot {
    pub(super) fn new(now: Instant) -> TemplateSlot {
        TemplateSlot {
            template: None,
            quota: Quota::new(LINES.0, LINES.1, now),
            close_timeout: None,
            former: Vec::new(),
            configured: None,
            broker: BrokerSlot::default(),
            schedule: Schedule::default(),
            maker: Maker::Ourselves,
            groups: None,
            unread: false,
            polled_for_room: false,
            spawner_unread: false,
            stopped_accepting: false,
        }
    }

    /// Puts a template into the slot and begins to poll its channel.
    ///
    /// # Errors
    /// epoll_ctl(2)'s; the template was killed.
    pub(super) fn install(
        &mut self,
        template: Template,
        context: &Context,
    ) -> Result<(), SystemError> {
        if let Err(error) = context.register(template.raw_fd(), TEMPLATE, Interest::READABLE) {
            template.kill();
            return Err(SystemError::in_call("epoll_ctl")(error));
        }
        self.polled_for_room = false;
        self.set(template);
        Ok(())
    }

    /// Has the template's channel polled for room as long as a message waits for it, and not
    /// otherwise: each message that the template takes makes room, and would wake the listener.
    pub(super) fn poll_for_room(&mut self, context: &Context) {
        let Some(template) = &self.template else { return };
        let waits = template.waits_for_room();
        if waits != self.polled_for_room {
            self.polled_for_room = waits;
            let room = waits.then_some(Interest::WRITABLE);
            let interest = room.map_or(Interest::READABLE, |room| Interest::READABLE | room);
            context.reregister(template.raw_fd(), TEMPLATE, interest);
        }
    }

    /// Whether the template's channel had no room for the last message.
    pub(super) fn waits_for_room(&self) -> bool {
        self.template.as_ref().is_some_and(Template::waits_for_room)
    }

    /// Puts a template into the slot whose channel is polled by nobody, or already.
    pub(super) fn set(&mut self, template: Template) {
        self.template = Some(template);
    }

    /// The template, unless there is none at the moment.
    pub(super) fn template(&self) -> Option<&Template> {
        self.template.as_ref()
    }

    pub(super) fn pid(&self) -> Option<Pid> {
        self.template.as_ref().map(Template::pid)
    }

    pub(super) fn broker_pid(&self) -> Option<Pid> {
        self.broker.pid()
    }

    /// By whom a template is replaced, and the log file opened.
    pub(super) fn maker_mut(&mut self) -> &mut Maker {
        &mut self.maker
    }

    /// Whether the template accepts clients.
    pub(super) fn is_serving(&self) -> bool {
        self.template.as_ref().is_some_and(|template| template.phase() == Phase::Serving)
    }

    /// There is no template and there will be none.
    pub(super) fn has_stopped_accepting(&self) -> bool {
        self.stopped_accepting
    }

    /// No template is made any more.
    pub(super) fn stop_accepting(&mut self) {
        self.stopped_accepting = true;
        self.schedule.stop();
    }

    /// No template is made any more, since the server stops.
    pub(super) fn stop_replacing(&mut self) {
        self.schedule.stop();
    }

    pub(super) fn configured(&self) -> Option<&Configured> {
        self.configured.as_ref()
    }

    /// The template was configured, and has declared this.
    pub(super) fn set_configured(&mut self, configured: Configured) {
        self.configured = Some(configured);
    }

    /// Whether the stack serves one client at a time.
    pub(super) fn one_client(&self) -> bool {
        self.configured.as_ref().is_some_and(|configured| configured.one_client)
    }

    /// How clients are divided over processes, once the stack is configured.
    pub(super) fn isolation(&self) -> Option<Isolation> {
        self.configured.as_ref().map(|configured| configured.isolation)
    }

    /// Whether one process serves all clients.
    pub(super) fn is_shared(&self) -> bool {
        self.isolation() == Some(Isolation::Shared)
    }

    /// Whether the stack has declared that it may stop the server. Else it is one client's way to
    /// stop it for all.
    pub(super) fn may_shutdown(&self) -> bool {
        self.configured.as_ref().is_some_and(|configured| configured.may_shutdown)
    }

    /// Whether clients of the stack that are idle can give up their workers.
    pub(super) fn can_park(&self) -> bool {
        self.configured.as_ref().is_some_and(|configured| configured.can_park)
    }

    /// Whether the stack runs programs.
    pub(super) fn has_programs(&self) -> bool {
        self.configured.as_ref().is_some_and(|configured| configured.programs)
    }

    /// Whether a process group is, or was, that of a template.
    pub(super) fn was_template(&self, pid: Pid) -> bool {
        self.former.contains(&pid)
    }

    /// The template's channel is ready.
    pub(super) fn set_ready(&mut self) {
        self.unread = true;
    }

    /// Whether there may be more messages of the template.
    pub(super) fn is_ready(&self) -> bool {
        self.unread
    }

    /// The same, and it is false from now on.
    pub(super) fn take_ready(&mut self) -> bool {
        std::mem::take(&mut self.unread)
    }

    /// Sends the template what is queued for it.
    ///
    /// # Errors
    /// A parameter does not fit a message. Other errors mean that the template has ended.
    pub(super) fn flush(&mut self) -> Result<(), ProgramError> {
        match self.template.as_mut().map(Template::flush) {
            Some(Err(error)) if error.raw_os_error() == Some(Errno::EMSGSIZE as i32) => {
                Err(ProgramError::ParameterTooLong)
            }
            _ => Ok(()),
        }
    }

    /// Takes a message of the template, if there is one.
    pub(super) fn receive(&mut self) -> Incoming {
        self.template.as_mut().map_or(Incoming::Empty, Template::receive)
    }

    /// Sends the template a message, now or when it takes it.
    pub(super) fn send(&mut self, message: ToTemplate) {
        if let Some(template) = &mut self.template {
            template.send(message);
        }
    }

    /// Tells the first template to enter service.
    pub(super) fn enter_service(&mut self, service: EnterService) {
        if let Some(template) = &mut self.template {
            template.enter_service(service);
        }
    }

    /// A template that the spawner has configured enters service.
    pub(super) fn enters_service(&mut self) {
        if let Some(template) = &mut self.template {
            template.enters_service();
        }
    }

    /// Sends the template a client. False if the template does not take it now, or has ended.
    ///
    /// # Errors
    /// What has failed for lack of descriptors or memory.
    pub(super) fn take(
        &mut self,
        serve: &Serve,
        fds: &[BorrowedFd<'_>],
    ) -> Result<bool, (&'static str, Errno)> {
        let Some(template) = &mut self.template else { return Ok(false) };
        match template.serve(serve, fds) {
            Ok(()) => Ok(true),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::BrokenPipe) => {
                Ok(false)
            }
            Err(error) => Err(("sendmsg", system_error::number(&error))),
        }
    }

    /// The template has closed its channel. It has ended, which is noticed when it is reaped; or it
    /// lives on without one.
    pub(super) fn channel_closed(&mut self, now: Instant, context: &Context) {
        if let Some(template) = &self.template {
            self.close_timeout = Some(now + CLOSED_TIMEOUT);
            context.deregister(template.raw_fd());
        }
    }

    /// Whether a template that has closed its channel should have ended by now. True once.
    pub(super) fn take_close_timeout(&mut self, now: Instant) -> bool {
        self.close_timeout.take_if(|at| now >= *at).is_some()
    }

    /// The template's next deadline.
    pub(super) fn next_deadline(&self, now: Instant) -> Option<Instant> {
        [self.schedule.next(now), self.close_timeout].into_iter().flatten().min()
    }

    pub(super) fn kill(&self) {
        if let Some(template) = &self.template {
            template.kill();
        }
    }

    /// Kills the template, which will then have failed to serve for this reason.
    pub(super) fn kill_for(&mut self, why: impl Into<String>) {
        if let Some(template) = &mut self.template {
            template.set_failure(why);
            template.kill();
        }
    }

    /// Kills a template that violates the protocol. What becomes of its clients is decided when it
    /// has ended.
    pub(super) fn violation(&mut self, what: &str, context: &Context) {
        let Some(template) = &self.template else { return };
        context.deregister(template.raw_fd());
        context
            .log()
            .error(&format!("protocol violation by template {}: {what}; killed", template.pid()));
        self.kill_for(what);
        self.unread = false;
    }

    /// Logs what the template has sent. `connection`: that of the record, if it exists.
    pub(super) fn log(
        &mut self,
        record: &LogRecord,
        connection: Option<&Connection>,
        context: &Context,
    ) {
        self.note_failure(record);
        // As in nbdkit, only lines that concern a connection name the plugin.
        let speaker = connection.map_or(Speaker::default(), |connection| {
            let layer = record.layer.as_deref().or(Some(&context.plan().plugin));
            let client = Some(connection.subject(false));
            Speaker { layer, connection: record.connection, client }
        });
        context.log().record(record, speaker, &mut self.quota);
    }

    /// The template's process was reaped.
    pub(super) fn set_reaped(&mut self) {
        if let Some(template) = &mut self.template {
            template.set_reaped();
        }
    }

    /// Remembers the template as one that had workers.
    pub(super) fn note_former(&mut self) {
        if self.is_serving() {
            self.former.extend(self.pid());
        }
    }

    /// Empties the slot: the template has ended.
    pub(super) fn remove(&mut self, context: &Context) -> Option<Template> {
        let template = self.template.take()?;
        self.unread = false;
        self.close_timeout = None;
        context.deregister(template.raw_fd());
        Some(template)
    }

    /// The template serves, or serves again.
    pub(super) fn succeeded(&mut self, now: Instant) {
        self.schedule.succeeded(now);
    }

    /// Which template it is: of the first start, or a later one.
    pub(super) fn origin(&self) -> Option<Origin> {
        self.template.as_ref().map(Template::origin)
    }

    /// Whether the client of a connection that has ended can be requeued for the next template: no
    /// worker has had it.
    pub(super) fn can_requeue(&self, exit: Option<WorkerExit>) -> bool {
        exit.is_none() && !self.stopped_accepting
    }

    /// Whether there has been no template for so long that clients are disconnected rather than
    /// kept waiting.
    pub(super) fn refuses_clients(&self, workers: &Workers, now: Instant) -> bool {
        self.schedule.refuses_clients(now)
            // Otherwise they wait for another client's end, too.
            && (!self.one_client() || workers.is_empty())
    }

    /// A client was disconnected since there is no template: the next attempt comes sooner.
    pub(super) fn client_refused(&mut self) {
        self.schedule.client_refused();
    }

    /// Whether a new template is on its way, which is not in the slot yet.
    pub(super) fn is_starting(&self) -> bool {
        self.template.is_none() && self.schedule.is_starting()
    }
}
