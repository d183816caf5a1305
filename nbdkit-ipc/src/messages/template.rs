//! The messages between listener and template.

#![forbid(unsafe_code)]

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Configure, Isolation, LogRecord, Parameter, ParkedState, Peer, Totals};
use crate::ids::StackId;
use crate::keys::{KeyAnswer, KeyRequest, TlsPiece};
use crate::status::WorkerExit;

/// First message each way on the link between listener and template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`VERSION`](crate::VERSION) of the sender.
    pub version: u32,
    /// [`BUILD`](crate::BUILD) of the sender.
    pub build: String,
}

impl Hello {
    /// That of this program.
    pub fn ours() -> Hello {
        Hello { version: crate::VERSION, build: crate::BUILD.to_owned() }
    }

    /// Checks that the other end comes from the same build.
    ///
    /// # Errors
    /// One line that names both builds.
    pub fn check(&self) -> Result<(), String> {
        if *self == Hello::ours() {
            return Ok(());
        }
        let theirs: String = self.build.chars().take(64).flat_map(char::escape_debug).collect();
        Err(format!(
            "listener and worker come from different builds (ours: {} protocol {}, theirs: {theirs} protocol {})",
            crate::BUILD,
            crate::VERSION,
            self.version
        ))
    }
}

/// Sent by the listener to the template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToTemplate {
    /// First.
    Hello(Hello),
    /// What to load and how to serve it. Once, after `Hello`.
    Configure(Box<Configure>),
    /// One parameter for the stack, in command line order. After `Configure`.
    Parameter(Parameter),
    /// There are no more parameters. Answer: `Configured` or `Failed`.
    ConfigureEnd,
    /// Change to the final user, leave the terminal, get ready for clients. Answer: `Ready` or
    /// `Failed`.
    EnterService(EnterService),
    /// Serve a client. Descriptors: with isolation `Connection` the worker's control channel, its
    /// channel to the broker if it gets one, then the client's socket, then its output if that is
    /// another descriptor (`-s`). Answers: `Forked` (or, with isolation `Shared`, none), and
    /// `Exited` in the end.
    Serve(Serve),
    /// Finish: connections end after their running requests, then the stack is cleaned up and the
    /// process exits.
    Quiesce,
    /// Part of what TLS needs, in order. After `Configure`, before `ConfigureEnd`.
    TlsPiece(TlsPiece),
    /// The answer to `Key`.
    Key {
        /// Which client's.
        connection: u64,
        /// The answer.
        answer: KeyAnswer,
    },
    /// With isolation `Shared`: end a client at once, if it is still there. Answer: `Exited`, as
    /// for any end.
    Disconnect {
        /// Which client.
        connection: u64,
    },
}

/// Sent by the template, a confined process: check before use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromTemplate {
    /// First.
    Hello(Hello),
    /// The stack is configured and ready.
    Configured(Configured),
    /// Start-up failed. The reasons have been logged. The process exits.
    Failed,
    /// A line for the log. At any time.
    Log(LogRecord),
    /// The template accepts clients.
    Ready,
    /// A worker was forked for a client. Descriptor: a handle on its process (pidfd), unless the
    /// template had no free descriptor.
    Forked {
        /// Which client.
        connection: u64,
        /// The worker's process id.
        pid: i32,
    },
    /// A client's service ended.
    Exited {
        /// Which client.
        connection: u64,
        /// How.
        exit: WorkerExit,
    },
    /// A plugin or filter asked the server to stop (`nbdkit_shutdown`). Once it is configured, only
    /// if the stack has declared that it may.
    Shutdown,
    /// The sandbox refused a system call of the template itself, which ends now. Sent by a signal
    /// handler: see [`refusal`](crate::refusal).
    Refused {
        /// The system call's number on this machine.
        syscall: u32,
    },
    /// With isolation `Shared`: a connection's `Key`, which else its worker sends. Answer: `Key`.
    Key {
        /// For which client.
        connection: u64,
        /// The request.
        request: KeyRequest,
    },
    /// With isolation `Shared`: the handshake of a client is over and this export is being served.
    Serving {
        /// Which client.
        connection: u64,
        /// The stack that serves it.
        stack: StackId,
        /// The export's name as the client gave it: hostile.
        export: String,
        /// As in [`FromWorker::Serving`](crate::FromWorker::Serving).
        tls_dn: Option<String>,
    },
    /// The template has forked its broker. At most once, before `Ready`. Descriptor: the listener's
    /// end of its channel.
    Broker {
        /// The stack whose paths and endpoints it opens.
        stack: StackId,
        /// Its process id.
        pid: i32,
        /// Every client will need it: workers get their channels with their clients.
        always: bool,
    },
    /// With isolation `Shared`: a connection's `Totals`, which else its worker sends.
    Totals {
        /// Which client's.
        connection: u64,
        /// What it has read and written.
        totals: Totals,
    },
}

/// What a configured stack has declared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configured {
    /// The stack that was configured.
    pub stack: StackId,
    /// Only one client at a time (NBDKIT_THREAD_MODEL_SERIALIZE_CONNECTIONS).
    pub one_client: bool,
    /// How clients are to be divided.
    pub isolation: Isolation,
    /// Whether a later template serves the same disk. Not if what clients wrote is only in this
    /// one's memory.
    pub replaceable: bool,
    /// Whether the stack may send `Shutdown` in service.
    pub may_shutdown: bool,
    /// Whether the stack runs programs, which are killed with it.
    pub programs: bool,
    /// Whether the stack has code that does not declare what it needs.
    pub undeclared: bool,
    /// Whether clients that are idle can give up their workers.
    pub can_park: bool,
}

/// The step from start-up into service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnterService {
    /// The user to become (`-u`). Supplementary groups are dropped.
    pub user: Option<u32>,
    /// The group to become (`-g`).
    pub group: Option<u32>,
    /// Whether standard error is closed too, because the server is in the background.
    pub background: bool,
    /// Whether nbdkit's server has forked when it calls `after_fork`: into the background, or for
    /// `--run`.
    pub forked: bool,
}

/// A client to serve.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Serve {
    /// Its number, counted from 1.
    pub connection: u64,
    /// The stack that is to serve it.
    pub stack: StackId,
    /// Its address and credentials.
    pub peer: Peer,
    /// Whether the worker's end of a channel to the broker is attached.
    pub broker: bool,
    /// With isolation `Connection`: how long the client has to be idle to be parked; `None` if it
    /// is never to be.
    pub park_after: Option<Duration>,
    /// The state of a client that was parked: it is in transmission already.
    pub parked: Option<ParkedState>,
}
