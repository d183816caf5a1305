//! One client's use of a plugin: what its `open` made. nbdkit-plugin(3), "Callbacks".

mod layer;

pub(crate) use self::layer::IntoLayer;
use crate::error::{Errno, Error, Result};
use crate::extents::Extents;
use crate::pipeline::Pipeline;
use crate::types::{BlockSize, Blocking, Cache, FileRange, Flags, Fua};

/// One client's use of a plugin, from `open` to `close` (its drop).
///
/// `size` and the `can_*` methods are asked at most once and cached. Data methods get ranges that
/// lie within the size, buffers of 1 byte to 64 MiB, and only flags that the `can_*` answers allow.
/// As the thread model permits, they are called from several threads at once.
pub trait Connection: IntoLayer + Send + Sync {
    /// Size of the disk in bytes, at most `i64::MAX`.
    ///
    /// # Errors
    /// The option fails.
    fn size(&self) -> Result<u64>;

    /// Text for NBD_INFO_DESCRIPTION.
    fn export_description(&self) -> Option<String> {
        None
    }

    /// Block size constraints; all zero for none.
    ///
    /// # Errors
    /// The option fails.
    fn block_size(&self) -> Result<BlockSize> {
        Ok(BlockSize::default())
    }

    /// Whether `pwrite` works on this connection.
    ///
    /// # Errors
    /// The option fails.
    fn can_write(&self) -> Result<bool> {
        Ok(false)
    }

    /// Whether `flush` works.
    ///
    /// # Errors
    /// The option fails.
    fn can_flush(&self) -> Result<bool> {
        Ok(false)
    }

    /// Whether the disk behaves like a rotating one.
    ///
    /// # Errors
    /// The option fails.
    fn is_rotational(&self) -> Result<bool> {
        Ok(false)
    }

    /// Whether `trim` works.
    ///
    /// # Errors
    /// The option fails.
    fn can_trim(&self) -> Result<bool> {
        Ok(false)
    }

    /// Whether `zero` is worth calling; without it the server writes zeroes.
    ///
    /// # Errors
    /// The option fails.
    fn can_zero(&self) -> Result<bool> {
        Ok(false)
    }

    /// Whether [`Flags::FAST_ZERO`] may be passed to `zero`. By default true where `zero` is not
    /// used, since then the server refuses every fast zero at once, which is fast.
    ///
    /// # Errors
    /// The option fails.
    fn can_fast_zero(&self) -> Result<bool> {
        Ok(!self.can_zero()?)
    }

    /// Whether `extents` works; without it the whole disk counts as data.
    ///
    /// # Errors
    /// The option fails.
    fn can_extents(&self) -> Result<bool> {
        Ok(false)
    }

    /// What is done about FUA. By default emulated where `flush` works.
    ///
    /// # Errors
    /// The option fails.
    fn can_fua(&self) -> Result<Fua> {
        Ok(if self.can_flush()? { Fua::Emulate } else { Fua::None })
    }

    /// Whether a flush on one connection covers the writes of all.
    ///
    /// # Errors
    /// The option fails.
    fn can_multi_conn(&self) -> Result<bool> {
        Ok(false)
    }

    /// What is done about cache requests.
    ///
    /// # Errors
    /// The option fails.
    fn can_cache(&self) -> Result<Cache> {
        Ok(Cache::None)
    }

    /// Fills all of `buf` from `offset`.
    ///
    /// # Errors
    /// The request fails with the error's errno.
    fn pread(&self, buf: &mut [u8], offset: u64) -> Result<()>;

    /// Writes all of `buf` at `offset`. Flags: FUA.
    ///
    /// # Errors
    /// The request fails; what was written is undefined.
    fn pwrite(&self, buf: &[u8], offset: u64, flags: Flags) -> Result<()> {
        let _ = (buf, offset, flags);
        Err(Error::new(Errno::EROFS, "plugin does not support writes"))
    }

    /// Returns once all completed writes are on stable storage.
    ///
    /// # Errors
    /// The request fails.
    fn flush(&self) -> Result<()> {
        Err(Error::new(Errno::EOPNOTSUPP, "plugin does not support flush"))
    }

    /// Makes the range a hole if that is possible. Flags: FUA.
    ///
    /// # Errors
    /// The request fails.
    fn trim(&self, count: u64, offset: u64, flags: Flags) -> Result<()> {
        let _ = (count, offset, flags);
        Err(Error::new(Errno::EOPNOTSUPP, "plugin does not support trim"))
    }

    /// Makes the range read as zeroes. Flags: MAY_TRIM, FUA, FAST_ZERO.
    ///
    /// # Errors
    /// EOPNOTSUPP makes the server write zeroes (or, with FAST_ZERO, refuse).
    fn zero(&self, count: u64, offset: u64, flags: Flags) -> Result<()> {
        let _ = (count, offset, flags);
        Err(Error::silent(Errno::EOPNOTSUPP))
    }

    /// Describes the disk from `offset` on, at least its first byte, preferably `count` bytes.
    /// Flags: REQ_ONE.
    ///
    /// # Errors
    /// The request fails.
    fn extents(&self, count: u64, offset: u64, flags: Flags, extents: &mut Extents) -> Result<()> {
        let _ = (count, offset, flags, extents);
        Err(Error::new(Errno::EOPNOTSUPP, "plugin does not support extents"))
    }

    /// Prefetches the range; called only if `can_cache` returned [`Cache::Native`].
    ///
    /// # Errors
    /// The request fails.
    fn cache(&self, count: u64, offset: u64) -> Result<()> {
        let _ = (count, offset);
        Ok(())
    }

    /// How long the data methods may take.
    fn blocking(&self) -> Blocking {
        Blocking::Long
    }

    /// `pread` if it can be done at once, else `None`: nothing has been done and `pread` will be
    /// called on a thread that may wait.
    fn try_pread(&self, buf: &mut [u8], offset: u64) -> Option<Result<()>> {
        (self.blocking() == Blocking::Never).then(|| self.pread(buf, offset))
    }

    /// Where the bytes of a read stand in a file, if they do, so that they need not be copied. The
    /// server may then leave out `pread`, and send holes of the file as holes.
    fn file_range(&self, count: u32, offset: u64) -> Option<FileRange<'_>> {
        let _ = (count, offset);
        None
    }

    /// Where the bytes of a write without flags go in a file, if putting them there is all that
    /// `pwrite` does, so that they need not be copied. The server may then leave out `pwrite`, or
    /// call it for a part.
    fn write_range(&self, count: u32, offset: u64) -> Option<FileRange<'_>> {
        let _ = (count, offset);
        None
    }

    /// How many requests can be in flight without a thread for each, if they can.
    fn pipeline(&self) -> Option<&dyn Pipeline> {
        None
    }
}
