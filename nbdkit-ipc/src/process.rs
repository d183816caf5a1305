//! Fork, what a fork does first with the descriptors of its parent, and last.

#![expect(unsafe_code, reason = "fork, _exit, descriptors of the parent")]

use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::MetadataExt;

use nix::errno::Errno;
use nix::libc;
use nix::sys::resource::{Resource, getrlimit};
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

/// In a fork, or a program that has just begun, which will not use them: closes all descriptors but the standard streams and `kept`.
///
/// # Errors
/// None that a kernel has for this.
pub fn close_all_but(kept: &[BorrowedFd<'_>]) -> nix::Result<()> {
    let mut kept: Vec<RawFd> = kept.iter().map(AsRawFd::as_raw_fd).collect();
    kept.sort_unstable();
    let mut first = libc::STDERR_FILENO + 1;
    for end in kept.into_iter().chain([RawFd::MAX]) {
        if first < end {
            close_range(first, end - 1)?;
        }
        first = end.saturating_add(1);
    }
    Ok(())
}

/// In a fork, or a program that has just begun: closes descriptors of its parent that it has no business with.
///
/// # Errors
/// None that a kernel has for this.
pub fn close_range(first: RawFd, last: RawFd) -> nix::Result<()> {
    // SAFETY: takes numbers. By contract with the callers, forks that end without dropping anything they have inherited and
    // programs that have just begun, nothing of what owned these descriptors is used or dropped any more.
    let closed = unsafe { libc::close_range(first.cast_unsigned(), last.cast_unsigned(), 0) };
    match Errno::result(closed) {
        // Before Linux 5.9: one by one. The limit was lowered when fewer were open.
        Err(Errno::ENOSYS) => {
            let (most, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
            let last = last.min(RawFd::try_from(most).unwrap_or(RawFd::MAX));
            for number in first..=last {
                // SAFETY: as above.
                unsafe { libc::close(number) };
            }
            Ok(())
        }
        other => other.map(drop),
    }
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
