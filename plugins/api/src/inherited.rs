//! Descriptors that the program which started the server has left open for it, and named on the
//! command line: `password=-FD`. The one unsafe step of that: a number becomes a descriptor.

#![expect(unsafe_code, reason = "a descriptor number from the command line becomes an OwnedFd")]

use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};

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
