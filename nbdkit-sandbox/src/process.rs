//! fork(2), what a fork does with what it has inherited, and what others may do to this process.

#![expect(unsafe_code, reason = "fork, _exit, and closing descriptors of the parent")]

use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::MetadataExt;

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::signal::Signal;
use nix::unistd::{ForkResult, Pid, getppid};

use crate::{Error, Result};

/// fork(2). Returns the child's id, or `None` in the child.
///
/// # Errors
/// EAGAIN, ENOMEM; EBUSY if this process has more than one thread, because the child would have
/// only this one and the locks that others have taken.
pub fn fork() -> nix::Result<Option<Pid>> {
    if !is_single_threaded() {
        return Err(Errno::EBUSY);
    }
    // SAFETY: fork(2) asks that the process has one thread, since a lock that another one has taken
    // stays locked in the child. That is checked above, and nothing in between starts a thread.
    // Without /proc the callers uphold it: they fork before they start any.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(Some(child)),
        ForkResult::Child => Ok(None),
    }
}

/// Whether this is the process's only thread. True, too, if that cannot be found out, because /proc
/// is not there.
pub fn is_single_threaded() -> bool {
    // A directory has a link for itself, one from its parent, and one from each subdirectory: each
    // thread.
    !std::fs::metadata("/proc/self/task").is_ok_and(|task| task.nlink() != 3)
}

/// Exits at once, without destructors: in a fork, what they would remove belongs to the parent.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: _exit has no preconditions and does not return.
    unsafe { libc::_exit(status) }
}

/// In a fork, or at the start of a program: closes all descriptors but the standard streams and
/// `kept`.
///
/// # Errors
/// Those of [`close_range`].
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

/// In a fork, or at the start of a program: closes the descriptors from `first` to `last`, which
/// the process has inherited and does not need. close_range(2).
///
/// # Errors
/// EINVAL: `first` is above `last`.
pub fn close_range(first: RawFd, last: RawFd) -> nix::Result<()> {
    // SAFETY: takes numbers. The callers are forks that never use or drop what owned these
    // descriptors in the parent, and programs that own no descriptor yet.
    let closed = unsafe { libc::close_range(first.cast_unsigned(), last.cast_unsigned(), 0) };
    match Errno::result(closed) {
        // Linux before 5.9 has no close_range. No open descriptor is above RLIMIT_NOFILE: it was
        // not lowered below one.
        Err(Errno::ENOSYS) => {
            let (most, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
            let last = last.min(RawFd::try_from(most).unwrap_or(RawFd::MAX));
            for number in first..=last {
                // SAFETY: takes a number. The callers are forks that never use or drop what owned
                // this descriptor in the parent, and programs that own no descriptor yet.
                unsafe { libc::close(number) };
            }
            Ok(())
        }
        other => other.map(drop),
    }
}

/// Has the kernel send `signal` to this process when its parent ends, which was `parent`. A change
/// of credentials or capabilities takes it back. prctl(2), PR_SET_PDEATHSIG.
///
/// # Errors
/// ESRCH: the parent has ended already.
pub fn end_with_parent(parent: Pid, signal: Signal) -> nix::Result<()> {
    prctl::set_pdeathsig(signal)?;
    // The parent may have ended before prctl(2).
    if getppid() == parent { Ok(()) } else { Err(Errno::ESRCH) }
}

/// No program that this process executes has more privileges than it has itself. prctl(2),
/// PR_SET_NO_NEW_PRIVS.
///
/// # Errors
/// Those of prctl(2); it is not in force.
pub fn forbid_new_privileges() -> Result<()> {
    prctl::set_no_new_privs().map_err(Error::os("prctl: PR_SET_NO_NEW_PRIVS"))?;
    match prctl::get_no_new_privs().map_err(Error::os("prctl: PR_GET_NO_NEW_PRIVS"))? {
        true => Ok(()),
        false => Err(Error::new("no_new_privs did not change as asked")),
    }
}

/// No other process of the user reads or traces this one, and it leaves no copy of its memory
/// behind. prctl(2), PR_SET_DUMPABLE.
///
/// # Errors
/// Those of prctl(2); it is not in force.
pub fn forbid_dumps() -> Result<()> {
    prctl::set_dumpable(false).map_err(Error::os("prctl: PR_SET_DUMPABLE"))?;
    match prctl::get_dumpable().map_err(Error::os("prctl: PR_GET_DUMPABLE"))? {
        false => Ok(()),
        true => Err(Error::new("dumpable did not change as asked")),
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
