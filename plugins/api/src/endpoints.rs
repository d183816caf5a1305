//! Connecting, in service, to the endpoints that a stack has declared
//! ([`Needs::connect_to`](crate::Needs::connect_to)): whatever their names resolve to at that time.
//!
//! A confined process makes no socket: it asks the stack's broker ([`connect_through`]), which
//! resolves the name, begins the connection and hands over the socket. Before `after_fork`, and
//! where there is no broker (code that declares nothing, `--sandbox=programs`, `compat`, `off`),
//! the connection is made here. What may be connected to is decided in one place for both:
//! [`direct`].
//!
//! In `after_fork` there may be no network any more: then a process that serves all clients asks
//! the broker already, and one that will be forked for each client gets EIO, for its forks cannot
//! share a connection.
//!
//! A plugin that follows a server's redirect to another host has no way to do so yet: every
//! endpoint is declared. [`Endpoint`] can grow a variant for that.

#![forbid(unsafe_code)]

pub mod direct;
mod services;
mod wait;

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::PollFlags;
use nix::sys::socket::{UnixAddr, getsockopt, sockopt};

use crate::client::{self, Client};
use crate::error::{Errno, Error, Result};
pub use direct::{Begun, Failure};
pub use wait::Wait;

/// Where a connection leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// A TCP port.
    Tcp {
        /// A name, or a literal address of IPv4 or IPv6 (without brackets).
        host: String,
        /// The port.
        port: u16,
    },
    /// A socket of the Unix domain: an absolute path of at most 107 bytes.
    Unix(PathBuf),
    /// A port of a virtual machine or of its host. vsock(7).
    Vsock {
        /// The machine's context identifier.
        cid: u32,
        /// The port.
        port: u32,
    },
}

impl Endpoint {
    /// A TCP port: a number, or a service's name, which is looked up now (services(5)).
    ///
    /// # Errors
    /// One line: there is no such port; a host that cannot be a name.
    pub fn tcp(host: impl Into<String>, port: &str) -> Result<Endpoint> {
        let host = host.into();
        if host.is_empty() || host.contains('\0') {
            return Err(Error::msg("the name of a host must not be empty"));
        }
        Ok(Endpoint::Tcp { host, port: services::port(port)? })
    }

    /// A socket of the Unix domain.
    ///
    /// # Errors
    /// One line: the path is too long, or not absolute.
    pub fn unix(path: impl Into<PathBuf>) -> Result<Endpoint> {
        let path = path.into();
        if !path.is_absolute() {
            return Err(Error::msg(format!("{}: the path is not absolute", path.display())));
        }
        UnixAddr::new(&path).map_err(|errno| Error::os(path.display(), errno))?;
        Ok(Endpoint::Unix(path))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Tcp { host, port } => write!(f, "tcp:{host}:{port}"),
            Endpoint::Unix(path) => write!(f, "unix:{}", path.display()),
            Endpoint::Vsock { cid, port } => write!(f, "vsock:{cid}:{port}"),
        }
    }
}

/// A socket that is connected to `endpoint`: close-on-exec and blocking; with TCP_NODELAY and
/// keepalive if it is one of TCP.
///
/// Addresses of a name are tried one after the other; one that is followed by others has half of
/// the time that is left. A Unix socket whose backlog is full is tried again, as connect(2) would
/// wait. `client` is the one being served, `None` in contexts that outlive connections.
///
/// Without a broker the lookup of a name takes as long as the resolver has patience
/// (resolv.conf(5)), and `deadline` holds for the rest.
///
/// # Errors
/// ETIMEDOUT at the deadline; ESHUTDOWN if the client is gone or the server stops; the kernel's and
/// the resolver's. The message, which clients may see, does not tell where the endpoint is; the log
/// does.
pub fn connect(client: Option<&Client>, endpoint: &Endpoint, deadline: Instant) -> Result<OwnedFd> {
    let wait = Wait { client, deadline };
    match attempt_all(endpoint, &wait) {
        Ok(fd) => Ok(fd),
        Err(Failure::Os(Errno::ESHUTDOWN)) => Err(Error::silent(Errno::ESHUTDOWN)
            .context("connect: aborted because the connection is closing")),
        Err(why) => {
            let mut error = why.into_error();
            crate::error!("{endpoint}: {}", error.message());
            // The error has been logged, with the place.
            let _ = error.take_for_log();
            Err(error)
        }
    }
}

