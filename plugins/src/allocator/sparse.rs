//! `allocator=sparse`: a memfd. The kernel keeps the pages that were written, finds holes and
//! gives punched pages back; the workers share it because they inherit its descriptor.
//!
//! Clients see nbdkit's pages of 32 KiB: one of whose blocks the kernel has is allocated as a
//! whole, and one that is allocated and holds nothing but zeroes is zeroes, not a hole. nbdkit also
//! frees a page that a trim of a part of it leaves without other bytes than zeroes; here it stays
//! zeroes, since another client may be writing to it.

use std::os::fd::{AsFd, BorrowedFd};

use nbdkit_api::shared::SharedFile;
use nbdkit_api::{ExtentKind, Extents, Isolation, Result};

use super::{Allocator, PAGE};

/// Bytes of the kernel's pages, where memory is counted. Where they are larger, more is counted by
/// the page that a write begins.
const KERNEL_PAGE: u64 = 4096;

/// A disk in a memfd, whose holes take no memory.
#[derive(Debug)]
pub(super) struct Sparse {
    file: SharedFile,
    /// Of the disk, bytes.
    size: u64,
}

impl Sparse {
    pub(super) fn new(name: &str) -> Result<Sparse> {
        Ok(Sparse { file: SharedFile::in_memory(name, 0)?, size: 0 })
    }

    /// The next range of whole pages, from `at`, the beginning of a page, that the kernel has
    /// blocks of; `None` if there is none before `end`. It may reach beyond `end`.
    fn allocated(&self, at: u64, end: u64) -> Result<Option<(u64, u64)>> {
        let mut found = Extents::new(at, end);
        self.file.extents(end - at, at, true, &mut found)?;
        let Some(first) = found.as_slice().first() else { return Ok(None) };
        let (from, mut to) = if first.kind == ExtentKind::DATA {
            (at, first.end())
        } else if first.end() < end {
            let mut data = Extents::new(first.end(), end);
            self.file.extents(end - first.end(), first.end(), true, &mut data)?;
            (first.end(), data.covered_to())
        } else {
            return Ok(None);
        };
        // Another client may have punched it meanwhile.
        to = to.max(from + 1);
        Ok(Some((from / PAGE * PAGE, to.div_ceil(PAGE).saturating_mul(PAGE))))
    }

