//! Settings of the process, before anything else.

#![forbid(unsafe_code)]

use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getppid};

/// Ties this process to its parent, which was `parent` when this process started.
/// nbdkit-captive(1), "EXIT WITH PARENT".
///
/// # Errors
/// The parent has ended already.
pub(crate) fn exit_with_parent(parent: Pid) -> Result<(), String> {
    prctl::set_pdeathsig(Signal::SIGTERM)
        .map_err(|errno| format!("prctl: PR_SET_PDEATHSIG: {}", crate::strerror(errno)))?;
    // The parent may have ended before prctl(2).
    if getppid() != parent {
        return Err("--exit-with-parent: the parent process has exited already".to_owned());
    }
    Ok(())
}
