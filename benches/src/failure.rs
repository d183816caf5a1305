//! Why there is no measurement: the server cannot do it, or it did it wrong. The second ends the
//! whole run.
#![forbid(unsafe_code)]

use std::fmt;
use std::io;

use nbd_protocol::Malformed;

/// Why a workload has no result with a server.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The server or a tool cannot do this here; the reason for people.
    Unavailable(String),
    /// The server answered with wrong data or broke the protocol.
    Wrong(String),
}

impl Failure {
    /// A failed system call or a connection that broke: operation, object, cause.
    pub(crate) fn io(operation: &str, object: impl fmt::Display, cause: &io::Error) -> Failure {
        Failure::Unavailable(format!("{operation}: {object}: {cause}"))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Unavailable(reason) | Failure::Wrong(reason) => f.write_str(reason),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Unavailable(format!("connection: {error}"))
    }
}

impl From<Malformed> for Failure {
    fn from(malformed: Malformed) -> Failure {
        Failure::Wrong(format!("reply: {malformed}"))
    }
}

impl From<nix::Error> for Failure {
    fn from(error: nix::Error) -> Failure {
        Failure::from(io::Error::from(error))
    }
}
