//! The NBD protocol as constants and wire codecs, without I/O.
//!
//! Used by the worker, the nbd plugin, the end-to-end tests and the fuzzers, and therefore free of
//! policy: a decoder checks whether bytes are a well-formed message of the protocol; whether the
//! message is permitted now is for the caller to decide. Every decoder takes hostile bytes; none
//! panics, none allocates, all reject trailing bytes.
//!
//! The protocol document is `doc/proto.md` of the NBD project; section names below refer to it. All
//! integers are big-endian on the wire.
#![forbid(unsafe_code)]

pub mod constants;
pub mod handshake;
mod malformed;
pub mod transmission;
mod wire;

pub use malformed::Malformed;
