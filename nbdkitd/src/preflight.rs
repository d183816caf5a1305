//! Settings of the process, before anything else.

#![forbid(unsafe_code)]

use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getppid};
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
    prctl::set_pdeathsig(Signal::SIGTERM)
        .map_err(SystemError::in_call("prctl: PR_SET_PDEATHSIG"))?;
    // The parent may have ended before prctl(2).
    if getppid() != parent {
        return Err(ParentError::Exited);
    }
    Ok(())
}
