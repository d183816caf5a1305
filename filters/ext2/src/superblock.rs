//! What of a superblock has to be known before libext2fs sees it. Linux,
//! Documentation/filesystems/ext4/super.rst.

#![forbid(unsafe_code)]

use nbdkit_api::{Errno, Error, Result};

use crate::channel::Disk;

/// Bytes of the superblock, and where it is.
const SIZE: usize = 1024;
const OFFSET: u64 = 1024;
const MAGIC: u16 = 0xef53;
/// `EXT3_FEATURE_INCOMPAT_RECOVER` and `EXT4_FEATURE_INCOMPAT_64BIT`.
const RECOVER: u32 = 0x4;
const WIDE: u32 = 0x80;
/// Most bytes of group descriptors, which the library keeps in memory: those of 512 TiB in blocks
/// of 4096 bytes.
const MOST_DESCRIPTORS: u64 = 256 << 20;

/// A superblock with the right magic.
pub(crate) struct Superblock([u8; SIZE]);

impl Superblock {
    /// `None` if there is none, which libext2fs says in its own words.
    ///
    /// # Errors
    /// Those of the layer below.
    pub(crate) fn read(disk: &Disk) -> Result<Option<Superblock>> {
        if disk.size < OFFSET + SIZE as u64 {
            return Ok(None);
        }
        let mut superblock = Superblock([0; SIZE]);
        disk.below.read(&mut superblock.0, OFFSET)?;
        Ok(Some(superblock).filter(|superblock| superblock.u16(56) == MAGIC))
    }

    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.0[at], self.0[at + 1]])
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from(self.u16(at + 2)) << 16 | u32::from(self.u16(at))
    }

    fn incompatible(&self) -> u32 {
        self.u32(96)
    }

    /// Whether there is something in the journal that is newer than the file system.
    pub(crate) fn needs_recovery(&self) -> bool {
        self.incompatible() & RECOVER != 0
    }

    /// Checks that the descriptors of all groups fit on a disk of `size` bytes, and into memory.
    ///
    /// # Errors
    /// EIO: they do not.
    pub(crate) fn check_size(&self, size: u64) -> Result<()> {
        let is_wide = self.incompatible() & WIDE != 0;
        let high = if is_wide { self.u32(336) } else { 0 };
        let blocks = u64::from(high) << 32 | u64::from(self.u32(4));
        // The library refuses what is no size.
        let descriptor = if is_wide { u64::from(self.u16(254)).max(32) } else { 32 };
        let groups = blocks.div_ceil(u64::from(self.u32(32)).max(1));
        let bytes = groups.saturating_mul(descriptor);
        if bytes > size.min(MOST_DESCRIPTORS) {
            let why = format!("open: {groups} groups of blocks are more than the disk can have");
            return Err(Error::new(Errno::EIO, why));
        }
        Ok(())
    }
}
