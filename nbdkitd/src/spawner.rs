//! The spawner: a process that is started before the listener confines itself, and starts new
//! templates for it.
//!
//! A template has to execute a program, mount, and change its user. A confined listener can do none
//! of that, and seccomp filters and Landlock rules are inherited by what it executes. So another
//! process does it, `nbdkit-spawner`. It is sent the template's configuration before the listener
//! confines itself; later messages have none of that in them.
//!
//! The spawner also removes the private directory of `-U -`, when the listener closes the channel:
//! at its end, or because it was killed. And it opens the log file anew (SIGUSR1), which a confined
//! listener cannot. There is a spawner only if a template that ended is replaced at all, or if
//! there is such a directory or such a file.

#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::Path;

use nbdkit_ipc::messages::spawner::SpawnerSetup;
use nbdkit_ipc::messages::{EnterService, Hello, Purpose};
use nbdkit_ipc::process::Process;
use nbdkit_ipc::program::Program;
use nbdkit_ipc::{Channel, FromSpawner, Received, RecvError, StackId, ToSpawner, ToTemplate};
use nbdkit_sandbox::signals;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::strerror;
use crate::template::ProgramError;
use crate::template::{self, Template, TemplateSpec};

/// How long the spawner may take to remove the private directory. It takes longer only if it is
/// just starting a template.
const TIMEOUT_MS: u16 = 2000;

/// The listener's end.
#[derive(Debug)]
pub(crate) struct Spawner {
    pid: Pid,
    reaped: bool,
    replaces: bool,
    /// Whether it has a private directory to remove.
    removes: bool,
    /// How often it was asked for the log file and has not answered.
    log_requests: u32,
    link: Channel<ToSpawner, FromSpawner>,
}

/// What came from the spawner.
pub(crate) enum Answer {
    /// Nothing yet.
    Nothing,
    /// A template, which was sent its configuration.
    Template(Box<Template>),
    /// No template could be started; why, one line.
    Failed(String),
    /// The log file, opened anew, or why it could not be.
    Log(io::Result<File>),
    /// The spawner has ended.
    Gone,
}

impl Spawner {
    /// Starts the spawner. Must be called while the listener may still execute programs. `service`:
    /// how a new template enters service, if there may be one. `private`: the directory that is
    /// removed at the end. `log`: the file that is opened anew. `gains`: see [`SpawnerSetup`].
    ///
    /// # Errors
    /// The program cannot be started.
    pub(crate) fn start(
        spec: &TemplateSpec,
        service: Option<&EnterService>,
        private: Option<&Path>,
        log: Option<&Path>,
        gains: bool,
    ) -> Result<Spawner, ProgramError> {
        let template = spec.program();
        let program = Program {
            path: template::installed("nbdkit-spawner"),
            title: "spawner".to_owned(),
            directory: None,
            ..template.clone()
        };
        let failed = |cause| ProgramError::of(&program, cause);
        // Signals that a terminal sends to all processes must not kill the spawner before it
        // ignores them. It inherits the mask, and lifts it.
        let usual = SigSet::thread_get_mask().map_err(|errno| failed(errno.into()))?;
        let _ = signals::of_all_processes().thread_block();
        let started = program.start::<ToSpawner, FromSpawner>(&template::LISTENER_VARIABLES);
        let _ = usual.thread_set_mask();
        let (pid, link) = started.map_err(failed)?;
        let (replaces, removes) = (service.is_some(), private.is_some());
        let spawner = Spawner { pid, reaped: false, replaces, removes, log_requests: 0, link };
        let setup = SpawnerSetup {
            hello: Hello::ours(),
            listener: Pid::this().as_raw(),
            private: private.map(Into::into),
            log: log.map(Into::into),
            gains,
            replaces,
            program: template.path.clone().into(),
            directory: template.directory.clone().map(Into::into),
            title: template.title.clone(),
            spared: template.spared,
        };
        let known = service
            .into_iter()
            .map(|service| ToTemplate::EnterService(service.clone()))
            .flat_map(|service| spec.messages(Purpose::ServeAgain).chain([service]));
        let messages = [ToSpawner::Setup(setup)]
            .into_iter()
            .chain(known.map(|message| ToSpawner::Know(Box::new(message))))
            .chain([ToSpawner::SetupEnd]);
        for message in messages {
            // The spawner does nothing but read these messages, so this does not wait for long.
            spawner.link.send(&message, &[]).map_err(failed)?;
        }
        Ok(spawner)
    }

