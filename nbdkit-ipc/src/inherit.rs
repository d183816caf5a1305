//! Taking over the channel that the parent left open across exec. The one unsafe step of fd passing.

#![expect(unsafe_code, reason = "a descriptor number from argv becomes an OwnedFd")]

use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{SockType, getsockopt, sockopt};

/// Owns a descriptor that recvmsg(2) has just installed for us.
pub(crate) fn received(number: i32) -> OwnedFd {
    // SAFETY: the only caller passes numbers out of an SCM_RIGHTS message it has just received, each once;
    // the kernel made them for this process and nobody else knows them.
    unsafe { OwnedFd::from_raw_fd(number) }
}

/// Owns descriptor `number`, which the parent process passed by leaving it open. Makes it
/// close-on-exec.
///
/// Must be called once, first thing in `main`, before anything else opens descriptors.
///
/// # Errors
/// EBADF if it is not open, EPROTOTYPE if it is not a SOCK_SEQPACKET socket.
pub fn inherited(number: i32) -> io::Result<OwnedFd> {
    if number <= 2 {
        return Err(io::Error::from_raw_os_error(nix::libc::EBADF));
    }
    // SAFETY: borrowed for this one call, which fails with EBADF if the number is no open descriptor. /proc, which would
    // tell too, need not be mounted.
    fcntl(unsafe { BorrowedFd::borrow_raw(number) }, FcntlArg::F_GETFD)?;
    // SAFETY: it is open (checked above), and nobody else in this process owns it: it is above the standard
    // descriptors and, by contract with our only callers (each `main`), nothing was opened before.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    if getsockopt(&fd, sockopt::SockType)? != SockType::SeqPacket {
        return Err(io::Error::from_raw_os_error(nix::libc::EPROTOTYPE));
    }
    fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    Ok(fd)
}
