//! The messages between listener and worker, on a channel of each worker's own.

#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

use super::{LogRecord, ParkedState};
use crate::ids::StackId;
use crate::keys::{KeyAnswer, KeyRequest};

/// Longest name of a client's certificate, bytes. The sender truncates longer ones, the receiver
/// refuses them.
pub const MAX_DN: usize = 1024;

/// What a client's valid requests have read and written, bytes, but for those that failed. The
/// worker's word.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// NBD_CMD_READ.
    pub read: u64,
    /// NBD_CMD_WRITE.
    pub written: u64,
}

impl Totals {
    /// With those of another worker of the same client.
    #[must_use]
    pub fn and(self, other: Totals) -> Totals {
        Totals {
            read: self.read.saturating_add(other.read),
            written: self.written.saturating_add(other.written),
        }
    }
}

/// Sent by a worker, a process that parses a client's bytes, on its own channel: check before use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromWorker {
    /// A line for the log. At any time.
    Log(LogRecord),
    /// A plugin or filter asked the server to stop. Only if the stack has declared that it may.
    Shutdown,
    /// The handshake is over and this export is being served.
    Serving {
        /// The stack that serves it.
        stack: StackId,
        /// The export's name as the client gave it: hostile.
        export: String,
        /// The subject of the client's certificate, RFC 4514, if there is one: at most [`MAX_DN`]
        /// bytes.
        tls_dn: Option<String>,
    },
    /// The sandbox refused a system call, and the worker ends now. Sent by a signal handler: see
    /// [`refusal`](crate::refusal).
    Refused {
        /// The system call's number on this machine.
        syscall: u32,
    },
    /// A request for a signature or a pre-shared key. Once, before `Serving`. Answer: `Key`.
    Key(KeyRequest),
    /// A request for a channel to the broker. Answer: `Broker`.
    Broker {
        /// The stack whose broker is meant.
        stack: StackId,
    },
    /// The client is gone. At the end, once, if [`log_connections`] asks for it.
    ///
    /// [`log_connections`]: super::Configure::log_connections
    Totals(Totals),
    /// The client is idle: the worker has closed its export and ends now, with
    /// [`WorkerExit::Parked`](crate::WorkerExit::Parked). The listener, which has kept the client's
    /// socket, has the template fork another when a request comes. Once, after `Serving`, if
    /// [`park_after`](super::Serve::park_after) permits it.
    Park {
        /// What the client's next worker needs.
        state: ParkedState,
        /// What the client has read and written on this worker.
        totals: Totals,
    },
}

/// Sent by the listener to a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToWorker {
    /// Finish: no new requests, replies to the running ones, then exit.
    Quiesce,
    /// The answer to `Key`.
    Key(KeyAnswer),
    /// The answer to `Broker`. Descriptor: the worker's end of a channel to the broker, or none if
    /// there is no broker.
    Broker,
}
