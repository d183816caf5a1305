//! Socket activation: the sockets that a service manager passed. sd_listen_fds(3).
//!
//! nbdkit does not check what it was passed, and then fails on every accept. Here each must be a
//! listening stream socket.

#![forbid(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{SockType, getsockopt, sockopt};

use thiserror::Error;

use crate::cli::activation::FIRST_SOCKET;
use crate::strerror;

/// A descriptor that a service manager passed and no client can be accepted from.
#[derive(Debug, Error)]
#[error("socket activation: invalid file descriptor fd = {number}: {why}")]
pub(crate) struct ActivationError {
    number: i32,
    why: Unacceptable,
}

/// Why no client can be accepted from a descriptor.
#[derive(Debug, Error)]
#[cfg_attr(test, derive(PartialEq, Eq))]
pub(crate) enum Unacceptable {
    /// It is not open, or not a socket.
    #[error("{}", strerror(*.0))]
    System(#[from] Errno),
    /// It is a socket of another type.
    #[error("not a stream socket")]
    NotStream,
    /// listen(2) was not called.
    #[error("not a listening socket")]
    NoListener,
}

/// Takes over the sockets. Must be called first thing in the process.
///
/// # Errors
/// One of them is no listening socket.
pub(crate) fn adopt(count: u32) -> Result<Vec<OwnedFd>, ActivationError> {
    let sockets = crate::sys::socket::adopt(FIRST_SOCKET, count)
        .map_err(|(number, errno)| ActivationError { number, why: errno.into() })?;
    for socket in &sockets {
        check(socket).map_err(|why| ActivationError { number: socket.as_raw_fd(), why })?;
    }
    Ok(sockets)
}

/// Checks that `socket` is one that clients can be accepted from, and makes it non-blocking.
///
/// # Errors
/// It is no listening stream socket.
pub(crate) fn check(socket: impl AsFd) -> Result<(), Unacceptable> {
    let socket = socket.as_fd();
    if getsockopt(&socket, sockopt::SockType)? != SockType::Stream {
        return Err(Unacceptable::NotStream);
    }
    if !getsockopt(&socket, sockopt::AcceptConn)? {
        return Err(Unacceptable::NoListener);
    }
    let flags = OFlag::from_bits_retain(fcntl(socket, FcntlArg::F_GETFL)?);
    fcntl(socket, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use std::net::{TcpListener, UdpSocket};

    #[test]
    fn only_listening_stream_sockets_pass() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(check(&listener), Ok(()));
        assert_eq!(listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let (unconnected, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert_eq!(check(&unconnected), Err(Unacceptable::NoListener));
        let datagram = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert_eq!(check(&datagram), Err(Unacceptable::NotStream));
        let file = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(check(&file), Err(Unacceptable::System(Errno::ENOTSOCK)));
    }

    #[test]
    fn a_descriptor_that_is_not_there_is_named() {
        let error = ActivationError { number: 3, why: Errno::EBADF.into() };
        assert_eq!(
            error.to_string(),
            "socket activation: invalid file descriptor fd = 3: Bad file descriptor"
        );
    }
}
