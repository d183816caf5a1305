//! The messages between listener and worker, on a channel of each worker's own.

#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

use super::LogRecord;
use crate::ids::StackId;
use crate::keys::{KeyAnswer, KeyRequest};

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
