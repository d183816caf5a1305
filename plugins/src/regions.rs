//! Disks that are put together: files one behind the other, tables and zeroes between them. What
//! the split, partitioning and floppy plugins have in common.
//!
//! [`Regions`] is where what stands, [`Disk`] a client's use of it.

#![forbid(unsafe_code)]

mod disk;

pub(crate) use disk::Disk;

use std::fmt::Debug;
use std::sync::Arc;

use nbdkit_api::{Errno, Error, Result};

/// The callbacks of a plugin with such a disk and parameters, and without `get_ready`.
pub(crate) const CALLBACKS: &[&str] = &[
    "config",
    "config_complete",
    "config_help",
    "open",
    "get_size",
    "block_size",
    "can_write",
    "can_flush",
    "can_extents",
    "can_multi_conn",
    "can_cache",
    "pread",
    "pwrite",
    "flush",
    "extents",
    "cache",
];

/// Bytes that are made when they are read.
pub(crate) trait Make: Debug + Send + Sync {
    /// Fills `buf` from `offset`, bytes in the region.
    fn fill(&self, buf: &mut [u8], offset: u64);
}

/// What stands in a region.
#[derive(Debug, Clone)]
pub(crate) enum Content {
    /// These bytes, as many as the region has. Clients cannot change them.
    Bytes(Box<[u8]>),
    /// Bytes that are made. Clients cannot change them.
    Made(Arc<dyn Make>),
    /// The beginning of a file, by its number.
    File(usize),
    /// Zeroes that clients cannot change.
    Zeroes,
}

/// Some bytes of the disk.
#[derive(Debug)]
pub(crate) struct Region {
    /// Offset of the first byte on the disk.
    pub(crate) start: u64,
    /// Bytes, never 0.
    pub(crate) length: u64,
    pub(crate) content: Content,
}

/// The regions of a disk, in order and without gaps.
#[derive(Debug, Default)]
pub(crate) struct Regions {
    list: Vec<Region>,
    size: u64,
}

/// The share of one region in a request.
#[derive(Debug)]
pub(crate) struct Piece<'a> {
    pub(crate) region: &'a Region,
    /// Byte offset in the region.
    pub(crate) offset: u64,
    /// Bytes, never 0.
    pub(crate) length: u64,
}

impl Regions {
    /// Bytes, at most `i64::MAX`.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    fn push(&mut self, length: u64, content: Content) -> Result<()> {
        let start = self.size;
        let end = start.checked_add(length).filter(|end| i64::try_from(*end).is_ok());
        self.size =
            end.ok_or_else(|| Error::new(Errno::EOVERFLOW, "the files are too large together"))?;
        if length > 0 {
            self.list.push(Region { start, length, content });
        }
        Ok(())
    }

    /// Appends bytes.
    ///
    /// # Errors
    /// EOVERFLOW: the disk is too large.
    pub(crate) fn push_bytes(&mut self, bytes: impl Into<Box<[u8]>>) -> Result<()> {
        let bytes = bytes.into();
        self.push(bytes.len() as u64, Content::Bytes(bytes))
    }

    /// Appends so many bytes that are made.
    ///
    /// # Errors
    /// EOVERFLOW: the disk is too large.
    pub(crate) fn push_made(&mut self, make: Arc<dyn Make>, length: u64) -> Result<()> {
        self.push(length, Content::Made(make))
    }

    /// Appends so many bytes of file `number`.
    ///
    /// # Errors
    /// EOVERFLOW: the disk is too large.
    pub(crate) fn push_file(&mut self, number: usize, length: u64) -> Result<()> {
        self.push(length, Content::File(number))
    }

    /// Appends zeroes.
    ///
    /// # Errors
    /// EOVERFLOW: the disk is too large.
    pub(crate) fn push_zeroes(&mut self, length: u64) -> Result<()> {
        self.push(length, Content::Zeroes)
    }

    /// Appends zeroes up to a multiple of `alignment`, bytes.
    ///
    /// # Errors
    /// EOVERFLOW: the disk is too large.
    pub(crate) fn pad(&mut self, alignment: u64) -> Result<()> {
        self.push_zeroes((alignment - self.size % alignment) % alignment)
    }

    /// Divides a request among the regions.
    pub(crate) fn pieces(&self, offset: u64, count: u64) -> impl Iterator<Item = Piece<'_>> {
        let end = offset.saturating_add(count);
        let first = self.list.partition_point(|region| region.start + region.length <= offset);
        self.list[first..].iter().take_while(move |region| region.start < end).filter_map(
            move |region| {
                let from = offset.max(region.start);
                let to = end.min(region.start + region.length);
                let length = to.checked_sub(from).filter(|length| *length > 0)?;
                Some(Piece { region, offset: from - region.start, length })
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_divided_at_every_bound() {
        let mut regions = Regions::default();
        regions.push_bytes(*b"abc").unwrap();
        regions.push_zeroes(0).unwrap();
        regions.pad(8).unwrap();
        regions.pad(8).unwrap();
        regions.push_file(0, 10).unwrap();
        assert_eq!(regions.size(), 18);
        for offset in 0..20 {
            for count in 0..20 {
                let pieces: Vec<_> = regions.pieces(offset, count).collect();
                let end = (offset + count).min(18);
                let mut at = offset;
                for piece in &pieces {
                    assert_eq!(piece.region.start + piece.offset, at);
                    at += piece.length;
                }
                assert!(at == end || pieces.is_empty() && (count == 0 || offset >= 18));
            }
        }
        let contents: Vec<_> = regions.pieces(2, 7).map(|it| (it.offset, it.length)).collect();
        assert_eq!(contents, [(2, 1), (0, 5), (0, 1)]);
    }

    #[test]
    fn a_disk_cannot_be_larger_than_a_file_offset() {
        let mut regions = Regions::default();
        regions.push_file(0, i64::MAX as u64).unwrap();
        assert_eq!(regions.push_zeroes(1).unwrap_err().errno(), Errno::EOVERFLOW);
    }
}
