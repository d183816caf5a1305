//! What OpenSSL's sessions stand on: bytes in memory, and the library's words.

#![forbid(unsafe_code)]

use std::io::{self, Read, Write};

use openssl::error::ErrorStack;

/// What OpenSSL reads and writes.
#[derive(Debug, Default)]
pub(super) struct Pipes {
    pub(super) input: Vec<u8>,
    read: usize,
    pub(super) output: Vec<u8>,
    pub(super) sent: usize,
}

impl Pipes {
    /// Gives the library more to read.
    pub(super) fn feed(&mut self, bytes: &[u8]) {
        // It asks for more only when it has used up everything.
        self.input.drain(..self.read);
        self.read = 0;
        self.input.extend_from_slice(bytes);
    }
}

impl Read for Pipes {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let rest = &self.input[self.read..];
        if rest.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let count = rest.len().min(out.len());
        out[..count].copy_from_slice(&rest[..count]);
        self.read += count;
        Ok(count)
    }
}

impl Write for Pipes {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.output.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The library's words about what went wrong, without its file names.
pub(super) fn words(errors: &ErrorStack) -> String {
    let reasons: Vec<&str> =
        errors.errors().iter().filter_map(openssl::error::Error::reason).collect();
    if reasons.is_empty() { "OpenSSL failed".to_owned() } else { reasons.join(", ") }
}
