//! Sockets from the process that started the listener and from accept(2), and the security labels
//! of their peers.

#![expect(
    unsafe_code,
    reason = "descriptor numbers become OwnedFds; SO_PEERSEC has no safe wrapper"
)]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{SockFlag, accept4};

/// The longest security label that is asked for, bytes.
const MAX_LABEL: usize = 4096;

/// Owns the descriptors `first`, `first + 1` and so on, which were passed to this process by
/// leaving them open, and makes them close-on-exec. Must be called once, first thing, before
/// anything else opens descriptors.
///
/// # Errors
/// EBADF with the number that is not open.
pub(crate) fn adopt(first: RawFd, count: u32) -> Result<Vec<OwnedFd>, (RawFd, Errno)> {
    let mut adopted = Vec::new();
    for number in (first..).take(count as usize) {
        // SAFETY: borrowed for one fcntl(2), which fails with EBADF if the number is no open
        // descriptor.
        let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
        fcntl(borrowed, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map_err(|errno| (number, errno))?;
        // SAFETY: the descriptor is open (checked above), and by this function's contract nothing
        // else in the process owns it.
        adopted.push(unsafe { OwnedFd::from_raw_fd(number) });
    }
    Ok(adopted)
}

/// Takes a client from the queue of `listener`. The new socket is blocking and close-on-exec.
///
/// # Errors
/// Those of accept(2).
pub(crate) fn accept(listener: impl AsFd) -> nix::Result<OwnedFd> {
    let number = accept4(listener.as_fd().as_raw_fd(), SockFlag::SOCK_CLOEXEC)?;
    // SAFETY: accept4(2) has just returned this descriptor, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// The peer's SELinux or other security label, without the NUL at its end; `None` if there is none.
/// SO_PEERSEC, unix(7).
pub(crate) fn peer_label(socket: impl AsFd) -> Option<Vec<u8>> {
    let mut label = vec![0u8; MAX_LABEL];
    let mut length = MAX_LABEL as libc::socklen_t;
    // SAFETY: at most `length` bytes are written to the buffer, which is that long.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERSEC,
            label.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    Errno::result(result).ok()?;
    label.truncate(length as usize);
    while label.last() == Some(&0) {
        label.pop();
    }
    (!label.is_empty()).then_some(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_that_is_not_open_is_not_adopted() {
        assert_eq!(adopt(1_000_000, 1).unwrap_err(), (1_000_000, Errno::EBADF));
    }

    #[test]
    fn accepted_sockets_are_blocking_and_close_on_exec() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let _client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        listener.set_nonblocking(true).unwrap();
        let socket = accept(&listener).unwrap();
        assert_eq!(fcntl(&socket, FcntlArg::F_GETFD).unwrap(), libc::FD_CLOEXEC);
        assert_eq!(fcntl(&socket, FcntlArg::F_GETFL).unwrap() & libc::O_NONBLOCK, 0);
        assert_eq!(accept(&listener).unwrap_err(), Errno::EAGAIN);
    }
}
