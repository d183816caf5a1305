//! By whom a template that ended is replaced, and what is made of an attempt that fails: the clients that are served go on,
//! and it is tried again. [`schedule`](super::schedule) says when.

#![forbid(unsafe_code)]

use std::os::fd::RawFd;
use std::time::Instant;

use mio::Interest;
use mio::unix::SourceFd;
use nbdkit_ipc::messages::{EnterService, LogRecord};
use nbdkit_ipc::phase::Phase;
use nix::unistd::Pid;

use super::cgroup::Groups;
use super::schedule::START_LIMIT;
use super::{SPAWNER, Server, Stage};
use crate::cli::command_line::ServiceMode;
use crate::log::Level;
use crate::sockets::PrivateDirectory;
use crate::spawner::{Answer, Spawner};
use crate::{confine, errno_text};

/// Who makes a new template.
pub(super) enum Maker {
    /// This process, which is not confined.
    Ourselves,
    /// Another one.
    Spawner(Spawner),
    /// Nobody: one that ends is not replaced.
    Nobody,
}

impl Server {
    /// What the template is to become.
    pub(super) fn service(&self) -> EnterService {
        EnterService {
            user: self.plan.identity.user,
            group: self.plan.identity.group,
            background: !self.plan.options.foreground,
            forked: !self.plan.options.foreground || self.plan.options.run.is_some(),
        }
    }

    /// Closes the listener's sandbox. Must not yet be called while there are programs to be run.
    pub(super) fn confine(&mut self) -> Result<(), String> {
        if !self.is_sandboxed() {
            return Ok(());
        }
        self.maker = Maker::Nobody;
        let replaceable = self.configured.as_ref().is_some_and(|configured| configured.replaceable);
        let single = self.plan.mode == Some(ServiceMode::Stdin);
        let replaces = replaceable && !single && self.plan.recipe.repeatable();
        if replaces || self.private.is_some() {
            let private = self.private.as_ref().map(PrivateDirectory::path);
            let service = replaces.then(|| self.service());
            let gains =
                replaces && self.configured.as_ref().is_none_or(|it| it.programs || it.undeclared);
            let spawner = Spawner::start(&self.plan.recipe, service.as_ref(), private, gains)?;
            self.private.iter_mut().for_each(PrivateDirectory::leave_to_spawner);
            self.poll
                .registry()
                .register(&mut SourceFd(&spawner.raw_fd()), SPAWNER, Interest::READABLE)
                .map_err(|error| format!("epoll_ctl: {}", errno_text(&error)))?;
            self.maker = Maker::Spawner(spawner);
            // Without /proc nobody follows.
            self.groups = Groups::of_this_process().ok();
        }
        // After all that was executed.
        self.leave_root()?;
        confine::confine(&self.log)
    }

    /// The spawner's process id, if there is one.
    pub(super) fn spawner_pid(&self) -> Option<Pid> {
        match &self.maker {
            Maker::Spawner(spawner) => Some(spawner.pid()),
            Maker::Ourselves | Maker::Nobody => None,
        }
    }

    /// Ends the spawner, if there is one, and reaps it.
    pub(super) fn end_spawner(&mut self) {
        if let Maker::Spawner(spawner) = std::mem::replace(&mut self.maker, Maker::Nobody)
            && !spawner.end()
            && let Some(private) = &self.private
        {
            let path = private.path().display();
            self.log.error(&format!("the spawner has ended too soon: {path} is not removed"));
        }
    }

    /// The template has died in service: the server goes on without one until there is a new one, if there can be one.
    pub(super) fn plan_rebuild(&mut self, now: Instant) {
        if !self.plan.recipe.repeatable() {
            return self.retire("a parameter was read from a descriptor");
        }
        if self.configured.as_ref().is_some_and(|configured| !configured.replaceable) {
            return self.retire("what clients wrote would be missing from its disk");
        }
        let (at, too_often) = self.schedule.died(now);
        if too_often && self.connections.is_empty() {
            self.fail("the template ended too often and is not replaced again");
        } else if too_often {
            self.log.error(&format!(
                "the template ended too often: it is replaced in {} s, clients that are served: {}",
                at.saturating_duration_since(now).as_secs().max(1),
                self.connections.len()
            ));
        }
    }

    /// No template and no new one: the clients that there are go on, others find nobody listening, and the server ends
    /// with the last of them.
    pub(super) fn retire(&mut self, why: &str) {
        self.retiring = true;
        self.schedule.stop();
        self.forget_clients();
        self.serve_waiting();
        self.close_listeners();
        // Said when it is true: whoever reads it may rely on it.
        self.log.error(&format!(
            "the template cannot be replaced, since {why}; no more clients are served"
        ));
        self.stop_if_retired();
    }

    pub(super) fn stop_if_retired(&mut self) {
        if self.retiring && self.connections.is_empty() {
            self.stop(1);
        }
    }

