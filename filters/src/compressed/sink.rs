//! What takes decompressed bytes: the disk while an index is made, or a buffer of one block.

use std::cell::Cell;
use std::io::{self, BufRead, Read, Write};

use flate2::Crc;
use nbdkit_api::Result;

use super::points::{Disk, Start};
use super::{corrupt, reader};

/// What takes the decompressed bytes.
pub(crate) trait Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Whether it has enough, and decompressing ends.
    fn is_full(&self) -> bool {
        false
    }

    /// Whether a point is wanted.
    fn is_due(&self) -> bool {
        false
    }

    /// A point, `back` bytes before what was read of the image: see [`Disk::point`].
    fn point(&mut self, back: u64, start: Start, window: &[u8]) -> io::Result<()> {
        let _ = (back, start, window);
        Ok(())
    }
}

/// A stream that counts what was read of it.
pub(crate) struct Counted<'a> {
    pub(crate) inner: &'a mut dyn BufRead,
    pub(crate) count: &'a Cell<u64>,
}

impl Read for Counted<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buf)?;
        self.count.set(self.count.get() + count as u64);
        Ok(count)
    }
}

impl BufRead for Counted<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.inner.fill_buf()
    }

    fn consume(&mut self, count: usize) {
        self.inner.consume(count);
        self.count.set(self.count.get() + count as u64);
    }
}

/// The disk, and how much of the image has been read.
pub(crate) struct Indexed<'a, 'd> {
    pub(crate) disk: &'a mut Disk<'d>,
    pub(crate) count: &'a Cell<u64>,
}

impl Sink for Indexed<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.disk.write_all(bytes)
    }

    fn is_due(&self) -> bool {
        self.disk.is_due()
    }

    fn point(&mut self, back: u64, start: Start, window: &[u8]) -> io::Result<()> {
        let at = self.count.get().saturating_sub(back);
        self.disk.point(at, start, window).map_err(io::Error::other)
    }
}

/// The first bytes.
pub(crate) struct Taken {
    data: Vec<u8>,
    size: usize,
}

impl Taken {
    /// # Errors
    /// ENOMEM.
    pub(crate) fn new(filter: &str, size: u64) -> Result<Taken> {
        let data = reader::buffer(filter, size)?;
        Ok(Taken { data, size: usize::try_from(size).unwrap_or(usize::MAX) })
    }

    /// The bytes, whose CRC-32 should be `sum`.
    ///
    /// # Errors
    /// EIO: it is not.
    pub(crate) fn finish(self, filter: &str, sum: u32) -> Result<Vec<u8>> {
        let mut found = Crc::new();
        found.update(&self.data);
        if found.sum() != sum {
            return Err(corrupt(filter, "the file is not what it was when its index was made"));
        }
        Ok(self.data)
    }
}

impl Sink for Taken {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let count = bytes.len().min(self.size - self.data.len());
        self.data.extend(&bytes[..count]);
        Ok(())
    }

    fn is_full(&self) -> bool {
        self.data.len() == self.size
    }
}
