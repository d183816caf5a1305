//! The spawner: a fork of the listener that is made before the listener confines itself, and makes new templates for it.
//!
//! A template needs to execute, mount, change its user: all that a confined listener cannot do any more, and filters and
//! Landlock are inherited by what one executes. So another process does it. It waits on one socket, for one message with
//! nothing in it; it knows by itself what a template is configured with, and has told it before the listener gets the
//! channel. A listener that was taken over can thus have more templates, of the one kind that there is.
//!
//! There is one only if a template that ended is replaced at all.

#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};

use nbdkit_ipc::messages::EnterService;
use nbdkit_ipc::{Channel, FromSpawner, Received, RecvError, ToSpawner};
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, getppid};

use crate::sys::process;
use crate::template::{Recipe, Template};
use crate::{capabilities, words};

/// The listener's end.
#[derive(Debug)]
pub(crate) struct Spawner {
    pid: Pid,
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
    /// Makes the process. Must be called while the listener may still fork.
    ///
    /// # Errors
    /// One line for the user.
    pub(crate) fn start(recipe: &Recipe, service: &EnterService) -> Result<Spawner, String> {
        let failed = |error: io::Error| format!("spawner: {}", crate::errno_text(&error));
        let (link, theirs) = Channel::<ToSpawner, FromSpawner>::pair().map_err(failed)?;
        let listener = Pid::this();
        match process::fork().map_err(|errno| failed(errno.into()))? {
            Some(pid) => Ok(Spawner { pid, link }),
            // Nothing of the listener may be dropped here: it removes what it made.
            None => process::exit_now(run(&theirs, listener, recipe, service)),
        }
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
        self.link.try_send(&ToSpawner::Start, &[])
    }

    /// What it has answered.
    pub(crate) fn receive(&self) -> Answer {
        match self.link.try_recv() {
            Ok(Received { message: FromSpawner::Started { pid }, fds }) => {
                match <[_; 1]>::try_from(fds) {
                    Ok([fd]) => Answer::Template(Box::new(Template::adopt(pid, fd))),
                    Err(_) => Answer::Gone,
                }
            }
            Ok(Received { message: FromSpawner::Failed { errno }, .. }) => Answer::Failed(format!(
                "cannot start a template: {}",
                words(Errno::from_raw(errno))
            )),
            Err(RecvError::Empty | RecvError::Io(Errno::EINTR)) => Answer::Nothing,
            Err(_) => Answer::Gone,
        }
    }
}

/// The spawner's end.
type Link = Channel<FromSpawner, ToSpawner>;

/// Its life. Returns an exit status.
fn run(link: &Link, listener: Pid, recipe: &Recipe, service: &EnterService) -> i32 {
    if end_with(listener).is_err()
        || process::leave_signals_to_parent().is_err()
        || process::close_all_but(link.as_fd()).is_err()
        // What it executes gets root's from the bounding set, to drop them itself.
        || capabilities::drop_all().is_err()
    {
        return 1;
    }
    let _ = prctl::set_name(c"nbdkit:spawner");
    loop {
        match link.recv() {
            Ok(Received { message: ToSpawner::Start, .. }) => answer(link, recipe, service),
            Err(RecvError::Io(Errno::EINTR)) => {}
            // The listener is gone.
            Err(_) => return 0,
        }
    }
}

/// Has a process of its own start the template, so that the template becomes the listener's child when that process
/// ends: the listener is the nearest that adopts orphans (PR_SET_CHILD_SUBREAPER).
fn answer(link: &Link, recipe: &Recipe, service: &EnterService) {
    let spawner = Pid::this();
    match process::fork() {
        Ok(Some(child)) => while waitpid(child, None) == Err(Errno::EINTR) {},
        Ok(None) => {
            let started = end_with(spawner).and_then(|()| recipe.start_for_service(service));
            let _ = match started {
                Ok((pid, theirs)) => link.send(&FromSpawner::Started { pid }, &[theirs.as_fd()]),
                Err(error) => link.send(&failure(&error), &[]),
            };
            process::exit_now(0)
        }
        Err(errno) => drop(link.send(&failure(&errno.into()), &[])),
    }
}

fn failure(error: &io::Error) -> FromSpawner {
    FromSpawner::Failed { errno: error.raw_os_error().unwrap_or(libc::EIO) }
}

/// Has this process killed when its parent ends, which may have happened.
fn end_with(parent: Pid) -> io::Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    if getppid() == parent { Ok(()) } else { Err(Errno::ESRCH.into()) }
}
