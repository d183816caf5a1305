//! Why a program of this project's was not started.

#![forbid(unsafe_code)]

use std::io;
use std::path::PathBuf;

use nbdkit_ipc::program::Program;
use thiserror::Error;

/// A program of this project's that could not be started, or not be sent its configuration.
#[derive(Debug, Error)]
pub(crate) enum ProgramError {
    /// It cannot be executed, or has ended.
    #[error("cannot start {}: {}", path.display(), crate::errno_text(cause))]
    Start { path: PathBuf, cause: io::Error },
    /// A parameter does not fit a message: one from a file may be longer than any on a command
    /// line.
    #[error("a parameter is too long")]
    ParameterTooLong,
}

impl ProgramError {
    /// What follows from the failure to start `program`, or to send to it.
    pub(crate) fn of(program: &Program, cause: io::Error) -> ProgramError {
        match cause.raw_os_error() {
            Some(libc::EMSGSIZE) => ProgramError::ParameterTooLong,
            _ => ProgramError::Start { path: program.path.clone(), cause },
        }
    }
}