fn attempt_all(endpoint: &Endpoint, wait: &Wait<'_>) -> Result<OwnedFd, Failure> {
    let mut beginning = Beginning { endpoint, addresses: None };
    let mut next = Some(0);
    let mut last = Failure::Os(Errno::ETIMEDOUT);
    while let Some(attempt) = next {
        let begun = beginning.begin(attempt, wait)?;
        match established(&begun.fd, &wait.shared(begun.next.is_some())) {
            Ok(()) => {
                fcntl(&begun.fd, FcntlArg::F_SETFL(OFlag::empty()))?;
                return Ok(begun.fd);
            }
            Err(Errno::ESHUTDOWN) => return Err(Failure::Os(Errno::ESHUTDOWN)),
            Err(errno) => {
                crate::debug!("{endpoint}: attempt {attempt}: {}", crate::strerror(errno));
                last = Failure::Os(errno);
            }
        }
        next = begun.next;
    }
    Err(last)
}

/// Begins attempts, here or by the broker.
struct Beginning<'a> {
    endpoint: &'a Endpoint,
    /// What the first attempt has found, without a broker.
    addresses: Option<Vec<direct::Address>>,
}

impl Beginning<'_> {
    fn begin(&mut self, attempt: u32, wait: &Wait<'_>) -> Result<Begun, Failure> {
        const FIRST_PAUSE: Duration = Duration::from_millis(20);
        const LONGEST_PAUSE: Duration = Duration::from_millis(640);
        let mut pause = FIRST_PAUSE;
        loop {
            match self.begin_once(attempt, wait) {
                // The backlog of a Unix socket is full.
                Err(Failure::Os(Errno::EAGAIN)) if wait.left() > pause => {
                    client::sleep(wait.client, pause)
                        .map_err(|error| Failure::Os(error.errno()))?;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                result => return result,
            }
        }
    }

    fn begin_once(&mut self, attempt: u32, wait: &Wait<'_>) -> Result<Begun, Failure> {
        if let Some(broker) = BROKER.get() {
            return broker.begin(self.endpoint, attempt, wait);
        }
        let addresses = match self.addresses.take() {
            Some(addresses) => addresses,
            None => direct::addresses(self.endpoint)?,
        };
        let begun = direct::begin(&addresses, attempt);
        self.addresses = Some(addresses);
        begun
    }
}

/// Waits until a connection that was begun is there.
fn established(fd: &OwnedFd, wait: &Wait<'_>) -> Result<(), Errno> {
    wait.ready(fd.as_fd(), PollFlags::POLLOUT)?;
    match getsockopt(fd, sockopt::SocketError)? {
        0 => Ok(()),
        errno => Err(Errno::from_raw(errno)),
    }
}

/// Who connects for a process that may not.
pub trait Broker: Send + Sync {
    /// Begins a connection: the `attempt`th address of `endpoint`, or the first behind it that does
    /// not fail at once. Waits no longer than `wait` permits.
    ///
    /// # Errors
    /// Those of [`direct`]; ETIMEDOUT, ESHUTDOWN; EIO if there is no answer.
    fn begin(&self, endpoint: &Endpoint, attempt: u32, wait: &Wait<'_>) -> Result<Begun, Failure>;
}

static BROKER: OnceLock<Box<dyn Broker>> = OnceLock::new();

/// From now on this process, and its forks, ask `broker` for connections. The first call counts.
pub fn connect_through(broker: Box<dyn Broker>) {
    let _ = BROKER.set(broker);
}

#[cfg(test)]
mod tests;
