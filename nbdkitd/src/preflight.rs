//! Settings of the process, before anything else.

#![forbid(unsafe_code)]

use nbdkit_sandbox::process::end_with_parent;
use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use thiserror::Error;

use crate::system_error::SystemError;

/// Why this process is not tied to its parent.
#[derive(Debug, Error)]
pub(crate) enum ParentError {
    /// The kernel refuses it.
    #[error(transparent)]
    System(#[from] SystemError),
    /// There is no parent any more.
    #[error("--exit-with-parent: the parent process has exited already")]
    Exited,
}

/// Ties this process to its parent, which was `parent` when this process started.
/// nbdkit-captive(1), "EXIT WITH PARENT".
///
/// # Errors
/// The parent has ended already.
pub(crate) fn exit_with_parent(parent: Pid) -> Result<(), ParentError> {
    end_with_parent(parent, Signal::SIGTERM).map_err(|errno| match errno {
        Errno::ESRCH => ParentError::Exited,
        errno => SystemError::in_call("prctl: PR_SET_PDEATHSIG")(errno).into(),
    })
}
