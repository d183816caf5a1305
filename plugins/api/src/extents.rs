//! Lists of extents: which parts of the disk are data, holes or zeroes.
//! nbdkit-plugin(3), "Extents list"; NBD protocol, "Metadata querying".

use crate::error::{Errno, Error, Result};

/// Most extents kept in one list; what is added beyond is dropped, the list is then shorter than
/// what was asked for, which the protocol allows.
pub const MAX_EXTENTS: usize = 1024 * 1024;

bitflags::bitflags! {
    /// The type of an extent: zero bits set means allocated data. The bits are the same as those
    /// of `base:allocation` (NBD_STATE_HOLE, NBD_STATE_ZERO) and `NBDKIT_EXTENT_*`.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    pub struct ExtentKind: u32 {
        /// Not allocated.
        const HOLE = 1;
        /// Reads as zeroes.
        const ZERO = 2;
    }
}

impl ExtentKind {
    /// Allocated data of unknown content.
    pub const DATA: ExtentKind = ExtentKind::empty();
    /// The usual hole: not allocated, reads as zeroes.
    pub const SPARSE: ExtentKind = ExtentKind::HOLE.union(ExtentKind::ZERO);
}

/// `length` bytes from `offset` of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// First byte.
    pub offset: u64,
    /// Bytes, never 0 in a list.
    pub length: u64,
    /// What they are.
    pub kind: ExtentKind,
}

impl Extent {
    /// The byte after the last one.
    pub fn end(&self) -> u64 {
        self.offset + self.length
    }
}

/// Contiguous extents that begin at [`start`](Self::start) and do not reach beyond
/// [`end`](Self::end); neighbours of one kind are merged.
#[derive(Debug, Clone)]
pub struct Extents {
    start: u64,
    end: u64,
    /// Where the next extent must begin, once there is one.
    next: Option<u64>,
    list: Vec<Extent>,
}

impl Extents {
    /// An empty list for `start .. end`, bytes.
    pub fn new(start: u64, end: u64) -> Extents {
        Extents { start, end: end.max(start), next: None, list: Vec::new() }
    }

    /// First byte that the list describes.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Bound of what the list may describe.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Where the described range ends so far; [`start`](Self::start) if nothing was added.
    pub fn covered_to(&self) -> u64 {
        self.list.last().map_or(self.start, Extent::end)
    }

    /// Adds an extent. What lies before the start or beyond the end is cut off; empty extents
    /// are ignored.
    ///
    /// # Errors
    /// ERANGE if the extent does not begin where the last one ended, or if the first one
    /// leaves a gap after the start.
    pub fn add(&mut self, offset: u64, length: u64, kind: ExtentKind) -> Result<()> {
        if length == 0 {
            return Ok(());
        }
        let Some(end) = offset.checked_add(length) else {
            return Err(Error::new(Errno::ERANGE, "nbdkit_add_extent: offset + length overflows"));
        };
        if let Some(next) = self.next
            && offset != next
        {
            return Err(Error::new(
                Errno::ERANGE,
                "nbdkit_add_extent: extents must be added in ascending order and must be contiguous",
            ));
        }
        self.next = Some(end);
        if offset >= self.end || end <= self.start {
            return Ok(());
        }
        if self.list.is_empty() && offset > self.start {
            return Err(Error::new(
                Errno::ERANGE,
                "nbdkit_add_extent: first extent must not be > start of the list",
            ));
        }
        let offset = offset.max(self.start);
        let length = end.min(self.end) - offset;
        let full = self.list.len() >= MAX_EXTENTS;
        match self.list.last_mut() {
            Some(last) if last.kind == kind && last.end() == offset => last.length += length,
            _ if full => {}
            _ => self.list.push(Extent { offset, length, kind }),
        }
        Ok(())
    }

    /// The extents, ascending and contiguous.
    pub fn iter(&self) -> std::slice::Iter<'_, Extent> {
        self.list.iter()
    }

    /// The extents as a slice.
    pub fn as_slice(&self) -> &[Extent] {
        &self.list
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// True if nothing was added.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Adds every extent of `other` moved by `delta` bytes (offset filters and their like).
    ///
    /// # Errors
    /// As [`add`](Self::add); ERANGE if an offset leaves the 64-bit range.
    pub fn add_shifted(&mut self, other: &Extents, delta: i64) -> Result<()> {
        for extent in other.iter() {
            let offset = extent.offset.checked_add_signed(delta).ok_or_else(|| {
                Error::new(Errno::ERANGE, "nbdkit_add_extent: shifted extent out of range")
            })?;
            self.add(offset, extent.length, extent.kind)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_of_one_kind_merge() {
        let mut e = Extents::new(0, 1000);
        e.add(0, 100, ExtentKind::DATA).unwrap();
        e.add(100, 100, ExtentKind::DATA).unwrap();
        e.add(200, 10_000, ExtentKind::SPARSE).unwrap();
        let got: Vec<_> = e.iter().map(|x| (x.offset, x.length, x.kind)).collect();
        assert_eq!(got, [(0, 200, ExtentKind::DATA), (200, 800, ExtentKind::SPARSE)]);
    }

    #[test]
    fn extents_before_the_start_are_cut() {
        let mut e = Extents::new(150, 1000);
        e.add(0, 100, ExtentKind::DATA).unwrap();
        e.add(100, 100, ExtentKind::ZERO).unwrap();
        assert_eq!(e.as_slice(), [Extent { offset: 150, length: 50, kind: ExtentKind::ZERO }]);
    }

    #[test]
    fn a_gap_is_an_error() {
        let mut e = Extents::new(0, 1000);
        e.add(0, 100, ExtentKind::DATA).unwrap();
        assert_eq!(e.add(200, 100, ExtentKind::DATA).unwrap_err().errno(), Errno::ERANGE);
        let mut e = Extents::new(0, 1000);
        assert!(e.add(1, 10, ExtentKind::DATA).is_err());
        assert!(e.add(u64::MAX, 2, ExtentKind::DATA).is_err());
    }
}
