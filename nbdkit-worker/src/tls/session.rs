//! A TLS session as bytes in and bytes out.

#![forbid(unsafe_code)]

use std::fmt;
use std::io;
use std::sync::Arc;

use crate::authority::Authority;

/// Why a session cannot go on, in words. What tells the peer is in its output.
#[derive(Debug)]
pub(crate) struct Failure(pub(crate) String);

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<Failure> for io::Error {
    fn from(failure: Failure) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, failure.0)
    }
}

/// What all sessions of a server have in common.
pub(crate) trait Sessions: Send + Sync + fmt::Debug {
    /// A session for one connection, whose keys come from `authority`.
    ///
    /// # Errors
    /// Out of memory or the like.
    fn session(&self, authority: Arc<dyn Authority>) -> Result<Box<dyn Session>, Failure>;
}

/// The server's side of a session. Nothing here waits, except that a handshake asks the listener.
pub(crate) trait Session: Send {
    /// Goes on with the handshake, as far as what was fed goes; true when it is over.
    ///
    /// # Errors
    /// The peer is not welcome, or does not speak TLS.
    fn handshake(&mut self) -> Result<bool, Failure>;

    /// Takes received bytes; how many. Only after [`read`](Self::read) or
    /// [`handshake`](Self::handshake) had nothing left to work on.
    ///
    /// # Errors
    /// They are not what the peer may send.
    fn feed(&mut self, bytes: &[u8]) -> Result<usize, Failure>;

    /// Decrypts into `out`, which is not empty: how many bytes, 0 at the end of the session, `None`
    /// if more must be fed first.
    ///
    /// # Errors
    /// The session is broken.
    fn read(&mut self, out: &mut [u8]) -> Result<Option<usize>, Failure>;

    /// Encrypts the beginning of `bytes`; how many.
    ///
    /// # Errors
    /// The session is broken.
    fn write(&mut self, bytes: &[u8]) -> Result<usize, Failure>;

    /// Gives all output to `sink`.
    ///
    /// # Errors
    /// The sink's; WouldBlock leaves the rest for later.
    fn send(&mut self, sink: &mut dyn io::Write) -> io::Result<()>;

    /// Puts the notice of an orderly end (close_notify) into the output.
    fn close(&mut self);

    /// The peer's own certificate, DER, if it has shown one.
    fn peer_certificate(&self) -> Option<Vec<u8>>;

    /// Version and algorithms, for `-D nbdkit.tls.session=1`: one line each.
    fn describe(&self) -> Vec<String>;
}
