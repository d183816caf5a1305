//! A part of the layer below as a stream of bytes, for decoders that read one.

use std::io::{self, Read};
use std::sync::Arc;

use nbdkit_api::{Client, Errno, Error, Next, Result, client};

use super::corrupt;

/// Bytes that are read from the layer below at a time.
pub(crate) const CHUNK: usize = 256 << 10;

/// The bytes `at .. end` of the layer below.
pub(crate) struct Below<'a> {
    next: &'a Next,
    /// In whose name; reading fails with ESHUTDOWN once it has gone.
    client: Option<&'a Arc<Client>>,
    at: u64,
    end: u64,
}

impl<'a> Below<'a> {
    pub(crate) fn new(
        next: &'a Next,
        client: Option<&'a Arc<Client>>,
        at: u64,
        end: u64,
    ) -> Below<'a> {
        Below { next, client, at, end }
    }
}

impl Read for Below<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        client::check_present(self.client.map(|client| &**client)).map_err(io::Error::other)?;
        let left = self.end.saturating_sub(self.at);
        let count = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len()).min(CHUNK);
        if count > 0 {
            self.next.pread(&mut buf[..count], self.at).map_err(io::Error::other)?;
            self.at += count as u64;
        }
        Ok(count)
    }
}

/// The error of a decoder that read from [`Below`]: the layer's own, if it failed there.
pub(crate) fn decoder_error(filter: &str, error: io::Error) -> Error {
    match (error.kind(), error.downcast::<Error>()) {
        (_, Ok(below)) => below,
        (io::ErrorKind::OutOfMemory, Err(error)) => {
            Error::new(Errno::ENOMEM, format!("{filter}: {error}"))
        }
        (io::ErrorKind::UnexpectedEof, Err(_)) => corrupt(filter, "the file is cut off"),
        (_, Err(error)) => corrupt(filter, error),
    }
}

/// `size` bytes of memory for what a decoder makes, none of them used.
///
/// # Errors
/// ENOMEM.
pub(crate) fn buffer(filter: &str, size: u64) -> Result<Vec<u8>> {
    let none = || Error::new(Errno::ENOMEM, format!("{filter}: no memory for {size} bytes"));
    let mut buffer = Vec::new();
    buffer.try_reserve_exact(usize::try_from(size).map_err(|_| none())?).map_err(|_| none())?;
    Ok(buffer)
}
