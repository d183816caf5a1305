//! Why a server does not start. Each stage of start-up has an error of its own, beside the code
//! that causes it; [`StartError`] is any of them. What `Display` gives is one line for the user,
//! without nbdkit's prefix, and has the cause in it.

#![forbid(unsafe_code)]

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::confine::ConfineError;
use crate::errno_text;
use crate::identity::IdentityError;
use crate::preflight::ParentError;
use crate::sockets::{ActivationError, ListenError};
use crate::system_error::SystemError;
use crate::template::ProgramError;
use crate::tls::TlsError;

/// Why the server does not start.
#[derive(Debug, Error)]
pub(crate) enum StartError {
    /// A system call of the listener's own.
    #[error(transparent)]
    System(#[from] SystemError),
    /// The listener cannot confine itself, or not drop what it must.
    #[error(transparent)]
    Confine(#[from] ConfineError),
    /// `-u`, `-g`, `--listener-user`.
    #[error(transparent)]
    Identity(#[from] IdentityError),
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
