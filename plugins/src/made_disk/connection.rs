//! A client of a disk that was made for it.

use nbdkit_api::paths::Opened;
use nbdkit_api::{Blocking, Cache, Connection, Extents, FileRange, Flags, Fua, Result};

use crate::file::disk::{Disk, Hints};

/// A file as the file plugin serves it, except that other clients may have another one.
pub(crate) struct MadeDisk {
    disk: Disk,
    /// Clients of an export have the same file.
    shared: bool,
}

impl MadeDisk {
    /// Takes over a file, and locks that hold as long as it is open.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn new(opened: Opened, shared: bool) -> Result<MadeDisk> {
        Ok(MadeDisk { disk: Disk::new(opened, Hints::default())?, shared })
    }
}

impl Connection for MadeDisk {
    fn size(&self) -> Result<u64> {
        self.disk.size()
    }

    fn can_write(&self) -> Result<bool> {
        self.disk.can_write()
    }

    fn can_flush(&self) -> Result<bool> {
        self.disk.can_flush()
    }

    fn can_trim(&self) -> Result<bool> {
        self.disk.can_trim()
    }

    fn can_zero(&self) -> Result<bool> {
        self.disk.can_zero()
    }

    fn can_extents(&self) -> Result<bool> {
        self.disk.can_extents()
    }

    fn can_fua(&self) -> Result<Fua> {
        self.disk.can_fua()
    }

    fn can_multi_conn(&self) -> Result<bool> {
        Ok(self.shared)
    }

    fn can_cache(&self) -> Result<Cache> {
        self.disk.can_cache()
    }

    fn pread(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.disk.pread(buf, offset)
    }

    fn pwrite(&self, buf: &[u8], offset: u64, flags: Flags) -> Result<()> {
        self.disk.pwrite(buf, offset, flags)
    }

    fn flush(&self) -> Result<()> {
        self.disk.flush()
    }

    fn trim(&self, count: u64, offset: u64, flags: Flags) -> Result<()> {
        self.disk.trim(count, offset, flags)
    }

    fn zero(&self, count: u64, offset: u64, flags: Flags) -> Result<()> {
        self.disk.zero(count, offset, flags)
    }

    fn extents(&self, count: u64, offset: u64, flags: Flags, extents: &mut Extents) -> Result<()> {
        self.disk.extents(count, offset, flags, extents)
    }

    fn cache(&self, count: u64, offset: u64) -> Result<()> {
        self.disk.cache(count, offset)
    }

    fn blocking(&self) -> Blocking {
        self.disk.blocking()
    }

    fn try_pread(&self, buf: &mut [u8], offset: u64) -> Option<Result<()>> {
        self.disk.try_pread(buf, offset)
    }

    fn file_range(&self, count: u32, offset: u64) -> Option<FileRange<'_>> {
        self.disk.file_range(count, offset)
    }

    fn write_range(&self, count: u32, offset: u64) -> Option<FileRange<'_>> {
        self.disk.write_range(count, offset)
    }
}
