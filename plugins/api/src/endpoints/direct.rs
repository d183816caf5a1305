//! What may be connected to, and how a connection begins: one rule, for the broker and for
//! processes that connect by themselves.
//!
//! A name never leads to a link-local, multicast, broadcast or unspecified address: whoever answers
//! for a name could send the server to services that trust whatever comes from the machine or its
//! link (169.254.169.254 of clouds). An address that the operator has written out is connected to,
//! whatever it is. Loopback and private addresses are what disks are served from and are not
//! refused.

#![forbid(unsafe_code)]

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrLike, SockaddrStorage, UnixAddr,
    VsockAddr, connect, setsockopt, socket, sockopt,
};

use super::Endpoint;
use crate::error::{Errno, Error};

/// Most addresses of a name that are tried.
pub const MOST_ADDRESSES: usize = 16;

/// Keepalive of TCP: after how long without a byte the other end is probed, and how long until the
/// next probe, seconds.
const IDLE: u32 = 60;
const INTERVAL: u32 = 15;
/// How long probes, or data that were sent, may go without an answer, milliseconds.
const UNANSWERED: u32 = 120_000;

/// Bytes of a Unix socket's send buffer: two requests of 256 KiB. The default holds less than one,
/// so that both ends would sleep for each.
const UNIX_SEND_BUFFER: usize = 512 << 10;

/// What an endpoint leads to now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A TCP port.
    Ip(SocketAddr),
    /// A socket of the Unix domain.
    Unix(PathBuf),
    /// A port of another machine on this host.
    Vsock {
        /// Which machine.
        cid: u32,
        /// Which port.
        port: u32,
    },
}

/// A connection that is established or about to be.
#[derive(Debug)]
pub struct Begun {
    /// The socket: non-blocking, close-on-exec. connect(2), EINPROGRESS.
    pub fd: OwnedFd,
    /// The attempt that is next if this one fails; `None` after the last address.
    pub next: Option<u32>,
}

/// Why there is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The kernel's reason.
    Os(Errno),
    /// The resolver's: the words of gai_strerror(3).
    NotResolved(String),
}

impl Failure {
    /// The error, which does not tell where the endpoint is.
    pub(super) fn into_error(self) -> Error {
        match self {
            Failure::Os(errno) => Error::os("connect", errno),
            Failure::NotResolved(why) => Error::new(Errno::EIO, format!("getaddrinfo: {why}")),
        }
    }
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Failure {
        Failure::Os(errno)
    }
}

/// Whether finding the addresses of `endpoint`, or beginning a connection, may block: a
/// resolver, or the file system that a socket is in.
pub fn may_wait(endpoint: &Endpoint) -> bool {
    match endpoint {
        Endpoint::Tcp { host, .. } => literal(host).is_none(),
        Endpoint::Unix(_) => true,
        Endpoint::Vsock { .. } => false,
    }
}

/// What `endpoint` leads to now, in the order in which it is to be tried (getaddrinfo(3), RFC
/// 6724): at least one address.
///
/// # Errors
/// The resolver's; EACCES if all that a name leads to is refused.
pub fn addresses(endpoint: &Endpoint) -> Result<Vec<Address>, Failure> {
    match endpoint {
        Endpoint::Tcp { host, port } => match literal(host) {
            Some(address) => Ok(vec![Address::Ip(SocketAddr::new(address, *port))]),
            None => resolve(host, *port),
        },
        Endpoint::Unix(path) => Ok(vec![Address::Unix(path.clone())]),
        Endpoint::Vsock { cid, port } => Ok(vec![Address::Vsock { cid: *cid, port: *port }]),
    }
}

fn literal(host: &str) -> Option<IpAddr> {
    host.parse().ok()
}

fn resolve(host: &str, port: u16) -> Result<Vec<Address>, Failure> {
    let found = (host, port).to_socket_addrs().map_err(|error| not_resolved(&error))?;
    // The zone of a link (fe80::1%eth0) is written out by the operator only.
    let written =
        host.split_once('%').is_some_and(|(address, _)| address.parse::<Ipv6Addr>().is_ok());
    let all = found.filter(|it| written || may_be_led_to(it.ip()));
    let all: Vec<Address> = all.take(MOST_ADDRESSES).map(Address::Ip).collect();
    if all.is_empty() { Err(Failure::Os(Errno::EACCES)) } else { Ok(all) }
}