    /// Whether a page has a byte that is not zero.
    fn has_data(&self, page: u64) -> Result<bool> {
        // Most pages with data have some in the first bytes.
        let mut buf = [0; PAGE as usize];
        let length = PAGE.min(self.size - page) as usize;
        let (first, rest) = buf[..length].split_at_mut(length.min(512));
        for (piece, offset) in [(first, page), (rest, page + 512)] {
            self.file.read_at(piece, offset)?;
            if piece.iter().any(|byte| *byte != 0) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl Allocator for Sparse {
    fn set_size(&mut self, size: u64) -> Result<()> {
        self.size = size;
        self.file.set_len(size)
    }

    fn read(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.file.read_at(buf, offset)
    }

    fn write(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.file.write_at(buf, offset)
    }

    fn zero(&self, count: u64, offset: u64) -> Result<()> {
        // The last block of a disk may be short; only a whole one is given back.
        let end = offset + count;
        let end =
            if end == self.size { end.next_multiple_of(PAGE).min(i64::MAX as u64) } else { end };
        self.file.punch_hole(offset, end - offset)
    }

    fn extents(&self, count: u64, offset: u64, one: bool, extents: &mut Extents) -> Result<()> {
        let end = offset + count;
        let mut at = offset;
        while at < end {
            let pages = self.allocated(at / PAGE * PAGE, end)?;
            let (from, to) = pages.map_or((end, end), |(from, to)| (from.max(at), to.min(end)));
            extents.add(at, from - at, ExtentKind::SPARSE)?;
            at = from;
            while at < to {
                let page = at / PAGE * PAGE;
                let next = (page + PAGE).min(to);
                let kind = if self.has_data(page)? { ExtentKind::DATA } else { ExtentKind::ZERO };
                extents.add(at, next - at, kind)?;
                at = next;
                // The first is complete once there is another; and a full list takes no more.
                if one && extents.len() > 1 || extents.covered_to() < at {
                    return Ok(());
                }
            }
            if one && extents.len() > 1 {
                return Ok(());
            }
        }
        Ok(())
    }

    fn as_file(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }

    fn preferred_block_size(&self) -> u32 {
        PAGE as u32
    }

    fn isolation(&self) -> Isolation {
        Isolation::Connection
    }

    fn used(&self) -> Result<u64> {
        self.file.used()
    }

    fn max_cost(&self, count: u64) -> u64 {
        // Neither end need be that of a page.
        count.saturating_add(2 * KERNEL_PAGE)
    }

    fn cost(&self, buf: &[u8], offset: u64) -> Result<u64> {
        let from = offset / KERNEL_PAGE * KERNEL_PAGE;
        let end = (offset + buf.len() as u64).next_multiple_of(KERNEL_PAGE).min(i64::MAX as u64);
        let mut extents = Extents::new(from, end);
        self.file.extents(end - from, from, false, &mut extents)?;
        // A list that had no room for all of them ends early; then the rest counts as holes.
        let rest = end - extents.covered_to();
        let holes = extents.iter().filter(|extent| extent.kind != ExtentKind::DATA);
        let holes = holes.map(|extent| extent.length.next_multiple_of(KERNEL_PAGE));
        Ok(holes.sum::<u64>() + rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1024;

    fn map(disk: &Sparse, offset: u64, one: bool) -> Vec<(u64, u32)> {
        let mut extents = Extents::new(offset, disk.size);
        disk.extents(disk.size - offset, offset, one, &mut extents).unwrap();
        extents.iter().map(|extent| (extent.end(), extent.kind.bits())).collect()
    }

    #[test]
    fn pages_are_allocated_as_a_whole_and_zeroes_are_told_from_holes() {
        let mut disk = Sparse::new("test").unwrap();
        disk.set_size(256 * KIB + 100).unwrap();
        disk.write(b"x", 40_000).unwrap();
        disk.write(&[0; 10], 100 * KIB).unwrap();
        disk.write(b"x", 256 * KIB + 99).unwrap();
        let all = [
            (32 * KIB, 3),
            (64 * KIB, 0),
            (96 * KIB, 3),
            (128 * KIB, 2),
            (256 * KIB, 3),
            (256 * KIB + 100, 0),
        ];
        assert_eq!(map(&disk, 0, false), all);
        assert_eq!(map(&disk, 50_000, false), all[1..]);
        assert_eq!(map(&disk, 100 * KIB + 1, false), all[3..]);
        for (offset, index) in [(0, 0), (50_000, 1), (64 * KIB, 2), (96 * KIB, 3), (130 * KIB, 4)] {
            assert_eq!(map(&disk, offset, true)[0], all[index], "from {offset}");
        }
        disk.zero(256 * KIB + 100, 0).unwrap();
        assert_eq!(map(&disk, 0, false), [(256 * KIB + 100, 3)], "the short last page, too");
    }

    #[test]
    fn what_a_write_takes_is_what_the_kernel_counts() {
        let mut disk = Sparse::new("test").unwrap();
        disk.set_size(256 * KIB + 100).unwrap();
        for (offset, length) in
            [(1, 1), (0, 4096), (4095, 2), (5000, 20_000), (256 * KIB + 99, 1), (256 * KIB - 1, 50)]
        {
            let (buf, before) = (vec![1; length], disk.used().unwrap());
            let takes = disk.cost(&buf, offset).unwrap();
            assert!(takes <= disk.max_cost(length as u64));
            disk.write(&buf, offset).unwrap();
            assert_eq!(disk.used().unwrap(), before + takes, "{length} at {offset}");
            assert_eq!(disk.cost(&buf, offset).unwrap(), 0);
        }
    }

    #[test]
    fn the_largest_disk_is_described_and_zeroed() {
        let mut disk = Sparse::new("test").unwrap();
        let size = i64::MAX as u64;
        disk.set_size(size).unwrap();
        disk.write(b"x", size - 1).unwrap();
        assert_eq!(map(&disk, 0, false), [(size / PAGE * PAGE, 3), (size, 0)]);
        disk.zero(size, 0).unwrap();
        let mut byte = [1];
        disk.read(&mut byte, size - 1).unwrap();
        assert_eq!(byte, [0]);
    }
}
