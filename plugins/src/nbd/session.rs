//! TLS as the plugin speaks it: bytes in, bytes out, no sockets.

#![forbid(unsafe_code)]

use nbdkit_api::Result;

/// The client's end of a TLS connection.
pub trait Session: Send {
    /// Goes on with the handshake; true once it is over. There may be [`output`](Self::output) to
    /// be sent, and bytes to be [fed](Self::feed).
    ///
    /// # Errors
    /// The server is not who it should be, or violates the protocol.
    fn handshake(&mut self) -> Result<bool>;

    /// Takes encrypted bytes; how many of them.
    ///
    /// # Errors
    /// The server violates the protocol.
    fn feed(&mut self, bytes: &[u8]) -> Result<usize>;

    /// Reads decrypted bytes; 0 at their end, `None` if more have to be fed.
    ///
    /// # Errors
    /// The server violates the protocol.
    fn read(&mut self, out: &mut [u8]) -> Result<Option<usize>>;

    /// Encrypts bytes; how many of them.
    ///
    /// # Errors
    /// The library's.
    fn write(&mut self, bytes: &[u8]) -> Result<usize>;

    /// Appends the encrypted bytes that are to be sent.
    fn output(&mut self, sink: &mut Vec<u8>);

    /// Says that nothing more will be written.
    fn close(&mut self);
}
