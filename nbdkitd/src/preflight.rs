//! Settings of the process, before anything else.

#![forbid(unsafe_code)]

use nbdkit_sandbox::process::end_with_parent;
use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

/// Ties this process to its parent, which was `parent` when this process started.
/// nbdkit-captive(1), "EXIT WITH PARENT".
///
/// # Errors
/// The parent has ended already.
pub(crate) fn exit_with_parent(parent: Pid) -> Result<(), String> {
    end_with_parent(parent, Signal::SIGTERM).map_err(|errno| match errno {
        Errno::ESRCH => "--exit-with-parent: the parent process has exited already".to_owned(),
        errno => format!("prctl: PR_SET_PDEATHSIG: {}", crate::strerror(errno)),
    })
}