    /// Begins to replace a template that has ended, if it is time, and ends an attempt that takes too long.
    pub(super) fn replace_template(&mut self, now: Instant) {
        if self.schedule.take_overdue(now) {
            self.give_up_attempt();
        }
        if !self.schedule.begin_if_due(now) {
            return;
        }
        let begun = match &self.maker {
            Maker::Ourselves => {
                let template = self.plan.recipe.start_again(&self.service());
                template.and_then(|template| self.listen_to_template(template))
            }
            Maker::Spawner(spawner) => {
                spawner.ask().map_err(|error| format!("spawner: {}", errno_text(&error)))
            }
            Maker::Nobody => return self.retire("there is nobody to make a new one"),
        };
        if let Err(why) = begun {
            self.attempt_failed(&why, now);
        }
    }

    /// A new template has taken too long. It is killed; when it has ended, the attempt has failed.
    fn give_up_attempt(&mut self) {
        let limit = START_LIMIT.as_secs();
        match &mut self.template {
            Some(template) => {
                template.set_failure(format!(
                    "the new one (pid {}) was not ready in {limit} seconds and is killed",
                    template.pid()
                ));
                template.kill();
            }
            None => self.log.error(&format!(
                "cannot replace the template: the spawner has not answered for {limit} seconds"
            )),
        }
    }

    /// What a template that has yet to serve says is wrong is why it does not come to that.
    pub(super) fn note_failure(&mut self, record: &LogRecord) {
        /// Characters. All of it is in the template's own line.
        const MOST: usize = 200;
        let template = self.template.as_mut().filter(|it| it.phase() != Phase::Serving);
        let Some(template) = template.filter(|_| record.level == Level::Error) else { return };
        let layer = record.layer.iter().map(|layer| format!("{layer}: "));
        let text: String = layer.chain([record.text.clone()]).collect();
        template.set_failure(text.chars().take(MOST).collect::<String>());
    }

    /// There is no new template. Whoever is served goes on.
    pub(super) fn attempt_failed(&mut self, why: &str, now: Instant) {
        let delay = self.schedule.failed(now).as_secs();
        self.log.error(&format!(
            "cannot replace the template: {why}; retry in {delay} s, clients that are served: {}",
            self.connections.len()
        ));
    }

    /// Takes the template that the spawner has made, or hears why there is none.
    pub(super) fn read_spawner(&mut self) {
        while self.spawner_unread
            && let Maker::Spawner(spawner) = &self.maker
        {
            let (fd, answer) = (spawner.raw_fd(), spawner.receive());
            self.spawner_answers(fd, answer);
        }
    }

    fn spawner_answers(&mut self, fd: RawFd, answer: Answer) {
        match answer {
            Answer::Nothing => self.spawner_unread = false,
            // Too late: it ends when it finds its channel closed.
            Answer::Template(_) if self.stage == Stage::Stopping => {}
            // Nobody has asked for it.
            Answer::Template(template) if !self.awaits_spawner() => template.kill(),
            Answer::Template(template) => {
                let now = Instant::now();
                self.schedule.answered(now);
                if let Err(why) = self.listen_to_template(*template) {
                    self.attempt_failed(&why, now);
                }
            }
            Answer::Failed(why) if self.awaits_spawner() => {
                self.attempt_failed(&why, Instant::now());
            }
            // It is about one that has come.
            Answer::Failed(_) => {}
            Answer::Gone => {
                self.forget(&fd);
                let replaces = matches!(&self.maker, Maker::Spawner(it) if it.replaces());
                self.end_spawner();
                if self.stage == Stage::Stopping || !replaces {
                    return;
                }
                // Noted now; what it means shows when a template ends.
                self.log.error("the spawner has ended: a template that ends is not replaced");
                if self.stage == Stage::Serving && self.template.is_none() && !self.retiring {
                    self.retire("there is nobody to make a new one");
                }
            }
        }
    }

    /// Whether the spawner was asked for a template and has not answered.
    fn awaits_spawner(&self) -> bool {
        self.schedule.is_starting() && self.template.is_none() && self.stage == Stage::Serving
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
    fn a_template_that_nobody_has_asked_for_is_killed_and_one_that_comes_late_is_taken() {
        let mut listener = Listener::new(1, false).unwrap();
        listener.template_ends();
        let server = &mut listener.server;
        let (unwanted, mut child) = template();
        server.spawner_answers(-1, Answer::Template(unwanted));
        assert!(server.template.is_none());
        assert!(!child.wait().unwrap().success());
        // An answer about an attempt that is over changes nothing.
        let next = server.schedule.next(Instant::now());
        server.spawner_answers(-1, Answer::Failed(String::new()));
        assert_eq!(server.schedule.next(Instant::now()), next);
        let begun = Instant::now() + START_LIMIT;
        assert!(server.schedule.begin_if_due(begun));
        assert!(server.schedule.take_overdue(begun + START_LIMIT));
        let (late, mut child) = template();
        server.spawner_answers(-1, Answer::Template(late));
        assert!(server.template.is_some());
        // It has its own time.
        assert!(!server.schedule.take_overdue(Instant::now()));
        assert!(server.schedule.take_overdue(Instant::now() + START_LIMIT));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
