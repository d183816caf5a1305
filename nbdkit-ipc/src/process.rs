//! Fork, and what a fork does last.

#![expect(unsafe_code, reason = "fork, _exit")]

use std::os::unix::fs::MetadataExt;

use nix::errno::Errno;
use nix::libc;
use nix::unistd::{ForkResult, Pid};

/// Makes a copy of this process. Returns the copy's id, or `None` in the copy.
///
/// # Errors
/// EAGAIN, ENOMEM; EBUSY if this process has more than one thread, because the copy would have only this one and
/// whatever locks the others hold.
pub fn fork() -> nix::Result<Option<Pid>> {
    // A directory has a link for itself, one from its parent, and one from each subdirectory: each thread.
    if std::fs::metadata("/proc/self/task").is_ok_and(|task| task.nlink() != 3) {
        return Err(Errno::EBUSY);
    }
    // SAFETY: the process is single-threaded (checked above, and nothing in between starts a thread), so the child
    // may go on as if nothing had happened.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(Some(child)),
        ForkResult::Child => Ok(None),
    }
}

/// Ends the process at once, without destructors: in a fork, what they would remove belongs to the other.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: _exit has no preconditions and does not return.
    unsafe { libc::_exit(status) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_threads_does_not_fork() {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || stopped.recv().is_ok());
        assert_eq!(fork(), Err(Errno::EBUSY));
        drop(stop);
        thread.join().unwrap();
    }
}