/// std has the resolver's words, behind words of its own, and no number.
fn not_resolved(error: &io::Error) -> Failure {
    if let Some(number) = error.raw_os_error() {
        return Failure::Os(Errno::from_raw(number));
    }
    let text = error.to_string();
    let words = text.strip_prefix("failed to lookup address information: ").unwrap_or(&text);
    Failure::NotResolved(words.to_owned())
}

/// Whether a name may lead there.
fn may_be_led_to(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => may_be_led_to_v4(address),
        IpAddr::V6(address) => match embedded(address) {
            Some(embedded) => may_be_led_to_v4(embedded),
            None => {
                !(address.is_unspecified()
                    || address.is_multicast()
                    || address.is_unicast_link_local())
            }
        },
    }
}

fn may_be_led_to_v4(address: Ipv4Addr) -> bool {
    // All of 0.0.0.0/8 is "this network": RFC 1122, 3.2.1.3.
    let unspecified = address.octets()[0] == 0;
    !(unspecified || address.is_link_local() || address.is_multicast() || address.is_broadcast())
}

/// The address of IPv4 that an address of IPv6 stands for: mapped (::ffff:0:0/96), or by a
/// translator (64:ff9b::/96, RFC 6052; 2002::/16, RFC 3056).
fn embedded(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let of = |high: u16, low: u16| Ipv4Addr::from(u32::from(high) << 16 | u32::from(low));
    match address.segments() {
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            Some(of(high, low))
        }
        [0x2002, high, low, ..] => Some(of(high, low)),
        _ => None,
    }
}

/// Begins a connection to the `attempt`th address, or to the first behind it that does not fail at
/// once. Waits for nobody but the file system that a Unix socket is in.
///
/// # Errors
/// EADDRNOTAVAIL: there are not so many; EAGAIN: a Unix socket's backlog is full; the kernel's for
/// the last address.
pub fn begin(addresses: &[Address], attempt: u32) -> Result<Begun, Failure> {
    let mut last = Errno::EADDRNOTAVAIL;
    let count = u32::try_from(addresses.len()).unwrap_or(u32::MAX);
    for (address, number) in addresses.iter().zip(0_u32..).skip(attempt as usize) {
        match begin_one(address) {
            Ok(fd) => {
                let next = Some(number.saturating_add(1)).filter(|next| *next < count);
                return Ok(Begun { fd, next });
            }
            Err(errno) => last = errno,
        }
    }
    Err(Failure::Os(last))
}

fn begin_one(address: &Address) -> nix::Result<OwnedFd> {
    match address {
        Address::Ip(address) => {
            let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
            let fd = stream(family, Some(SockProtocol::Tcp))?;
            // A request must not wait for the next, and a dead peer must be
            // noticed. tcp(7)
            let _ = setsockopt(&fd, sockopt::TcpNoDelay, &true);
            let _ = setsockopt(&fd, sockopt::KeepAlive, &true);
            let _ = setsockopt(&fd, sockopt::TcpKeepIdle, &IDLE);
            let _ = setsockopt(&fd, sockopt::TcpKeepInterval, &INTERVAL);
            let _ = setsockopt(&fd, sockopt::TcpUserTimeout, &UNANSWERED);
            started(fd, &SockaddrStorage::from(*address))
        }
        Address::Unix(path) => {
            let fd = stream(AddressFamily::Unix, None)?;
            let _ = setsockopt(&fd, sockopt::SndBuf, &UNIX_SEND_BUFFER);
            started(fd, &UnixAddr::new(path.as_path())?)
        }
        Address::Vsock { cid, port } => {
            started(stream(AddressFamily::Vsock, None)?, &VsockAddr::new(*cid, *port))
        }
    }
}

fn stream(family: AddressFamily, protocol: Option<SockProtocol>) -> nix::Result<OwnedFd> {
    socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, protocol)
}

fn started(fd: OwnedFd, address: &dyn SockaddrLike) -> nix::Result<OwnedFd> {
    use std::os::fd::AsRawFd;
    match connect(fd.as_raw_fd(), address) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(fd),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests;
