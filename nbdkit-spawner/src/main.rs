//! `nbdkit-spawner`, the spawner: makes new templates for the listener, which has confined itself and cannot, moves
//! them into the control group that the listener was moved into, and removes the private directory of `-U -` when the
//! listener has ended, however that happened.
//!
//! Started by the listener (`nbdkit`) only, before that confines itself, with the number of its channel as the one
//! argument. A program of its own rather than a fork of the listener: it holds no copy of the listener's keys, and whoever
//! looks for `nbdkit` finds the one process to be signalled.
//!
//! It first learns what a template is, once; from then on it takes requests with nothing in them that says what is
//! executed. A listener that was taken over can thus have more templates, of the one kind that there is.

#![deny(unsafe_code)]

mod cgroup;
mod confine;
mod process;

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::{env, io};

use caps::CapSet;
use nbdkit_ipc::messages::SpawnerSetup;
use nbdkit_ipc::process::{close_all_but, exit_now, fork};
use nbdkit_ipc::program::Program;
use nbdkit_ipc::{
    Channel, FromSpawner, FromTemplate, Received, RecvError, StackId, ToSpawner, ToTemplate,
    inherited, private, title,
};
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, getppid, setsid};

/// The spawner's end of its channel.
type Link = Channel<FromSpawner, ToSpawner>;

/// What it has learned.
struct Spawner {
    listener: Pid,
    /// Whether it may be asked for templates.
    replaces: bool,
    template: Program,
    /// What configures a template, in order.
    messages: Vec<ToTemplate>,
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

/// Makes templates until the listener is gone.
fn run(link: &Link) -> ExitCode {
    title::adopt();
    let _ = prctl::set_name(c"nbdkit:spawner");
    // The terminal is the listener's. It fails only if we lead a session already.
    let _ = setsid();
    // What the caller of the server has left open is the template's, whose plugin it may be meant for.
    if process::leave_signals_to_listener().is_err() || close_all_but(&[link.as_fd()]).is_err() {
        return ExitCode::FAILURE;
    }
    let Some(ToSpawner::Setup(mut setup)) = receive(link) else { return ExitCode::FAILURE };
    let private = setup.private.take().map(PathBuf::from);
    // Whether the listener has ended is said by the end of the channel; a signal would leave the directory behind.
    let status = learn(setup, link).map_or(ExitCode::FAILURE, |spawner| spawner.serve(link));
    if let Some(directory) = private {
        private::remove(&directory);
    }
    status
}

/// What the listener tells it before it confines itself.
fn learn(setup: SpawnerSetup, link: &Link) -> Option<Spawner> {
    let SpawnerSetup { listener, private: _, gains, replaces, program, directory, title, spared } =
        setup;
    let listener = Pid::from_raw(listener);
    // What it executes gets root's capabilities from the bounding set, to drop them itself.
    if let Err(line) = confine::confine(gains) {
        eprintln!("nbdkit-spawner: {line}");
        return None;
    }
    drop_capabilities().ok()?;
    let template = Program {
        path: program.into(),
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
            | ToSpawner::Follow { .. } => {
                return None;
            }
        }
    }
    Some(Spawner { listener, replaces, template, messages })
}

/// The next message; `None` if there will be none.
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
    /// Does what the listener asks for until that closes the channel.
    fn serve(&self, link: &Link) -> ExitCode {
        loop {
            match receive(link) {
                Some(ToSpawner::Start { stack: StackId::ONLY }) if self.replaces => {
                    self.answer(link)
                }
                Some(ToSpawner::Follow { template }) => {
                    cgroup::follow(self.listener, Pid::from_raw(template));
                }
                // What a template is cannot be changed any more; and one that nobody configures would do what it is told.
                Some(
                    ToSpawner::Setup(_)
                    | ToSpawner::Know(_)
                    | ToSpawner::SetupEnd
                    | ToSpawner::Start { .. },
                ) => return ExitCode::FAILURE,
                // The listener is gone.
                None => return ExitCode::SUCCESS,
            }
        }
    }

    /// Has a process of its own start the template, so that the template becomes the listener's child when that process
    /// ends: the listener is the nearest that adopts orphans (PR_SET_CHILD_SUBREAPER).
    ///
    /// A template that takes long to be told what it is must not keep this process from ending with the listener.
    fn answer(&self, link: &Link) {
        if end_with(self.listener).is_err() {
            return;
        }
        let spawner = Pid::this();
        match fork() {
            Ok(Some(maker)) => await_answer(maker, link),
            Ok(None) => {
                let started = end_with(spawner).and_then(|()| self.start());
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

    /// Starts a template and tells it everything up to `EnterService`, waiting until it has taken that.
    fn start(&self) -> io::Result<(Pid, Channel<ToTemplate, FromTemplate>)> {
        let (pid, link) = self.template.start(&[])?;
        for message in &self.messages {
            link.send(message, &[])?;
        }
        Ok((pid, link))
    }
}

/// Waits for the end of the process that makes a template and answers. If it was killed, it may not have answered: then there is
/// another answer, which the listener leaves unheard if it has had one.
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
    FromSpawner::Failed { stack: StackId::ONLY, errno: error.raw_os_error().unwrap_or(libc::EIO) }
}

/// Has this process killed when its parent ends, which may have happened.
fn end_with(parent: Pid) -> io::Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    if getppid() == parent { Ok(()) } else { Err(Errno::ESRCH.into()) }
}

/// Drops all, but with no_new_privs leaves those that a template is executed with: a program gets no more than its caller may have.
/// execve(2).
fn drop_capabilities() -> Result<(), caps::errors::CapsError> {
    let gains = prctl::get_no_new_privs() == Ok(false);
    [CapSet::Inheritable, CapSet::Effective]
        .into_iter()
        .chain(gains.then_some(CapSet::Permitted))
        .try_for_each(|set| caps::clear(None, set))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    #[expect(clippy::zombie_processes, reason = "it is waited for by what is tested")]
    fn a_maker_that_is_killed_is_an_answer() {
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
