//! By whom a template that ended is replaced, and what follows from an attempt that fails: the
//! clients that are served go on, and the listener retries, when [`schedule`](super::schedule)
//! decides.

#![forbid(unsafe_code)]

use std::os::fd::RawFd;
use std::time::Instant;

use mio::Interest;
use nbdkit_ipc::messages::{EnterService, LogRecord};
use nbdkit_ipc::phase::Phase;
use nix::unistd::Pid;

use super::TemplateSlot;
use super::cgroup::Groups;
use super::schedule::START_LIMIT;
use crate::error::StartError;
use crate::log::Level;
use crate::serve::SPAWNER;
use crate::serve::context::Context;
use crate::serve::reopen::reopened;
use crate::serve::shutdown::Stage;
use crate::sockets::PrivateDirectory;
use crate::spawner::{Answer, Spawner};
use crate::system_error::SystemError;

/// Nobody is left who could start a template.
const NO_MAKER: &str = "there is nobody to make a new one";

/// Who starts a new template.
pub(in crate::serve) enum Maker {
    /// This process, which is not confined.
    Ourselves,
    /// The spawner.
    Spawner(Spawner),
    /// Nobody: a template that ends is not replaced.
    Nobody,
}

/// What follows from the end of a template that has served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::serve) enum Death {
    /// It is replaced when the schedule decides.
    Replace,
    /// It cannot be replaced, for this reason.
    StopAccepting(&'static str),
    /// It has died too often, and there are no clients for whose sake to go on.
    Fail,
}

impl TemplateSlot {
    /// What the template is to become.
    pub(in crate::serve) fn service(context: &Context) -> EnterService {
        let plan = context.plan();
        EnterService {
            user: plan.identity.user,
            group: plan.identity.group,
            background: !plan.options.foreground,
            forked: !plan.options.foreground || plan.options.run.is_some(),
        }
    }

    /// Starts the spawner, if a template can be replaced, if there is a private directory to be
    /// removed, or a log file to be opened anew. Must be called before the listener confines
    /// itself. From then on the listener itself starts no template.
    ///
    /// # Errors
    /// The program cannot be started, or its channel not be polled.
    pub(in crate::serve) fn start_spawner(
        &mut self,
        private: Option<&mut PrivateDirectory>,
        context: &Context,
    ) -> Result<(), StartError> {
        self.maker = Maker::Nobody;
        let plan = context.plan();
        let replaces = self.configured.as_ref().is_some_and(|configured| configured.replaceable)
            && !context.is_single()
            && plan.spec.repeatable();
        let log = context.log().file();
        if !replaces && private.is_none() && log.is_none() {
            return Ok(());
        }
        let service = replaces.then(|| Self::service(context));
        let gains =
            replaces && self.configured.as_ref().is_none_or(|it| it.programs || it.undeclared);
        let path = private.as_deref().map(PrivateDirectory::path);
        let spawner = Spawner::start(&plan.spec, service.as_ref(), path, log.as_deref(), gains)?;
        private.into_iter().for_each(PrivateDirectory::leave_to_spawner);
        context
            .register(spawner.raw_fd(), SPAWNER, Interest::READABLE)
            .map_err(SystemError::in_call("epoll_ctl"))?;
        self.maker = Maker::Spawner(spawner);
        // Without /proc the other processes do not follow the listener.
        self.groups = Groups::of_this_process().ok();
        Ok(())
    }

    fn spawner(&self) -> Option<&Spawner> {
        match &self.maker {
            Maker::Spawner(spawner) => Some(spawner),
            Maker::Ourselves | Maker::Nobody => None,
        }
    }

    /// The spawner's process id, if there is one.
    pub(in crate::serve) fn spawner_pid(&self) -> Option<Pid> {
        self.spawner().map(Spawner::pid)
    }

    /// The spawner's process was reaped.
    pub(in crate::serve) fn set_spawner_reaped(&mut self) {
        if let Maker::Spawner(spawner) = &mut self.maker {
            spawner.set_reaped();
        }
    }

    /// Ends the spawner, if there is one, and reaps it.
    pub(in crate::serve) fn end_spawner(
        &mut self,
        private: Option<&PrivateDirectory>,
        context: &Context,
    ) {
        if let Maker::Spawner(spawner) = std::mem::replace(&mut self.maker, Maker::Nobody)
            && !spawner.end()
            && let Some(private) = private
        {
            let path = private.path().display();
            context.log().error(&format!("the spawner has ended too soon: {path} is not removed"));
        }
    }

