//! The one system call of the benchmark that Rust calls unsafe.
#![expect(unsafe_code, reason = "fork")]

use nix::errno::Errno;
use nix::unistd::{ForkResult, Pid};

/// Makes a copy of this process. Returns `None` in the copy.
///
/// # Errors
/// EAGAIN, ENOMEM; EBUSY if this process has more than one thread, because the copy would have only
/// this one and whatever locks the others hold.
pub(super) fn fork() -> nix::Result<Option<Pid>> {
    if std::fs::read_dir("/proc/self/task").is_ok_and(|tasks| tasks.count() != 1) {
        return Err(Errno::EBUSY);
    }
    // SAFETY: the process is single-threaded (checked above, and nothing in between could start a
    // thread), so the child may go on as if nothing had happened.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(Some(child)),
        ForkResult::Child => Ok(None),
    }
}
