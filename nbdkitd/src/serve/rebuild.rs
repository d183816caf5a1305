//! When a template that ended is replaced, and by whom.

#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use mio::Interest;
use mio::unix::SourceFd;
use nbdkit_ipc::messages::EnterService;
use nix::unistd::Pid;

use super::cgroup::Groups;
use super::{SPAWNER, Server, Stage};
use crate::cli::command_line::ServiceMode;
use crate::sockets::PrivateDirectory;
use crate::spawner::{Answer, Spawner};
use crate::{confine, errno_text};

/// At most so many in [`PERIOD`]: one that always dies is no service, and each death is a chance for an attacker to
/// guess again.
const MOST: usize = 5;
const PERIOD: Duration = Duration::from_secs(60);

/// Before all but the first.
const DELAY: Duration = Duration::from_secs(1);

/// The latest replacements.
#[derive(Debug, Default)]
pub(super) struct Rebuilds(VecDeque<Instant>);

impl Rebuilds {
    /// When the next may be made; `None` if there were too many.
    pub(super) fn next(&mut self, now: Instant) -> Option<Instant> {
        while self.0.front().is_some_and(|past| now.saturating_duration_since(*past) >= PERIOD) {
            self.0.pop_front();
        }
        if self.0.len() >= MOST {
            return None;
        }
        let at = if self.0.is_empty() { now } else { now + DELAY };
        self.0.push_back(at);
        Some(at)
    }
}

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

    pub(super) fn rebuild_if_due(&mut self, now: Instant) {
        if self.rebuild_at.is_none_or(|at| now < at) {
            return;
        }
        self.rebuild_at = None;
        let begun = match &self.maker {
            Maker::Ourselves => {
                let template = self.plan.recipe.start_again(&self.service());
                template.and_then(|template| self.listen_to_template(template))
            }
            Maker::Spawner(spawner) => {
                spawner.ask().map_err(|error| format!("spawner: {}", errno_text(&error)))
            }
            Maker::Nobody => Err("there is nobody to make a new template".to_owned()),
        };
        if let Err(line) = begun {
            self.fail(&line);
        }
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
            Answer::Template(template) => {
                if let Err(line) = self.listen_to_template(*template) {
                    self.fail(&line);
                }
            }
            Answer::Failed(line) => self.fail(&line),
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
                    self.fail("there is nobody to make a new template");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_immediate_and_the_sixth_within_a_minute_is_refused() {
        let start = Instant::now();
        let mut rebuilds = Rebuilds::default();
        assert_eq!(rebuilds.next(start), Some(start));
        for _ in 1..MOST {
            assert_eq!(rebuilds.next(start), Some(start + DELAY));
        }
        assert_eq!(rebuilds.next(start), None);
        let later = start + PERIOD + DELAY;
        assert_eq!(rebuilds.next(later), Some(later));
    }
}
