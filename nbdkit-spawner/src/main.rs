//! `nbdkit-spawner`, the spawner. It starts new templates for the listener, which is confined and
//! cannot; opens the log file anew for it; moves the other processes into the control group that
//! the listener was moved into; and removes the private directory of `-U -` when the listener has
//! ended, even if the listener was killed.
//!
//! Only the listener (`nbdkit`) starts it, before it confines itself, with the number of the
//! channel as the one argument. The spawner is a program of its own rather than a fork of the
//! listener: it has no copy of the listener's keys, and a search for processes named `nbdkit` finds
//! only the one to be signalled.
//!
//! The template's configuration is sent once, before the listener confines itself. Later requests
//! do not name what is executed: a listener that was taken over can start more templates, but only
//! with that configuration.

#![forbid(unsafe_code)]

mod cgroup;
mod confine;

use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{env, io};

use nbdkit_ipc::messages::spawner::SpawnerSetup;
use nbdkit_ipc::program::Program;
use nbdkit_ipc::{
    Channel, FromSpawner, FromTemplate, Received, RecvError, StackId, ToSpawner, ToTemplate,
    inherited, log_file, private, title,
};
use nbdkit_sandbox::process::{close_all_but, end_with_parent, exit_now, fork};
use nbdkit_sandbox::{capabilities, signals};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, geteuid, setsid};

/// The spawner's end of its channel.
type Link = Channel<FromSpawner, ToSpawner>;

/// The set-up that the listener has sent.
struct Spawner {
    listener: Pid,
    /// Whether it starts templates.
    replaces: bool,
    template: Program,
    /// The template's program, which [`template`](Self::template) names by this descriptor.
    _image: Option<OwnedFd>,
    /// The messages that configure a template, in order.
    messages: Vec<ToTemplate>,
    /// The log file.
    log: Option<PathBuf>,
}

