//! Descriptors and processes that the program which started the server names by number on the
//! command line: `password=-FD`, `fd=FD`, `exit-when-process-exits=PID`. The unsafe step of that: a
//! number becomes a descriptor.

#![expect(unsafe_code, reason = "a number from the command line becomes an OwnedFd")]

use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

/// Owns descriptor `number`, so that it is closed with the result.
///
/// # Errors
/// EBADF if it is not open.
pub(crate) fn take(number: i32) -> io::Result<OwnedFd> {
    if number < 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: borrowed for this one call, which fails with EBADF if the number is no open
    // descriptor.
    fcntl(unsafe { BorrowedFd::borrow_raw(number) }, FcntlArg::F_GETFD)?;
    // SAFETY: the number is open (checked above). The user who wrote it on the command line vouches
    // that it was left open for this purpose, as close(2) on it already presumes; this module's
    // only caller takes each value once.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// A close-on-exec duplicate, above the standard descriptors, of the one that the user named
/// by number. The original stays open, since it may be named twice.
///
/// # Errors
/// EBADF if there is no such descriptor, EMFILE.
pub fn duplicate(number: RawFd) -> nix::Result<OwnedFd> {
    // SAFETY: duplicating takes nothing from the owner of `number`, and fails with EBADF if it is
    // not open.
    let fd = Errno::result(unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) })?;
    // SAFETY: the kernel has just made this descriptor, so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A handle on the process that has the number now, close-on-exec: it is readable once the process
/// has ended. pidfd_open(2).
///
/// # Errors
/// ESRCH if there is none, EINVAL if it is a thread, ENOSYS before Linux 5.3, EMFILE.
pub fn process(number: i32) -> nix::Result<OwnedFd> {
    // SAFETY: takes two integers and returns a new descriptor.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, number, 0) })?;
    let fd = RawFd::try_from(fd).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel has just made this descriptor, so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
