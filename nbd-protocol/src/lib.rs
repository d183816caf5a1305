//! The NBD protocol as constants and wire codecs: what the bytes are, never how they travel.
//!
//! Used by the worker, the nbd plugin, the end-to-end tests and the fuzzers, so it does no I/O and decides no policy:
//! a decoder says whether bytes are a well-formed message of the protocol, and the caller decides whether the message is
//! welcome. Every decoder takes hostile bytes; none panics, none allocates, all reject bytes that are left over.
//!
//! The protocol document is `doc/proto.md` of the NBD project; section names below refer to it. All integers are
//! big-endian on the wire.
#![forbid(unsafe_code)]

pub mod constants;
pub mod handshake;
mod malformed;
pub mod transmission;
mod wire;

pub use malformed::Malformed;
