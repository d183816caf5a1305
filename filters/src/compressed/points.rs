//! Where an expanded image goes: into a temporary file, as long as it fits there, and, for formats
//! that can be decompressed from points in the middle, into an index of these points.
//!
//! A point is where the decoder is between two parts of the image, and the last 32 KiB of what it
//! has made (RFC 1951, 2). Between two points is a [`Block`], which is decompressed when it is
//! read.

use std::io::{self, Write};

use flate2::Crc;
use nbdkit_api::shared::SharedFile;
use nbdkit_api::{Errno, Error, Result};

use super::index::Block;

/// Bytes of a window.
pub(crate) const WINDOW: usize = 32 << 10;
/// Bytes of the disk from one point to the next, at least: what a read decompresses.
pub(crate) const SPAN: u64 = 1 << 20;
/// Most bytes from one point to the next: what a client keeps in memory, a few times. A compressor
/// that begins a block of deflate after 32 Ki symbols makes 8 MiB of zeroes from them.
pub(crate) const MAX_SPAN: u64 = 16 << 20;

/// What is made of a disk.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Largest disk that is expanded, bytes; `None` if the format has no points.
    pub(crate) most: Option<u64>,
    /// Bytes of the disk from one point to the next, at least.
    pub(crate) span: u64,
    /// The most, if the disk is not expanded.
    pub(crate) max_span: u64,
}

/// Where a decoder can begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    /// Where a member does.
    Member,
    /// Between two blocks of deflate, with the bits of the byte before that are not used yet.
    Middle { bits: u8, value: u8 },
}

impl Start {
    /// With the sum of what it makes, as an index has it.
    pub(super) fn encode(self, sum: u32) -> u64 {
        let start = match self {
            Start::Member => 0,
            Start::Middle { bits, value } => 1 << 16 | u64::from(value) << 8 | u64::from(bits),
        };
        start << 32 | u64::from(sum)
    }

    /// The start of a block, and its sum. Another worker may have scribbled on it.
    pub(crate) fn of(block: &Block) -> (Start, u32) {
        let (start, sum) = (block.detail >> 32, block.detail as u32);
        let middle = Start::Middle { bits: (start & 7) as u8, value: (start >> 8) as u8 };
        (if start == 0 { Start::Member } else { middle }, sum)
    }
}

/// [`Builder::add`](super::index::Builder::add).
pub(super) type AddBlock<'a> = &'a mut dyn FnMut(u64, u64, u64, u64) -> Result<()>;

/// The disk while it is made, from its beginning.
pub(crate) struct Disk<'a> {
    /// Bytes so far.
    size: u64,
    /// `None` once it did not fit.
    expanded: Option<Sparse<'a>>,
    bounds: Bounds,
    add: AddBlock<'a>,
    windows: &'a SharedFile,
    /// Windows so far, one for each block.
    blocks: u64,
    /// The block that is being made: where it begins in the image and on the disk.
    block: (u64, u64),
    start: Start,
    sum: Crc,
}

impl<'a> Disk<'a> {
    /// Expands into `file` as far as `bounds` permit.
    pub(super) fn new(
        file: &'a SharedFile,
        windows: &'a SharedFile,
        add: AddBlock<'a>,
        bounds: Bounds,
    ) -> Disk<'a> {
        Disk {
            size: 0,
            expanded: Some(Sparse::new(file)),
            bounds,
            add,
            windows,
            blocks: 0,
            block: (0, 0),
            start: Start::Member,
            sum: Crc::new(),
        }
    }

    /// Whether the next point is far enough from the last one.
    pub(crate) fn is_due(&self) -> bool {
        self.size - self.block.1 >= self.bounds.span
    }

    /// A point: the image has been read up to `at`, and `window`, of at most [`WINDOW`] bytes, is
    /// the end of what was made.
    ///
    /// # Errors
    /// There are too many; the window cannot be kept.
    pub(crate) fn point(&mut self, at: u64, start: Start, window: &[u8]) -> Result<()> {
        self.end_block(at)?;
        (self.block, self.start) = ((at, self.size), start);
        // A hole is zeroes.
        if window.iter().any(|byte| *byte != 0) {
            let offset = self.blocks * WINDOW as u64;
            self.windows.write_at(window, offset + (WINDOW - window.len()) as u64)?;
        }
        Ok(())
    }

    fn end_block(&mut self, at: u64) -> Result<()> {
        let (offset, start) = self.block;
        let size = self.size - start;
        if size == 0 {
            return Ok(());
        }
        if size > self.bounds.max_span && self.bounds.most.is_some() && self.expanded.is_none() {
            return Err(Error::new(
                Errno::EFBIG,
                format!(
                    "the disk does not fit into the temporary file, and there is no point to begin \
                     from in {size} bytes of it"
                ),
            ));
        }
        let length = at.checked_sub(offset).ok_or_else(|| Error::silent(Errno::EIO))?;
        (self.add)(size, offset, length, self.start.encode(self.sum.sum()))?;
        self.blocks += 1;
        self.sum.reset();
        Ok(())
    }

    /// Ends the disk, of which `at` bytes of the image were made. Whether it is in the file.
    ///
    /// # Errors
    /// Those of [`point`](Self::point), and of the file.
    pub(super) fn finish(mut self, at: u64) -> Result<bool> {
        self.end_block(at)?;
        let Some(mut expanded) = self.expanded.take() else { return Ok(false) };
        expanded.flush()?;
        expanded.file.set_len(self.size)?;
        Ok(true)
    }

    /// The temporary file has become too small: points have to do.
    fn drop_expanded(&mut self) -> Result<()> {
        let Some(expanded) = self.expanded.take() else { return Ok(()) };
        expanded.file.set_len(0)
    }
}

