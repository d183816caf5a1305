//! The spawner: a process that is made before the listener confines itself, and makes new templates for it.
//!
//! A template needs to execute, mount, change its user: all that a confined listener cannot do any more, and filters and
//! Landlock are inherited by what one executes. So another process does it, `nbdkit-spawner`. It learns what a template is
//! before the listener confines itself, and then waits for messages with nothing of that in them.
//!
//! The spawner also removes the private directory of `-U -`, when the listener closes the channel: at its end, or because it was
//! killed. There is a spawner only if a template that ended is replaced at all, or if there is such a directory.

#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::Path;

use nbdkit_ipc::messages::{EnterService, SpawnerSetup};
use nbdkit_ipc::process::Process;
use nbdkit_ipc::program::{Program, signals_of_all};
use nbdkit_ipc::{Channel, FromSpawner, Received, RecvError, StackId, ToSpawner, ToTemplate};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::strerror;
use crate::template::{self, Template, TemplateSpec};

/// How long the spawner may take to remove the private directory. It takes longer only if it is just starting a template.
const PATIENCE_MS: u16 = 2000;

/// The listener's end.
#[derive(Debug)]
pub(crate) struct Spawner {
    pid: Pid,
    reaped: bool,
    replaces: bool,
    /// Whether it has a directory to remove.
    removes: bool,
    link: Channel<ToSpawner, FromSpawner>,
}

/// What came from the spawner.
pub(crate) enum Answer {
    /// Nothing yet.
    Nothing,
    /// A template, told what to be.
    Template(Box<Template>),
    /// None, and why: one line.
    Failed(String),
    /// It has ended.
    Gone,
}

impl Spawner {
    /// Makes the process. Must be called while the listener may still execute programs. `service`: what a new template is to
    /// become, if there may be one. `private`: the directory that is removed at the end. `gains`: see
    /// [`SpawnerSetup`].
    ///
    /// # Errors
    /// One line for the user.
    pub(crate) fn start(
        spec: &TemplateSpec,
        service: Option<&EnterService>,
        private: Option<&Path>,
        gains: bool,
    ) -> Result<Spawner, String> {
        let template = spec.program();
        let program = Program {
            path: template::installed("nbdkit-spawner"),
            title: "spawner".to_owned(),
            directory: None,
            ..template.clone()
        };
        let failed = |error: io::Error| {
            format!("cannot start {}: {}", program.path.display(), crate::errno_text(&error))
        };
        // What a terminal sends to all processes must not meet it before it can ignore that. It inherits the mask, and
        // lifts it.
        let usual = SigSet::thread_get_mask().map_err(|errno| failed(errno.into()))?;
        let _ = signals_of_all().thread_block();
        let started = program.start::<ToSpawner, FromSpawner>(&template::OURS);
        let _ = usual.thread_set_mask();
        let (pid, link) = started.map_err(failed)?;
        let (replaces, removes) = (service.is_some(), private.is_some());
        let spawner = Spawner { pid, reaped: false, replaces, removes, link };
        let setup = SpawnerSetup {
            listener: Pid::this().as_raw(),
            private: private.map(Into::into),
            gains,
            replaces,
            program: template.path.clone().into(),
            directory: template.directory.clone().map(Into::into),
            title: template.title.clone(),
            spared: template.spared,
        };
        let known = service
            .into_iter()
            .flat_map(|service| spec.messages().chain([ToTemplate::EnterService(service.clone())]));
        let messages = [ToSpawner::Setup(setup)]
            .into_iter()
            .chain(known.map(|message| ToSpawner::Know(Box::new(message))))
            .chain([ToSpawner::SetupEnd]);
        for message in messages {
            // It does nothing but take them until they end, so this does not wait for long.
            spawner.link.send(&message, &[]).map_err(|error| match error.raw_os_error() {
                Some(libc::EMSGSIZE) => template::TOO_LONG.to_owned(),
                _ => failed(error),
            })?;
        }
        Ok(spawner)
    }

    /// Whether it makes templates.
    pub(crate) fn replaces(&self) -> bool {
        self.replaces
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// The descriptor, for polling.
    pub(crate) fn raw_fd(&self) -> RawFd {
        self.link.as_fd().as_raw_fd()
    }

    /// Asks for a template.
    ///
    /// # Errors
    /// It has ended.
    pub(crate) fn ask(&self) -> io::Result<()> {
        self.link.try_send(&ToSpawner::Start { stack: StackId::ONLY }, &[])
    }

    /// Has it move itself and the template, and what descends from that, to the listener's control groups.
    pub(crate) fn follow(&self, template: Pid) {
        let _ = self.link.try_send(&ToSpawner::Follow { template: template.as_raw() }, &[]);
    }

    /// What it has answered.
    pub(crate) fn receive(&self) -> Answer {
        match self.link.try_recv() {
            Ok(Received {
                message: FromSpawner::Started { stack: StackId::ONLY, pid },
                fds,
                ..
            }) => match <[_; 1]>::try_from(fds) {
                Ok([fd]) => Answer::Template(Box::new(Template::adopt(pid, fd))),
                Err(_) => Answer::Gone,
            },
            Ok(Received {
                message: FromSpawner::Failed { stack: StackId::ONLY, errno }, ..
            }) => Answer::Failed(format!(
                "cannot start a template: {}",
                strerror(Errno::from_raw(errno))
            )),
            Err(RecvError::Empty | RecvError::Io(Errno::EINTR)) => Answer::Nothing,
            // Its answers about a stack that it was not asked for have no meaning, either.
            Ok(_) | Err(_) => Answer::Gone,
        }
    }

    /// It was reaped: its number may be another's from now on.
    pub(crate) fn set_reaped(&mut self) {
        self.reaped = true;
    }

    /// Ends it and waits for that: whoever adopts the listener's children may never reap them. Returns whether it has done what
    /// it has to do in the end.
    pub(crate) fn end(self) -> bool {
        let Spawner { pid, reaped, removes, link, .. } = self;
        if reaped {
            return !removes;
        }
        // It ends when it finds its channel closed.
        drop(link);
        if !removes || !ends_soon(pid) {
            let _ = kill(pid, Signal::SIGKILL);
        }
        let status = loop {
            match waitpid(pid, None) {
                Err(Errno::EINTR) => {}
                status => break status,
            }
        };
        !removes || matches!(status, Ok(WaitStatus::Exited(..)))
    }
}

/// Waits until a child of ours has ended, for [`PATIENCE_MS`] at most.
fn ends_soon(pid: Pid) -> bool {
    let Ok(process) = Process::open(pid) else { return false };
    let mut ended = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
    loop {
        match poll(&mut ended, PollTimeout::from(PATIENCE_MS)) {
            Err(Errno::EINTR) => {}
            ended => return ended == Ok(1),
        }
    }
}
