//! Disks that answer every question about themselves in advance: null, ones, zero, full, pattern,
//! random, and what an allocator keeps (memory, data). Every client sees the same bytes and nothing
//! stands between them and the plugin, so such a disk is coherent between connections and has
//! nothing to prefetch.

use std::os::fd::BorrowedFd;

use nbdkit_api::{
    BlockSize, Blocking, Cache, Connection, Errno, Error, Extents, FileRange, Flags, Fua, Result,
};

/// What clients may do with a disk besides reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Abilities {
    /// Write.
    pub(crate) write: bool,
    /// Trim.
    pub(crate) trim: bool,
    /// Write zeroes without sending them, and without the server's writing them.
    pub(crate) zero: bool,
    /// Flush and FUA, which have nothing to do: no storage is more stable than where the bytes are.
    /// Zeroing is as fast as it gets then, too.
    pub(crate) flush: bool,
    /// Ask for extents.
    pub(crate) extents: bool,
}

impl Abilities {
    /// Reading, and nothing else.
    pub(crate) const READ: Abilities =
        Abilities { write: false, trim: false, zero: false, flush: false, extents: false };
    /// Everything.
    pub(crate) const ALL: Abilities =
        Abilities { write: true, trim: true, zero: true, flush: true, extents: true };
}

/// The callbacks of a plugin with parameters, a long name, and a disk with which clients may do
/// everything.
pub(crate) const CALLBACKS: &[&str] = &[
    "longname",
    "config",
    "config_help",
    "open",
    "get_size",
    "can_write",
    "can_flush",
    "can_trim",
    "can_zero",
    "can_fast_zero",
    "can_extents",
    "can_fua",
    "can_multi_conn",
    "can_cache",
    "pread",
    "pwrite",
    "flush",
    "trim",
    "zero",
    "extents",
];

/// A disk that is asked for data alone.
pub(crate) trait Disk: Send + Sync + 'static {
    /// What clients may do with it.
    const ABILITIES: Abilities;

    /// Bytes.
    fn size(&self) -> u64;

    /// Block size constraints, in bytes; all zero for none.
    fn block_size(&self) -> BlockSize {
        BlockSize::default()
    }

    /// Fills `buf` from `offset`.
    ///
    /// # Errors
    /// The request fails.
    fn read(&self, buf: &mut [u8], offset: u64) -> Result<()>;

    /// Writes `buf` at `offset`.
    ///
    /// # Errors
    /// The request fails.
    fn write(&self, buf: &[u8], offset: u64) -> Result<()> {
        let _ = (buf, offset);
        Err(read_only())
    }

    /// Makes the range read as zeroes, for trim and zero requests.
    ///
    /// # Errors
    /// The request fails.
    fn zero(&self, count: u64, offset: u64) -> Result<()> {
        let _ = (count, offset);
        Err(read_only())
    }

    /// Describes the disk from `offset` on. `one`: a single extent is enough.
    ///
    /// # Errors
    /// The request fails.
    fn extents(&self, count: u64, offset: u64, one: bool, extents: &mut Extents) -> Result<()> {
        let _ = (count, offset, one, extents);
        Err(Error::new(Errno::EOPNOTSUPP, "extents are not supported"))
    }

    /// How long requests may take.
    fn blocking(&self) -> Blocking {
        Blocking::Never
    }

    /// The file whose bytes are the disk's, at the same offsets.
    fn file(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

fn read_only() -> Error {
    Error::new(Errno::EROFS, "the disk is read-only")
}

/// A client of such a disk.
pub(crate) struct Simple<D>(pub(crate) D);

impl<D: Disk> Connection for Simple<D> {
    fn size(&self) -> Result<u64> {
        Ok(self.0.size())
    }

    fn block_size(&self) -> Result<BlockSize> {
        Ok(self.0.block_size())
    }

    fn can_write(&self) -> Result<bool> {
        Ok(D::ABILITIES.write)
    }

    fn can_flush(&self) -> Result<bool> {
        Ok(D::ABILITIES.flush)
    }

    fn can_trim(&self) -> Result<bool> {
        Ok(D::ABILITIES.trim)
    }

    fn can_zero(&self) -> Result<bool> {
        Ok(D::ABILITIES.zero)
    }

    fn can_fast_zero(&self) -> Result<bool> {
        // Where zero is not used the server refuses every fast zero at once, which is fast.
        Ok(D::ABILITIES.flush || !D::ABILITIES.zero)
    }

    fn can_extents(&self) -> Result<bool> {
        Ok(D::ABILITIES.extents)
    }

    fn can_fua(&self) -> Result<Fua> {
        Ok(if D::ABILITIES.flush { Fua::Native } else { Fua::None })
    }

    fn can_multi_conn(&self) -> Result<bool> {
        Ok(true)
    }

    fn can_cache(&self) -> Result<Cache> {
        Ok(Cache::Native)
    }

    fn pread(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.0.read(buf, offset)
    }

    fn pwrite(&self, buf: &[u8], offset: u64, _flags: Flags) -> Result<()> {
        self.0.write(buf, offset)
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn trim(&self, count: u64, offset: u64, _flags: Flags) -> Result<()> {
        self.0.zero(count, offset)
    }

    fn zero(&self, count: u64, offset: u64, _flags: Flags) -> Result<()> {
        self.0.zero(count, offset)
    }

    fn extents(&self, count: u64, offset: u64, flags: Flags, extents: &mut Extents) -> Result<()> {
        self.0.extents(count, offset, flags.contains(Flags::REQ_ONE), extents)
    }

    fn blocking(&self) -> Blocking {
        self.0.blocking()
    }

    fn try_pread(&self, buf: &mut [u8], offset: u64) -> Option<Result<()>> {
        let at_once = self.0.blocking() == Blocking::Never || self.0.file().is_some();
        at_once.then(|| self.0.read(buf, offset))
    }

    fn file_range(&self, _count: u32, offset: u64) -> Option<FileRange<'_>> {
        Some(FileRange { fd: self.0.file()?, offset, in_memory: None })
    }
}
