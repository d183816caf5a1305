//! Why a server does not start. Each stage of start-up has an error of its own, beside the code
//! that causes it; [`StartError`] is any of them. What `Display` gives is one line for the user,
//! without nbdkit's prefix, and has the cause in it.

#![forbid(unsafe_code)]

use std::fmt;
use std::io;
use std::path::PathBuf;

use nbdkit_ipc::program::Program;
use thiserror::Error;

use crate::errno_text;
use crate::preflight::ParentError;
use crate::sockets::{ActivationError, ListenError};
use crate::tls::TlsError;

/// A system call that failed: `CALL: OBJECT: strerror`.
#[derive(Debug)]
pub(crate) struct SystemError {
    call: &'static str,
    object: Option<String>,
    cause: io::Error,
}

impl SystemError {
    /// `call` failed, and there is nothing to say about what it was called for. For `map_err`.
    pub(crate) fn in_call<E: Into<io::Error>>(call: &'static str) -> impl Fn(E) -> SystemError {
        move |cause| SystemError { call, object: None, cause: cause.into() }
    }

    /// `call` failed on `object`: a path, a name, an address. For `map_err`.
    pub(crate) fn on<E: Into<io::Error>>(
        call: &'static str,
        object: impl fmt::Display,
    ) -> impl FnOnce(E) -> SystemError {
        move |cause| SystemError { call, object: Some(object.to_string()), cause: cause.into() }
    }
}

impl fmt::Display for SystemError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.call)?;
        if let Some(object) = &self.object {
            write!(f, "{object}: ")?;
        }
        f.write_str(&errno_text(&self.cause))
    }
}

impl std::error::Error for SystemError {}

/// A program of this project's that could not be started, or not be sent its configuration.
#[derive(Debug, Error)]
pub(crate) enum ProgramError {
    /// It cannot be executed, or has ended.
    #[error("cannot start {}: {}", path.display(), errno_text(cause))]
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

/// Why the server does not start.
#[derive(Debug, Error)]
pub(crate) enum StartError {
    /// A system call of the listener's own.
    #[error(transparent)]
    System(#[from] SystemError),
    /// The listener cannot confine itself, or not drop what it must.
    #[error("{0}")]
    Confine(String),
    /// A socket that a service manager passed.
    #[error(transparent)]
    Activation(#[from] ActivationError),
    /// `--exit-with-parent`.
    #[error(transparent)]
    Parent(#[from] ParentError),
    /// TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Template or spawner.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// The listening sockets.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// `-P`.
    #[error("{}: {}", path.display(), errno_text(cause))]
    PidFile { path: PathBuf, cause: io::Error },
    /// Nobody learns that the server has started.
    #[error("the process that started the server is gone")]
    LauncherGone,
}
