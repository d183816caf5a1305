//! TCP: `-i`, `-p`, `-4`, `-6`.

#![forbid(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    self, AddressFamily as Family, Backlog, SockFlag, SockType, SockaddrIn, SockaddrIn6,
    SockaddrLike, SockaddrStorage, getsockname, setsockopt, sockopt,
};
use thiserror::Error;

use super::Listening;
use crate::cli::command_line::{AddressFamily, NBD_PORT, TcpPort};
use crate::log::Log;
use crate::sys::resolve::{ResolveError, resolve};
use crate::system_error::SystemError;

/// Why no TCP port is listened on.
#[derive(Debug, Error)]
pub(crate) enum TcpError {
    /// The name of the interface or the service means nothing.
    #[error("getaddrinfo: {host}: {service}: {why}")]
    Resolve { host: String, service: String, why: ResolveError },
    /// It means no address.
    #[error("unable to bind to any TCP/IP sockets: {host}:{service}: no address")]
    NoAddress { host: String, service: String },
    /// No address could be listened on; this is why the last one could not.
    #[error("unable to bind to any TCP/IP sockets: {0}")]
    Bind(SystemError),
}

/// Listens on every address that `address` and `port` mean. Addresses that are in use, or of a
/// family that the kernel lacks, are passed over as long as there is another.
///
/// # Errors
/// The name cannot be resolved, or no address can be listened on.
pub(super) fn listen(
    address: Option<&OsStr>,
    port: Option<&TcpPort>,
    family: AddressFamily,
    log: &Log,
) -> Result<Listening, TcpError> {
    let service = port.map_or_else(|| OsString::from(NBD_PORT.to_string()), TcpPort::text);
    let host = address.map_or_else(|| "<any>".into(), OsStr::to_string_lossy);
    let shown = |service: &OsStr| format!("{host}:{}", service.to_string_lossy());
    let addresses = resolve(address, &service, family).map_err(|why| TcpError::Resolve {
        host: host.to_string(),
        service: service.to_string_lossy().into_owned(),
        why,
    })?;

    let any_port = port == Some(&TcpPort::Number(0));
    let mut listening = Listening::on(Vec::new());
    let mut failure = None;
    for mut address in addresses {
        // Once the kernel has chosen a port it is that one for all addresses.
        if let Some(port) = listening.port {
            address.set_port(port);
        }
        match listen_on(address) {
            Ok((socket, port)) => {
                listening.sockets.push(socket);
                if any_port {
                    listening.port = Some(port);
                }
            }
            Err((call, errno)) => {
                let error = SystemError::on(call, address)(errno);
                log.debug(|| format!("{error} (ignored)"));
                failure = Some(error);
            }
        }
    }
    if listening.sockets.is_empty() {
        return Err(match failure {
            Some(error) => TcpError::Bind(error),
            None => TcpError::NoAddress {
                host: host.to_string(),
                service: service.to_string_lossy().into_owned(),
            },
        });
    }
    log.debug(|| {
        let service = listening.port.map_or(service, |port| port.to_string().into());
        let count = listening.sockets.len();
        format!("bound to IP address {} ({count} socket(s))", shown(&service))
    });
    Ok(listening)
}

/// A listening socket and its port. On failure, which call failed.
fn listen_on(address: SocketAddr) -> Result<(OwnedFd, u16), (&'static str, Errno)> {
    let family = if address.is_ipv6() { Family::Inet6 } else { Family::Inet };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket::socket(family, SockType::Stream, flags, None).map_err(|e| ("socket", e))?;
    setsockopt(&fd, sockopt::ReuseAddr, &true).map_err(|e| ("setsockopt: SO_REUSEADDR", e))?;
    if address.is_ipv6() {
        // IPv4 has a socket of its own.
        setsockopt(&fd, sockopt::Ipv6V6Only, &true).map_err(|e| ("setsockopt: IPV6_V6ONLY", e))?;
    }
    let name = SockaddrStorage::from(address);
    socket::bind(fd.as_raw_fd(), &name as &dyn SockaddrLike).map_err(|e| ("bind", e))?;
    socket::listen(&fd, Backlog::MAXCONN).map_err(|e| ("listen", e))?;
    let bound: SockaddrStorage = getsockname(fd.as_raw_fd()).map_err(|e| ("getsockname", e))?;
    let port = bound
        .as_sockaddr_in()
        .map(SockaddrIn::port)
        .or_else(|| bound.as_sockaddr_in6().map(SockaddrIn6::port));
    Ok((fd, port.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::command_line::Options;

    fn listen_at(address: &str, port: u16, family: AddressFamily) -> Result<Listening, TcpError> {
        let log = Log::new("nbdkit", &Options::default()).unwrap();
        listen(Some(OsStr::new(address)), Some(&TcpPort::Number(port)), family, &log)
    }

    #[test]
    fn port_0_is_one_that_the_kernel_chose_and_clients_can_connect() {
        let listening = listen_at("127.0.0.1", 0, AddressFamily::Any).unwrap();
        let port = listening.port.unwrap();
        assert_ne!(port, 0);
        std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    }

    #[test]
    fn a_port_in_use_is_an_error_that_names_the_address() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = listen_at("127.0.0.1", port, AddressFamily::V4).err().unwrap();
        assert_eq!(
            error.to_string(),
            format!(
                "unable to bind to any TCP/IP sockets: bind: 127.0.0.1:{port}: Address already in use"
            )
        );
    }

    #[test]
    fn the_address_must_be_of_the_family() {
        let error = listen_at("::1", 0, AddressFamily::V4).err().unwrap().to_string();
        assert!(error.starts_with("getaddrinfo: ::1: 0: "), "{error}");
    }
}
