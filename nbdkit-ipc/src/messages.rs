//! The messages between listener, template, workers, broker, watchers and spawner: a module for
//! each link.
//!
//! serde encodes the position of a variant, so the order of variants is the wire format; the tests
//! pin the bytes. Paths and parameters are `OsString`: they need not be UTF-8.

#![forbid(unsafe_code)]

pub mod broker;
mod configure;
mod log;
mod parked;
pub mod spawner;
mod template;
#[cfg(test)]
mod tests;
pub mod watcher;
mod worker;

pub use configure::{
    Allowed, Applies, Configure, DebugFlag, Parameter, Protocol, Purpose, Sandbox,
};
pub use log::{Level, LogRecord, MAX_LOG_TEXT};
pub use nbdkit_common::{Isolation, Peer, PeerAddress};
pub use parked::ParkedState;
pub use template::{Configured, EnterService, FromTemplate, Hello, Serve, ToTemplate};
pub use worker::{FromWorker, MAX_DN, ToWorker, Totals};
