//! The server, where this crate is a part of a plugin in a file: what belongs to the whole process
//! (the log, the client's socket, the end) is the server's own, which has its own copy of this
//! crate or none. Without a host, this program is the server.
//!
//! Runs in the process that serves clients. [`client::serve_under`](crate::client::serve_under) is
//! called once, when the file is loaded (`plugins/export/`).

#![forbid(unsafe_code)]

use std::sync::OnceLock;
use std::time::Duration;

use nbdkit_common::{Peer, TlsPeer};

use crate::error::Result;
use crate::log::Level;

/// The functions of a server that has loaded this code. Those about a client are for the one that
/// the calling thread serves, in a callback.
#[derive(Debug, Clone, Copy)]
pub struct Host {
    /// Logs a line.
    pub log: fn(Level, &str),
    /// Whether standard input and output may be used while the plugin is configured.
    pub stdio_safe: fn() -> bool,
    /// Stops the server.
    pub shutdown: fn(),
    /// Drops the client, if the flag is set at once.
    pub disconnect: fn(bool),
    /// Sleeps, unless the client goes away meanwhile: ESHUTDOWN then.
    pub sleep: fn(Duration) -> Result<()>,
    /// Who the client is.
    pub peer: fn() -> Peer,
    /// What TLS has established about it, if it uses TLS.
    pub tls: fn() -> TlsPeer,
}

static HOST: OnceLock<Host> = OnceLock::new();

/// The first host counts. Returns whether this is it.
pub(crate) fn set(host: Host) -> bool {
    HOST.set(host).is_ok()
}

/// The server that has loaded this code, if that is not the program itself.
pub(crate) fn host() -> Option<&'static Host> {
    HOST.get()
}
