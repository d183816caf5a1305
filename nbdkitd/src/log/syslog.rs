//! The system log, at facility LOG_DAEMON. syslog(3).
//!
//! A confined listener cannot connect any more: a system log that listens on a stream socket, as
//! old ones do, is lost when it is restarted, one with a datagram socket is not.

#![forbid(unsafe_code)]

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{SocketAddr, UnixStream};

use nbdkit_ipc::messages::Level;
use nix::sys::socket::UnixAddr;
use syslog::{Facility, Formatter3164, LogFormat, Severity};

use crate::datagram::DatagramClient;

/// The path of its socket. syslog(3) of glibc: _PATH_LOG.
const PATH: &str = "/dev/log";

/// A client of the system log.
pub(super) struct Syslog {
    formatter: Formatter3164,
    socket: Option<Socket>,
}

enum Socket {
    Datagram(DatagramClient),
    Stream(UnixStream),
}

impl Socket {
    fn connect() -> Option<Socket> {
        let address = SocketAddr::from_pathname(PATH).ok()?;
        match DatagramClient::new(address) {
            Ok(client) => Some(Socket::Datagram(client)),
            Err(error) if error.raw_os_error() == Some(libc::EPROTOTYPE) => {
                let stream = UnixStream::connect(PATH).ok()?;
                // A system log that is stuck must not stop the server; a line is lost instead.
                stream.set_nonblocking(true).ok()?;
                Some(Socket::Stream(stream))
            }
            Err(_) => None,
        }
    }
}

impl Syslog {
    /// Connects to the system log, if it is there.
    pub(super) fn new() -> Syslog {
        let formatter = Formatter3164 {
            facility: Facility::LOG_DAEMON,
            hostname: None,
            process: "nbdkit".to_owned(),
            pid: std::process::id(),
        };
        Syslog { formatter, socket: Socket::connect() }
    }

    /// Sends a line at the priority of its level.
    pub(super) fn write(&mut self, level: Level, line: &str) {
        let Some(socket) = &mut self.socket else { return };
        let severity = match level {
            Level::Error => Severity::LOG_ERR,
            Level::Warning => Severity::LOG_WARNING,
            Level::Notice => Severity::LOG_NOTICE,
            Level::Debug => Severity::LOG_DEBUG,
        };
        let mut message = Vec::new();
        if self.formatter.format(&mut message, severity, line).is_err() {
            return;
        }
        match socket {
            Socket::Datagram(client) => drop(client.send(&message)),
            Socket::Stream(stream) => {
                // Messages end in NUL. Half of one would be the beginning of the next.
                message.push(0);
                if stream.write_all(&message).is_err() {
                    self.socket = None;
                }
            }
        }
    }

    /// What a signal handler needs to write a line: the socket, its address unless it is connected
    /// for good, and the prefix `<PRIORITY>PROGRAM[PID]: `.
    pub(super) fn raw_output(&self) -> Option<(BorrowedFd<'_>, Option<UnixAddr>, String)> {
        let priority = libc::LOG_DAEMON | libc::LOG_ERR;
        let head = format!("<{priority}>{}[{}]: ", self.formatter.process, self.formatter.pid);
        match self.socket.as_ref()? {
            Socket::Datagram(client) => Some((client.as_fd(), UnixAddr::new(PATH).ok(), head)),
            Socket::Stream(stream) => Some((stream.as_fd(), None, head)),
        }
    }
}
