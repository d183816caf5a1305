//! Extents of a layer in the forms that filters need.
//! nbdkit-filter(3), "Reading the full extents from the plugin", "Enforcing alignment of an
//! nbdkit_extents list".

use super::Backend;
use crate::error::{Errno, Error, Result};
use crate::extents::{ExtentKind, Extents};
use crate::types::Flags;

impl Backend {
    /// Describes all of `offset .. offset + count`, asking as often as that takes
    /// (`nbdkit_extents_full`).
    ///
    /// # Errors
    /// Those of [`extents`](Self::extents).
    pub fn extents_full(&self, count: u64, offset: u64) -> Result<Extents> {
        let end = offset + count;
        let mut full = Extents::new(offset, end);
        while full.covered_to() < end {
            let from = full.covered_to();
            let mut part = Extents::new(from, end);
            self.extents(end - from, from, Flags::empty(), &mut part)?;
            full.add_shifted(&part, 0)?;
            if full.covered_to() == from {
                break; // The list is full.
            }
        }
        Ok(full)
    }

    /// Describes the disk in extents whose bounds are multiples of `align`, a power of two;
    /// an unaligned end of the disk is left as it is (`nbdkit_extents_aligned`). Where the layer's
    /// extents differ within a block, the block is what all of them are.
    ///
    /// # Errors
    /// EINVAL if `count` (short of the end of the disk) or `offset` is not aligned; those of
    /// [`extents`](Self::extents).
    pub fn extents_aligned(
        &self,
        count: u64,
        offset: u64,
        flags: Flags,
        align: u32,
        extents: &mut Extents,
    ) -> Result<()> {
        let align = u64::from(align);
        let size = self.size()?;
        if !offset.is_multiple_of(align) || !(count.is_multiple_of(align) || offset + count == size)
        {
            return Err(Error::new(Errno::EINVAL, "nbdkit_extents_aligned: unaligned request"));
        }
        let end = offset + count;
        let mut at = offset;
        while at < end {
            let mut part = Extents::new(at, size);
            self.extents(end - at, at, flags & Flags::REQ_ONE, &mut part)?;
            let Some(first) = part.as_slice().first().copied() else { break };
            let whole =
                if first.end() >= size { size - at } else { (first.end() - at) / align * align };
            if whole > 0 {
                extents.add(at, whole.min(end - at), first.kind)?;
                at += whole.min(end - at);
            } else {
                let block = align.min(size - at);
                let kind = self
                    .extents_full(block, at)?
                    .iter()
                    .fold(ExtentKind::all(), |kind, extent| kind & extent.kind);
                extents.add(at, block, kind)?;
                at += block;
            }
            if flags.contains(Flags::REQ_ONE) {
                break;
            }
        }
        Ok(())
    }
}
