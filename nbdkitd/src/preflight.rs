//! What is arranged before anything else is done.

#![forbid(unsafe_code)]

use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getppid};

/// Ties this process to its parent, which was `parent` when we started. nbdkit-captive(1), "EXIT WITH PARENT".
///
/// # Errors
/// The parent is gone already.
pub(crate) fn exit_with_parent(parent: Pid) -> Result<(), String> {
    prctl::set_pdeathsig(Signal::SIGTERM)
        .map_err(|errno| format!("prctl: PR_SET_PDEATHSIG: {}", crate::strerror(errno)))?;
    // It may have ended before the kernel knew that we care.
    if getppid() != parent {
        return Err("--exit-with-parent: the parent process has exited already".to_owned());
    }
    Ok(())
}
