//! Forking into the background. The process that was started forks before anything else and waits.
//! The server starts up with the terminal still attached, for errors and password prompts, and
//! leaves it when it is ready.

#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

use nbdkit_sandbox::process;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, pipe2};

use crate::system_error::SystemError;

/// The two processes after [`fork`].
pub(crate) enum Forked {
    /// The process that was started, with its exit status.
    Launcher(ExitCode),
    /// The server.
    Server(Report),
}

/// The pipe by which the server reports to the process that was started that it is ready.
pub(crate) struct Report(OwnedFd);

impl Report {
    /// Whether that process still waits.
    pub(crate) fn is_awaited(&self) -> bool {
        let mut pipe = [PollFd::new(self.0.as_fd(), PollFlags::empty())];
        // A pipe without a reader has POLLERR. poll(2).
        poll(&mut pipe, PollTimeout::ZERO) == Ok(0)
    }

    /// Reports that the server is ready.
    ///
    /// # Errors
    /// EPIPE: that process has ended.
    pub(crate) fn ready(self) -> io::Result<()> {
        File::from(self.0).write_all(&[1])
    }
}

/// Forks and, in the original process, waits for the outcome.
///
/// # Errors
/// Those of pipe(2) and fork(2).
pub(crate) fn fork(program: &str) -> Result<Forked, SystemError> {
    let (outcome, report) = pipe2(OFlag::O_CLOEXEC).map_err(SystemError::in_call("pipe"))?;
    match process::fork().map_err(SystemError::in_call("fork"))? {
        None => Ok(Forked::Server(Report(report))),
        Some(server) => {
            drop(report);
            Ok(Forked::Launcher(wait(program, server, outcome)))
        }
    }
}

fn wait(program: &str, server: Pid, outcome: OwnedFd) -> ExitCode {
    let mut byte = [0];
    // Without a byte the server has ended; an interrupted read is repeated by read_exact.
    if File::from(outcome).read_exact(&mut byte).is_ok() {
        return ExitCode::SUCCESS;
    }
    match waitpid(server, None) {
        // A plugin may request a shutdown during start-up, or exit: the status is the server's.
        Ok(WaitStatus::Exited(_, code)) => {
            u8::try_from(code).map_or(ExitCode::FAILURE, ExitCode::from)
        }
        Ok(WaitStatus::Signaled(_, signal, _)) => {
            eprintln!("{program}: error: the server was killed by {signal} while it started");
            ExitCode::FAILURE
        }
        Ok(_) | Err(_) => {
            eprintln!("{program}: error: the server ended while it started");
            ExitCode::FAILURE
        }
    }
}

/// Leaves the terminal and the current directory. Standard error is kept if debug lines go there.
/// Must not yet be called while there may be errors for the user.
///
/// # Errors
/// Which call failed.
pub(crate) fn leave_terminal(keep_stderr: bool) -> Result<(), SystemError> {
    nix::unistd::setsid().map_err(SystemError::in_call("setsid"))?;
    nix::unistd::chdir("/").map_err(SystemError::on("chdir", "/"))?;
    if !keep_stderr {
        let null = open_null()?;
        nix::unistd::dup2_stderr(&null).map_err(SystemError::in_call("dup2"))?;
    }
    Ok(())
}

/// Puts `/dev/null` in the place of standard input and output.
///
/// # Errors
/// Which call failed.
pub(crate) fn release_standard_streams() -> Result<(), SystemError> {
    let null = open_null()?;
    nix::unistd::dup2_stdin(&null)
        .and_then(|()| nix::unistd::dup2_stdout(&null))
        .map_err(SystemError::in_call("dup2"))
}

fn open_null() -> Result<File, SystemError> {
    let path = "/dev/null";
    File::options().read(true).write(true).open(path).map_err(SystemError::on("open", path))
}
