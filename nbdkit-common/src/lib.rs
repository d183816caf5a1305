//! What the programs and the interface of plugins have in common: plain types and functions,
//! without I/O. It is a crate of its own because `nbdkit-api`, which
//! plugins are written against, must not depend on the control channel, nor the control channel on
//! it.

#![forbid(unsafe_code)]

mod errno;
mod isolation;
pub mod numbers;
pub mod partitions;
mod peer;

/// The version of nbdkit whose command line, plugins, filters and interfaces this server has.
pub const NBDKIT_VERSION: &str = "1.46.0";

pub use errno::{errno_text, strerror};
pub use isolation::Isolation;
pub use peer::{Peer, PeerAddress, TlsPeer};
