//! Socket activation: the sockets that a service manager passed. sd_listen_fds(3).
//!
//! nbdkit does not check what it was passed, and then fails on every accept. Here each must be a
//! listening stream socket.

#![forbid(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{SockType, getsockopt, sockopt};

use crate::cli::activation::FIRST_SOCKET;
use crate::{errno_text, strerror};

/// Takes over the sockets. Must be called first thing in the process.
///
/// # Errors
/// One line for the user.
pub(crate) fn adopt(count: u32) -> Result<Vec<OwnedFd>, String> {
    let sockets = crate::sys::socket::adopt(FIRST_SOCKET, count)
        .map_err(|(number, error)| invalid(number, &errno_text(&error)))?;
    for socket in &sockets {
        check(socket).map_err(|why| invalid(socket.as_raw_fd(), &why))?;
    }
    Ok(sockets)
}

fn invalid(number: i32, why: &str) -> String {
    format!("socket activation: invalid file descriptor fd = {number}: {why}")
}

/// Checks that `socket` is one that clients can be accepted from, and makes it non-blocking.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn check(socket: impl AsFd) -> Result<(), String> {
    let socket = socket.as_fd();
    if getsockopt(&socket, sockopt::SockType).map_err(strerror)? != SockType::Stream {
        return Err("not a stream socket".to_owned());
    }
    if !getsockopt(&socket, sockopt::AcceptConn).map_err(strerror)? {
        return Err("not a listening socket".to_owned());
    }
    let flags = OFlag::from_bits_retain(fcntl(socket, FcntlArg::F_GETFL).map_err(strerror)?);
    fcntl(socket, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).map_err(strerror)?;
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
        assert_eq!(check(&unconnected), Err("not a listening socket".to_owned()));
        let datagram = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert_eq!(check(&datagram), Err("not a stream socket".to_owned()));
        let file = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(check(&file), Err("Socket operation on non-socket".to_owned()));
    }

    #[test]
    fn a_descriptor_that_is_not_there_is_named() {
        let text = invalid(3, "Bad file descriptor");
        assert_eq!(text, "socket activation: invalid file descriptor fd = 3: Bad file descriptor");
    }
}
