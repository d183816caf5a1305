//! What may happen. nbdkit-exitwhen-filter(1), "PARAMETERS".

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use nbdkit_api::watcher::Server;
use nbdkit_api::{Error, Result, ResultExt, Value, inherited, programs};
use nix::poll::{PollFd, PollFlags, PollTimeout};

/// An event that is waited for.
#[derive(Debug)]
pub(super) enum Event {
    /// A file is there.
    FileCreated(PathBuf),
    /// A file is not there.
    FileDeleted(PathBuf),
    /// No process has the other end of this pipe any more.
    PipeClosed(OwnedFd),
    /// The process that this is a handle on has ended.
    ProcessExits(OwnedFd),
    /// A script ends with [`HAPPENED`].
    Script(String),
}

/// What a script exits with if the event has happened.
const HAPPENED: i32 = 88;

impl Event {
    /// The event of a parameter; `None` if that is not one of an event.
    ///
    /// # Errors
    /// Bad value; no such descriptor or process.
    pub(super) fn parse(key: &str, value: Value<'_>) -> Result<Option<Event>> {
        Ok(Some(match key {
            "exit-when-file-created" => Event::FileCreated(value.absolute_path()?),
            "exit-when-file-deleted" => Event::FileDeleted(value.absolute_path()?),
            "exit-when-pipe-closed" => {
                let number: i32 = value.integer(key)?;
                if number <= 2 {
                    return Err(Error::msg(format!(
                        "{key}={number}: file descriptor must be > 2, \
                         because stdin, stdout and stderr are used for other purposes"
                    )));
                }
                Event::PipeClosed(
                    inherited::duplicate(number)
                        .or_error(|| format!("{key}={number}: invalid file descriptor"))?,
                )
            }
            "exit-when-process-exits" => {
                let number: u32 = value.integer(key)?;
                let handle = i32::try_from(number).map_err(|_| nbdkit_api::Errno::ESRCH);
                let handle = handle.and_then(inherited::process);
                Event::ProcessExits(handle.or_error(|| format!("{key}: process {number}"))?)
            }
            "exit-when-script" => Event::Script(value.str()?.to_owned()),
            _ => return Ok(None),
        }))
    }

    /// The file whose coming or going this is.
    pub(super) fn file(&self) -> Option<&PathBuf> {
        match self {
            Event::FileCreated(path) | Event::FileDeleted(path) => Some(path),
            Event::PipeClosed(_) | Event::ProcessExits(_) | Event::Script(_) => None,
        }
    }

    /// Whether a program has to be run for it.
    pub(super) fn is_script(&self) -> bool {
        matches!(self, Event::Script(_))
    }

    /// The descriptor that tells, and what it reports. That a pipe is closed is always reported.
    pub(super) fn descriptor(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        match self {
            Event::PipeClosed(fd) => Some((fd.as_fd(), PollFlags::empty())),
            Event::ProcessExits(fd) => Some((fd.as_fd(), PollFlags::POLLIN)),
            Event::FileCreated(_) | Event::FileDeleted(_) | Event::Script(_) => None,
        }
    }

    /// Whether it has happened by now; `None` if the server has ended meanwhile.
    pub(super) fn has_happened(&self, server: &Server<'_>) -> Option<bool> {
        match self {
            Event::FileCreated(path) => Some(path.symlink_metadata().is_ok()),
            Event::FileDeleted(path) => Some(is_gone(path)),
            Event::PipeClosed(_) | Event::ProcessExits(_) => {
                let (fd, flags) = self.descriptor()?;
                Some(server.wait(&[PollFd::new(fd, flags)], PollTimeout::ZERO)?[0])
            }
            Event::Script(script) => run(script, server),
        }
    }
}

/// A file that this user may not look for is not gone.
fn is_gone(path: &std::path::Path) -> bool {
    path.symlink_metadata()
        .is_err_and(|error| matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)))
}

/// Runs the script. If it fails, that is logged, and the event has not happened.
fn run(script: &str, server: &Server<'_>) -> Option<bool> {
    let mut command = Command::new("/bin/sh");
    command.arg("-c").arg(script).stdin(Stdio::null()).stdout(Stdio::null());
    let ended = programs::start(&mut command).and_then(|mut program| {
        let number = i32::try_from(program.child.id()).unwrap_or_default();
        let handle = inherited::process(number)?;
        loop {
            match server.wait(&[PollFd::new(handle.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE)
            {
                // What is dropped is killed.
                None => return Ok(None),
                Some(ready) if ready[0] => return program.wait().map(Some),
                Some(_) => {}
            }
        }
    });
    let why = match ended {
        Ok(status) => {
            let status = status?;
            match status.code() {
                Some(0) => return Some(false),
                Some(HAPPENED) => return Some(true),
                Some(code) => format!("command failed with exit code {code}"),
                None => format!("command failed: {status}"),
            }
        }
        Err(error) => format!("/bin/sh: {error}"),
    };
    nbdkit_api::error!("exit-when-script: {why}");
    Some(false)
}