    /// Whether the spawner starts templates.
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
    /// EPIPE: the spawner has ended.
    pub(crate) fn ask(&self) -> io::Result<()> {
        self.link.try_send(&ToSpawner::Start { stack: StackId::ONLY }, &[])
    }

    /// Has the spawner move itself, the template and its descendants to the listener's control
    /// groups.
    pub(crate) fn follow(&self, template: Pid) {
        let _ = self.link.try_send(&ToSpawner::Follow { template: template.as_raw() }, &[]);
    }

    /// Asks for the log file.
    ///
    /// # Errors
    /// EPIPE: the spawner has ended. EAGAIN: it has not taken earlier requests.
    pub(crate) fn ask_for_log(&mut self) -> io::Result<()> {
        self.link.try_send(&ToSpawner::OpenLog, &[])?;
        self.log_requests += 1;
        Ok(())
    }

    /// Counts an answer about the log file; whether it was asked for.
    fn was_asked_for_log(&mut self) -> bool {
        let requests = self.log_requests.checked_sub(1);
        self.log_requests = requests.unwrap_or(0);
        requests.is_some()
    }

    /// Takes an answer, if there is one.
    pub(crate) fn receive(&mut self) -> Answer {
        match self.link.try_recv() {
            Ok(Received { message: FromSpawner::Log, fds, lost }) if self.was_asked_for_log() => {
                match <[_; 1]>::try_from(fds) {
                    Ok([fd]) => Answer::Log(Ok(fd.into())),
                    Err(_) if lost => Answer::Log(Err(Errno::EMFILE.into())),
                    Err(_) => Answer::Gone,
                }
            }
            Ok(Received { message: FromSpawner::NoLog { errno }, .. })
                if self.was_asked_for_log() =>
            {
                Answer::Log(Err(io::Error::from_raw_os_error(errno)))
            }
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
            // Nor is a spawner of use that answers what it was not asked for.
            Ok(_) | Err(_) => Answer::Gone,
        }
    }

    /// The spawner was reaped: its process id may be another process's from now on.
    pub(crate) fn set_reaped(&mut self) {
        self.reaped = true;
    }

    /// Ends the spawner and reaps it: the process that adopts the listener's children may never
    /// reap them. Returns whether the private directory was removed, if there is one.
    pub(crate) fn end(self) -> bool {
        let Spawner { pid, reaped, removes, link, .. } = self;
        if reaped {
            return !removes;
        }
        // The spawner ends when its channel is closed.
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

/// Waits until a child of the listener has ended, for [`TIMEOUT_MS`] at most.
fn ends_soon(pid: Pid) -> bool {
    let Ok(process) = Process::open(pid) else { return false };
    let mut ended = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
    loop {
        match poll(&mut ended, PollTimeout::from(TIMEOUT_MS)) {
            Err(Errno::EINTR) => {}
            ended => return ended == Ok(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_file_is_taken_as_often_as_it_was_asked_for() {
        let (link, other) = Channel::<ToSpawner, FromSpawner>::pair().unwrap();
        let new = |link| Spawner {
            pid: Pid::this(),
            reaped: true,
            replaces: false,
            removes: false,
            log_requests: 0,
            link,
        };
        let mut spawner = new(link);
        let file = File::open("/dev/null").unwrap();
        spawner.ask_for_log().unwrap();
        spawner.ask_for_log().unwrap();
        assert_eq!(other.recv().unwrap().message, ToSpawner::OpenLog);
        assert!(matches!(spawner.receive(), Answer::Nothing));
        other.send(&FromSpawner::Log, &[file.as_fd()]).unwrap();
        assert!(matches!(spawner.receive(), Answer::Log(Ok(_))));
        other.send(&FromSpawner::NoLog { errno: libc::EACCES }, &[]).unwrap();
        let Answer::Log(Err(error)) = spawner.receive() else { panic!("an error") };
        assert_eq!(error.raw_os_error(), Some(libc::EACCES));
        other.send(&FromSpawner::Log, &[file.as_fd()]).unwrap();
        assert!(matches!(spawner.receive(), Answer::Gone), "not asked for");
        spawner.ask_for_log().unwrap();
        other.send(&FromSpawner::Log, &[]).unwrap();
        assert!(matches!(spawner.receive(), Answer::Gone), "without a file");
    }
}
