//! `--vsock`: clients in virtual machines on this host, or on the host of this virtual machine.
//! vsock(7).

#![forbid(unsafe_code)]

use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, SockaddrLike, VsockAddr};

use thiserror::Error;

use crate::cli::command_line::NBD_PORT;
use crate::log::Log;
use crate::system_error::SystemError;

/// Why no vsock port is listened on.
#[derive(Debug, Error)]
pub(crate) enum VsockError {
    /// The kernel has no such sockets.
    #[error("{0}. The kernel has no vsock; is the module vsock loaded?")]
    NotSupported(SystemError),
    /// Another failure.
    #[error(transparent)]
    System(SystemError),
}

/// Listens on any context id.
///
/// # Errors
/// The kernel's; one without vsock has a line of its own.
pub(super) fn listen(port: Option<u32>, log: &Log) -> Result<OwnedFd, VsockError> {
    let port = port.unwrap_or_else(|| NBD_PORT.into());
    let socket = try_listen(port).map_err(|(call, errno)| match errno {
        Errno::EAFNOSUPPORT => VsockError::NotSupported(SystemError::on(call, "AF_VSOCK")(errno)),
        _ => {
            let object = format!("AF_VSOCK: port {port}");
            VsockError::System(SystemError::on(call, object)(errno))
        }
    })?;
    log.debug(|| format!("bound to vsock any:{port}"));
    Ok(socket)
}

fn try_listen(port: u32) -> Result<OwnedFd, (&'static str, Errno)> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket::socket(AddressFamily::Vsock, SockType::Stream, flags, None)
        .map_err(|errno| ("socket", errno))?;
    let address = VsockAddr::new(libc::VMADDR_CID_ANY, port);
    socket::bind(fd.as_raw_fd(), &address as &dyn SockaddrLike).map_err(|errno| ("bind", errno))?;
    socket::listen(&fd, Backlog::MAXCONN).map_err(|errno| ("listen", errno))?;
    Ok(fd)
}
