//! The messages to and from a broker, which opens declared paths and connects to declared endpoints
//! for workers that may do neither.
//!
//! A worker sends its requests on a channel of its own ([`ToBroker`], [`FromBroker`]), which the
//! listener has made for it: to the broker every message on it is hostile. On another channel the
//! listener sends the broker its ends of such channels, and receives log lines ([`ToBrokerLink`],
//! [`FromBrokerLink`]).

#![forbid(unsafe_code)]

use std::ffi::OsString;

use serde::{Deserialize, Serialize};

use crate::messages::LogRecord;

/// Longest name of a directory's entry, bytes. NAME_MAX, pathname(7).
pub const MAX_NAME: usize = 255;
/// Longest reason of a failed lookup, bytes. gai_strerror(3) of glibc has none longer than 50.
pub const MAX_REASON: usize = 128;

/// What a descriptor is requested for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum OpenAccess {
    /// Reading.
    Read,
    /// Reading and writing, or reading alone where writing is not permitted.
    Write,
    /// Listing a directory.
    List,
}

/// Sent to the broker by a worker, or by a template that serves all clients: a process that parses
/// clients' bytes. Check before use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToBroker {
    /// Open what a declared path leads to now. Answer: `Opened`, `Refused` or `WrongType`.
    Open {
        /// Which of the paths that the stack has declared, counted from 0.
        path: u32,
        /// The name of a direct child, if the path is a directory: at most [`MAX_NAME`] bytes, no
        /// `/`.
        name: Option<OsString>,
        /// What for.
        access: OpenAccess,
    },
    /// Begin a connection to a declared endpoint. Answer: `Connecting`, `Refused` or `NotResolved`.
    Connect {
        /// Which of the endpoints that the stack has declared, counted from 0.
        endpoint: u32,
        /// Which of its addresses, counted from 0. 0 resolves its name; others are of the last
        /// answer to 0 on this channel.
        attempt: u32,
    },
}

/// The broker's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromBroker {
    /// Descriptor: what was opened.
    Opened {
        /// Whether it is open for writing too.
        writable: bool,
        /// Whether it is a block device; else a regular file or a directory.
        block_device: bool,
    },
    /// The path could not be opened, or the endpoint connected to; or the stack has not declared
    /// it.
    Refused {
        /// Why.
        errno: i32,
    },
    /// The path is neither a regular file nor a block device.
    WrongType,
    /// Descriptor: a socket, non-blocking, whose connection is established or about to be
    /// (EINPROGRESS, connect(2)).
    Connecting {
        /// The attempt to ask for if this one fails; `None` after the last address.
        next: Option<u32>,
    },
    /// The endpoint's name could not be resolved.
    NotResolved {
        /// The resolver's message: at most [`MAX_REASON`] bytes.
        reason: String,
    },
}

/// Sent by the listener to a broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToBrokerLink {
    /// A worker gets a channel. Descriptor: the broker's end.
    Channel {
        /// The connection that the worker serves.
        connection: u64,
    },
}

/// Sent by a broker, a confined process, to the listener: check before use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromBrokerLink {
    /// A line for the log.
    Log(LogRecord),
    /// The sandbox refused a system call, and the broker ends now. Sent by a signal handler: see
    /// [`refusal`](crate::refusal).
    Refused {
        /// The system call's number on this machine.
        syscall: u32,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{decode, encode};

    /// If these bytes change, so must `VERSION`.
    #[test]
    fn messages_keep_their_bytes() {
        let open = ToBroker::Open { path: 7, name: Some("ab".into()), access: OpenAccess::Write };
        let bytes = [
            &[0, 0, 0, 0, 7, 0, 0, 0, 1, 0, 0, 0, 0][..],
            &[2, 0, 0, 0, 0, 0, 0, 0, b'a', b'b'],
            &[1, 0, 0, 0],
        ]
        .concat();
        assert_eq!(encode(&open).unwrap(), bytes);
        assert_eq!(decode::<ToBroker>(&bytes), Some(open));
        let opened = FromBroker::Opened { writable: true, block_device: false };
        assert_eq!(encode(&opened).unwrap(), [0, 0, 0, 0, 1, 0]);
        assert_eq!(encode(&FromBroker::Refused { errno: 13 }).unwrap(), [1, 0, 0, 0, 13, 0, 0, 0]);
        assert_eq!(encode(&FromBroker::WrongType).unwrap(), [2, 0, 0, 0]);
        let connect = ToBroker::Connect { endpoint: 7, attempt: 2 };
        assert_eq!(encode(&connect).unwrap(), [1, 0, 0, 0, 7, 0, 0, 0, 2, 0, 0, 0]);
        let connecting = FromBroker::Connecting { next: Some(3) };
        assert_eq!(encode(&connecting).unwrap(), [3, 0, 0, 0, 1, 3, 0, 0, 0]);
        assert_eq!(encode(&FromBroker::Connecting { next: None }).unwrap(), [3, 0, 0, 0, 0]);
        let not_resolved = FromBroker::NotResolved { reason: "no".into() };
        let bytes = [&[4, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0][..], b"no"].concat();
        assert_eq!(encode(&not_resolved).unwrap(), bytes);
        let channel = ToBrokerLink::Channel { connection: 3 };
        assert_eq!(encode(&channel).unwrap(), [0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]);
        let refused = FromBrokerLink::Refused { syscall: 101 };
        assert_eq!(encode(&refused).unwrap(), [1, 0, 0, 0, 101, 0, 0, 0]);
        for (access, byte) in [(OpenAccess::Read, 0), (OpenAccess::List, 2)] {
            assert_eq!(encode(&access).unwrap()[0], byte);
        }
    }
}