    /// The template has died in service: the server goes on without one until there is a new one,
    /// if there can be one.
    pub(in crate::serve) fn died(
        &mut self,
        clients: usize,
        now: Instant,
        context: &Context,
    ) -> Death {
        if !context.plan().spec.repeatable() {
            return Death::StopAccepting("a parameter was read from a descriptor");
        }
        if self.configured.as_ref().is_some_and(|configured| !configured.replaceable) {
            return Death::StopAccepting("what clients wrote would be missing from its disk");
        }
        let (at, too_often) = self.schedule.died(now);
        if too_often && clients == 0 {
            return Death::Fail;
        }
        if too_often {
            context.log().error(&format!(
                "the template ended too often: it is replaced in {} s, clients that are served: {clients}",
                at.saturating_duration_since(now).as_secs().max(1),
            ));
        }
        Death::Replace
    }

    /// Begins to replace a template that has ended, if it is time, and ends an attempt that takes
    /// too long.
    ///
    /// # Errors
    /// The template cannot be replaced; why.
    pub(in crate::serve) fn replace_if_due(
        &mut self,
        clients: usize,
        now: Instant,
        context: &Context,
    ) -> Result<(), &'static str> {
        if self.schedule.take_overdue(now) {
            self.abort_attempt(context);
        }
        if !self.schedule.begin_if_due(now) {
            return Ok(());
        }
        let begun: Result<(), StartError> = match &self.maker {
            Maker::Ourselves => {
                let template = context.plan().spec.start_again(&Self::service(context));
                template
                    .map_err(StartError::from)
                    .and_then(|template| self.install(template, context).map_err(StartError::from))
            }
            Maker::Spawner(spawner) => {
                spawner.ask().map_err(|error| SystemError::in_call("spawner")(error).into())
            }
            Maker::Nobody => return Err(NO_MAKER),
        };
        if let Err(error) = begun {
            self.attempt_failed(&error.to_string(), clients, now, context);
        }
        Ok(())
    }

    /// A new template has taken too long. It is killed; when it has ended, the attempt has failed.
    fn abort_attempt(&mut self, context: &Context) {
        let limit = START_LIMIT.as_secs();
        match self.pid() {
            Some(pid) => self.kill_for(format!(
                "the new one (pid {pid}) was not ready in {limit} seconds and is killed"
            )),
            None => context.log().error(&format!(
                "cannot replace the template: the spawner has not answered for {limit} seconds"
            )),
        }
    }

    /// An error that a template logs before it serves is the reason of its failure to start.
    pub(super) fn note_failure(&mut self, record: &LogRecord) {
        /// Characters. The template's own line has all of it.
        const MOST: usize = 200;
        let template = self.template.as_mut().filter(|it| it.phase() != Phase::Serving);
        let Some(template) = template.filter(|_| record.level == Level::Error) else { return };
        let layer = record.layer.iter().map(|layer| format!("{layer}: "));
        let text: String = layer.chain([record.text.clone()]).collect();
        template.set_failure(text.chars().take(MOST).collect::<String>());
    }

    /// There is no new template. The clients that are served go on, and the listener retries.
    pub(in crate::serve) fn attempt_failed(
        &mut self,
        why: &str,
        clients: usize,
        now: Instant,
        context: &Context,
    ) {
        let delay = self.schedule.failed(now).as_secs();
        context.log().error(&format!(
            "cannot replace the template: {why}; retry in {delay} s, clients that are served: {clients}"
        ));
    }

    /// The spawner's channel is ready.
    pub(in crate::serve) fn set_spawner_ready(&mut self) {
        self.spawner_unread = true;
    }

    /// Takes the spawner's answers: the template that it has started, or why there is none.
    ///
    /// # Errors
    /// The spawner has ended while a template is missing: it cannot be replaced; why.
    pub(in crate::serve) fn read_spawner(
        &mut self,
        stage: Stage,
        clients: usize,
        private: Option<&PrivateDirectory>,
        context: &Context,
    ) -> Result<(), &'static str> {
        while self.spawner_unread
            && let Maker::Spawner(spawner) = &mut self.maker
        {
            let (fd, answer) = (spawner.raw_fd(), spawner.receive());
            if matches!(answer, Answer::Gone) {
                return self.spawner_gone(fd, stage, private, context);
            }
            self.handle_answer(answer, stage, clients, context);
        }
        Ok(())
    }

    fn handle_answer(&mut self, answer: Answer, stage: Stage, clients: usize, context: &Context) {
        match answer {
            // `Gone` is handled by the caller.
            Answer::Nothing | Answer::Gone => self.spawner_unread = false,
            // Too late: it ends when it finds its channel closed.
            Answer::Template(_) if stage == Stage::Stopping => {}
            // One that was not asked for.
            Answer::Template(template) if !self.awaits_spawner(stage) => template.kill(),
            Answer::Template(template) => {
                let now = Instant::now();
                self.schedule.answered(now);
                if let Err(error) = self.install(*template, context) {
                    self.attempt_failed(&error.to_string(), clients, now, context);
                }
            }
            Answer::Failed(why) if self.awaits_spawner(stage) => {
                self.attempt_failed(&why, clients, Instant::now(), context);
            }
            // About an attempt that is over.
            Answer::Failed(_) => {}
            Answer::Log(file) => reopened(file, context),
        }
    }

    fn spawner_gone(
        &mut self,
        fd: RawFd,
        stage: Stage,
        private: Option<&PrivateDirectory>,
        context: &Context,
    ) -> Result<(), &'static str> {
        context.deregister(fd);
        let replaces = self.spawner().is_some_and(Spawner::replaces);
        self.end_spawner(private, context);
        if stage == Stage::Stopping || !replaces {
            return Ok(());
        }
        // Logged now; it matters only when a template ends.
        context.log().error("the spawner has ended: a template that ends is not replaced");
        if stage == Stage::Serving && self.template.is_none() && !self.stopped_accepting {
            return Err(NO_MAKER);
        }
        Ok(())
    }

    /// Whether the spawner was asked for a template and has not answered.
    fn awaits_spawner(&self, stage: Stage) -> bool {
        self.is_starting() && stage == Stage::Serving
    }

    /// A client has come: before it is sent to the template, the other processes follow the
    /// listener into another control group, if it was moved.
    pub(in crate::serve) fn follow_groups(&mut self, now: Instant, context: &Context) {
        if let (Some(groups), Maker::Spawner(spawner), Some(template)) =
            (&mut self.groups, &self.maker, &self.template)
            && groups.changed(now)
        {
            spawner.follow(template.pid());
            context
                .log()
                .debug(|| "moved to another control group: the template follows".to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::fuzz::Listener;
    use crate::template::{Origin, Template};
    use nbdkit_ipc::Channel;
    use std::process::Command;

    /// A template, which is a child of this process, as the spawner sends it.
    fn template() -> (Box<Template>, std::process::Child) {
        let child = Command::new("/bin/sleep").arg("60").spawn().unwrap();
        let (link, _) = Channel::pair().unwrap();
        let pid = Pid::from_raw(child.id().cast_signed());
        (Box::new(Template::new(pid, link, Origin::Rebuild)), child)
    }

    #[test]
    fn a_template_that_was_not_asked_for_is_killed_and_a_late_one_is_installed() {
        let mut listener = Listener::new(1, false).unwrap();
        listener.template_ends();
        let (slot, context) = (&mut listener.server.slot, &listener.server.context);
        let (unwanted, mut child) = template();
        slot.handle_answer(Answer::Template(unwanted), Stage::Serving, 1, context);
        assert!(slot.template.is_none());
        assert!(!child.wait().unwrap().success());
        // An answer about an attempt that is over changes nothing.
        let next = slot.schedule.next(Instant::now());
        slot.handle_answer(Answer::Failed(String::new()), Stage::Serving, 1, context);
        assert_eq!(slot.schedule.next(Instant::now()), next);
        let begun = Instant::now() + START_LIMIT;
        assert!(slot.schedule.begin_if_due(begun));
        assert!(slot.schedule.take_overdue(begun + START_LIMIT));
        let (late, mut child) = template();
        slot.handle_answer(Answer::Template(late), Stage::Serving, 1, context);
        assert!(slot.template.is_some());
        // It has its own time.
        assert!(!slot.schedule.take_overdue(Instant::now()));
        assert!(slot.schedule.take_overdue(Instant::now() + START_LIMIT));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
