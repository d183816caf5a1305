//! The nbd plugin as the client of a hostile server.

#![forbid(unsafe_code)]

use nbdkit_plugins::fuzz::nbd;

/// The first byte chooses what is decoded, a handshake, replies or a URI, and the second how.
///
/// # Panics
/// If a decoder does, or believes what cannot be.
pub fn target(data: &[u8]) {
    match data {
        [0, how, bytes @ ..] => nbd::handshake(*how, bytes),
        [1, how, bytes @ ..] => nbd::replies(*how, bytes),
        [_, bytes @ ..] => nbd::uri(&String::from_utf8_lossy(bytes)),
        [] => {}
    }
}