impl Write for Disk<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if self.bounds.most.is_some_and(|most| self.size.saturating_add(buf.len() as u64) > most) {
            self.drop_expanded().map_err(io::Error::other)?;
        }
        match self.expanded.as_mut().map(|expanded| expanded.write(buf)) {
            // What fits nowhere else may do with points, which take less.
            Some(Err(error)) if error.errno() == Errno::ENOSPC && self.bounds.most.is_some() => {
                self.drop_expanded().map_err(io::Error::other)?;
            }
            Some(Err(error)) => return Err(io::Error::other(error)),
            Some(Ok(())) | None => {}
        }
        self.sum.update(buf);
        self.size += buf.len() as u64;
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes a file from its beginning, and leaves out blocks of zeroes.
struct Sparse<'a> {
    file: &'a SharedFile,
    /// Bytes so far, those of `block` too.
    size: u64,
    /// What was not written yet: the beginning of a block.
    block: Vec<u8>,
}

impl<'a> Sparse<'a> {
    fn new(file: &'a SharedFile) -> Sparse<'a> {
        Sparse { file, size: 0, block: Vec::with_capacity(BLOCK) }
    }

    fn write(&mut self, mut buf: &[u8]) -> Result<()> {
        while !buf.is_empty() {
            let count = buf.len().min(BLOCK - self.block.len());
            self.block.extend(&buf[..count]);
            self.size += count as u64;
            buf = &buf[count..];
            if self.block.len() == BLOCK {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        if self.block.iter().any(|byte| *byte != 0) {
            self.file.write_at(&self.block, self.size - self.block.len() as u64)?;
        }
        self.block.clear();
        Ok(())
    }
}

/// Bytes that are written at a time, or are a hole.
pub(super) const BLOCK: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeroes_are_holes_and_everything_else_is_where_it_was_written() {
        let file = SharedFile::temporary("sparse", 0).unwrap();
        let mut disk = Sparse::new(&file);
        let mut expected = Vec::new();
        for (count, byte) in [(100, 1), (1 << 20, 0), (70_000, 2), (5, 0), (1 << 20, 0)] {
            let part = vec![byte; count];
            disk.write(&part).unwrap();
            expected.extend(part);
        }
        disk.flush().unwrap();
        file.set_len(disk.size).unwrap();
        let mut found = vec![9; expected.len()];
        file.read_at(&mut found, 0).unwrap();
        assert!(found == expected);
        assert_eq!(file.size().unwrap(), expected.len() as u64);
        // Four blocks of 64 KiB hold something.
        assert!(file.used().unwrap() <= 4 * 65536, "{}", file.used().unwrap());
    }

    #[test]
    fn a_start_is_in_its_block() {
        for start in [
            Start::Member,
            Start::Middle { bits: 0, value: 0 },
            Start::Middle { bits: 7, value: 0x7f },
        ] {
            let detail = start.encode(0xdead_beef);
            let block = Block { start: 0, size: 1, offset: 0, length: 1, detail };
            assert_eq!(Start::of(&block), (start, 0xdead_beef));
        }
    }
}