fn main() -> ExitCode {
    let mut args = env::args_os().skip(1);
    let number = |arg: OsString| arg.to_str()?.parse().ok();
    let (Some(Some(number)), None) = (args.next().map(number), args.next()) else {
        eprintln!("nbdkit-spawner: this program is started by nbdkit and is of no use on its own");
        return ExitCode::FAILURE;
    };
    match inherited(number) {
        Ok(fd) => run(&Channel::from_fd(fd)),
        Err(error) => {
            eprintln!("nbdkit-spawner: channel {number}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Main loop of the spawner; returns its exit status.
fn run(link: &Link) -> ExitCode {
    title::adopt();
    let _ = prctl::set_name(c"nbdkit:spawner");
    // The terminal is the listener's. setsid(2) fails only if this process leads a session already.
    let _ = setsid();
    // Descriptors that the caller of the server has left open may be meant for the plugin, and are
    // the template's.
    if leave_signals_to_listener().is_err() || close_all_but(&[link.as_fd()]).is_err() {
        return ExitCode::FAILURE;
    }
    let Some(ToSpawner::Setup(mut setup)) = receive(link) else { return ExitCode::FAILURE };
    let private = setup.private.take().map(PathBuf::from);
    // The channel is closed when the listener ends. Were this process killed by a signal then, the
    // directory would stay.
    let status =
        receive_setup(setup, link).map_or(ExitCode::FAILURE, |spawner| spawner.serve(link));
    if let Some(directory) = private {
        private::remove(&directory);
    }
    status
}

/// Receives the set-up, which the listener sends before it confines itself.
fn receive_setup(setup: SpawnerSetup, link: &Link) -> Option<Spawner> {
    let SpawnerSetup {
        hello,
        listener,
        private: _,
        log,
        gains,
        replaces,
        program,
        directory,
        title,
        spared,
    } = setup;
    let listener = Pid::from_raw(listener);
    if let Err(line) = hello.check() {
        eprintln!("nbdkit-spawner: {line}");
        return None;
    }
    // The template gets root's capabilities from the bounding set when it is executed, and drops
    // them itself.
    if let Err(line) = confine::confine(gains) {
        eprintln!("nbdkit-spawner: {line}");
        return None;
    }
    drop_capabilities().ok()?;
    let image = open_image(Path::new(&program));
    let template = Program {
        path: image.as_ref().map_or_else(|| program.into(), path_of),
        title,
        spared,
        directory: directory.map(PathBuf::from),
        stderr: None,
    };
    let mut messages = Vec::new();
    loop {
        match receive(link)? {
            ToSpawner::Know(message) if replaces => messages.push(*message),
            ToSpawner::SetupEnd => break,
            ToSpawner::Setup(_)
            | ToSpawner::Know(_)
            | ToSpawner::Start { .. }
            | ToSpawner::Follow { .. }
            | ToSpawner::OpenLog => {
                return None;
            }
        }
    }
    let log = log.map(PathBuf::from);
    Some(Spawner { listener, replaces, template, _image: image, messages, log })
}

/// The template's program as it is now. An upgrade replaces the file and not what is open: a
/// listener goes on with templates of its own build until it is restarted. Without /proc it is
/// found by its path, and refused if it is of another build.
fn open_image(program: &Path) -> Option<OwnedFd> {
    let image = open(program, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).ok()?;
    path_of(&image).exists().then_some(image)
}

/// A path by which a descriptor of this process is executed. proc_pid_fd(5).
fn path_of(image: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", image.as_raw_fd()))
}

/// Receives the next message; `None` when the channel is closed.
fn receive(link: &Link) -> Option<ToSpawner> {
    loop {
        match link.recv() {
            Ok(Received { message, .. }) => return Some(message),
            Err(RecvError::Io(Errno::EINTR)) => {}
            Err(_) => return None,
        }
    }
}

impl Spawner {
    /// Handles the listener's requests until the channel is closed.
    fn serve(&self, link: &Link) -> ExitCode {
        loop {
            match receive(link) {
                Some(ToSpawner::Start { stack: StackId::ONLY }) if self.replaces => {
                    self.start_template(link);
                }
                Some(ToSpawner::OpenLog) if self.log.is_some() => self.open_log(link),
                Some(ToSpawner::Follow { template }) => {
                    cgroup::follow(self.listener, Pid::from_raw(template));
                }
                // The configuration cannot be changed any more; and a template without one would
                // take it from the listener.
                Some(
                    ToSpawner::Setup(_)
                    | ToSpawner::Know(_)
                    | ToSpawner::SetupEnd
                    | ToSpawner::Start { .. }
                    | ToSpawner::OpenLog,
                ) => return ExitCode::FAILURE,
                // The listener is gone.
                None => return ExitCode::SUCCESS,
            }
        }
    }

    /// Forks a process that starts the template, so that the listener, which is the nearest
    /// subreaper (PR_SET_CHILD_SUBREAPER), becomes the template's parent when that process exits.
    ///
    /// While the template is being configured, which may take long, the spawner is killed if the
    /// listener ends.
    fn start_template(&self, link: &Link) {
        if end_with_parent(self.listener, Signal::SIGKILL).is_err() {
            return;
        }
        let spawner = Pid::this();
        match fork() {
            Ok(Some(maker)) => await_answer(maker, link),
            Ok(None) => {
                let tied = end_with_parent(spawner, Signal::SIGKILL);
                let started = tied.map_err(io::Error::from).and_then(|()| self.start());
                let _ = match started {
                    Ok((pid, theirs)) => link.send(
                        &FromSpawner::Started { stack: StackId::ONLY, pid: pid.as_raw() },
                        &[theirs.as_fd()],
                    ),
                    Err(error) => link.send(&failure(&error), &[]),
                };
                exit_now(0)
            }
            Err(errno) => drop(link.send(&failure(&errno.into()), &[])),
        }
        let _ = prctl::set_pdeathsig(None);
    }

    /// Opens the log file and sends it.
    fn open_log(&self, link: &Link) {
        let _ = match self.log.as_deref().map(log_file::open) {
            Some(Ok(file)) => link.send(&FromSpawner::Log, &[file.as_fd()]),
            Some(Err(error)) => link.send(&FromSpawner::NoLog { errno: errno_of(&error) }, &[]),
            None => Ok(()),
        };
    }

    /// Starts a template and sends it everything up to `EnterService`. Waits until it has taken
    /// that.
    fn start(&self) -> io::Result<(Pid, Channel<ToTemplate, FromTemplate>)> {
        let (pid, link) = self.template.start(&[])?;
        for message in &self.messages {
            link.send(message, &[])?;
        }
        Ok((pid, link))
    }
}

fn errno_of(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}

/// Waits for the end of the process that starts a template and answers. If it was killed, it may
/// not have answered: then this process answers, and the listener ignores a second answer.
fn await_answer(maker: Pid, link: &Link) {
    loop {
        match waitpid(maker, None) {
            Err(Errno::EINTR) => {}
            Ok(WaitStatus::Exited(_, 0)) => return,
            _ => return drop(link.send(&failure(&Errno::EINTR.into()), &[])),
        }
    }
}

fn failure(error: &io::Error) -> FromSpawner {
    FromSpawner::Failed { stack: StackId::ONLY, errno: errno_of(error) }
}

/// Has the signals that are sent to all processes at once, which the listener has blocked until
/// now, do nothing.
fn leave_signals_to_listener() -> nix::Result<()> {
    let signals = signals::of_all_processes();
    signals::catch(&signals)?;
    signals.thread_unblock()
}

/// Drops all capabilities. With no_new_privs the permitted ones stay: an executed template gets no
/// more than its caller has. So do the ambient ones of a user who is not root, which are all that a
/// template gets. execve(2).
fn drop_capabilities() -> nbdkit_sandbox::Result<()> {
    if !geteuid().is_root() {
        return capabilities::lower_effective([]);
    }
    if prctl::get_no_new_privs() == Ok(false) {
        return capabilities::keep([]).map(drop);
    }
    capabilities::clear_inheritable()?;
    capabilities::lower_effective([])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    #[expect(clippy::zombie_processes, reason = "it is waited for by what is tested")]
    fn a_killed_child_is_answered_for() {
        let (link, listeners) = Channel::<FromSpawner, ToSpawner>::pair().unwrap();
        let maker = |script: &str| {
            let child = Command::new("/bin/sh").args(["-c", script]).spawn().unwrap();
            Pid::from_raw(child.id().cast_signed())
        };
        await_answer(maker("exit 0"), &link);
        assert!(matches!(listeners.try_recv(), Err(RecvError::Empty)));
        await_answer(maker("kill -9 $$"), &link);
        let message = listeners.try_recv().unwrap().message;
        assert_eq!(message, FromSpawner::Failed { stack: StackId::ONLY, errno: libc::EINTR });
    }
}
