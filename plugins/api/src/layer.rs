//! An open layer of the stack: what the `open` of a filter, or of a plugin, made for one connection
//! or one shared context. A plugin is the innermost layer (`plugin_layer`).
//! nbdkit-filter(3), "Callbacks".

use crate::error::Result;
use crate::extents::Extents;
use crate::next::Next;
use crate::types::{BlockSize, Blocking, Cache, DataPath, Direction, FileRange, Flags, Fua, Zero};

/// One open layer, from `open` to `close` (its drop). A filter implements it; for a plugin it is
/// made from a [`Connection`](crate::Connection). A method that a filter does not implement calls
/// that of the layer below.
///
/// `next` is the layer below as this connection opened it, or what the filter put in its place. A
/// filter with a thread of its own gives the thread a clone, and ends the thread in `finalize`. The
/// layer below checks ranges and caches answers, so `next.size()` and `next.can_*()` may be called
/// at any time. As the thread model permits, data methods are called from several threads at once.
/// The contract of each method is that of [`Connection`](crate::Connection); the text here is about
/// how a filter's differs.
#[expect(
    clippy::missing_errors_doc,
    reason = "each has the errors of the method of the same name in Connection"
)]
pub trait OpenLayer: Send + Sync {
    /// Called after `open`, innermost layer first. This is where a filter reads the disk below.
    fn prepare(&self, next: &Next, readonly: bool) -> Result<()> {
        let _ = (next, readonly);
        Ok(())
    }

    /// Called before close, outermost layer first, if `prepare` succeeded. An error cuts the client
    /// off.
    fn finalize(&self, next: &Next) -> Result<()> {
        let _ = next;
        Ok(())
    }

    /// Size of the disk as this filter shows it.
    fn size(&self, next: &Next) -> Result<u64> {
        next.size()
    }

    /// Text for NBD_INFO_DESCRIPTION.
    fn export_description(&self, next: &Next) -> Option<String> {
        next.export_description()
    }

    /// Block size constraints.
    fn block_size(&self, next: &Next) -> Result<BlockSize> {
        next.block_size()
    }

    /// Whether `pwrite` works.
    fn can_write(&self, next: &Next) -> Result<bool> {
        next.can_write()
    }

    /// Whether `flush` works.
    fn can_flush(&self, next: &Next) -> Result<bool> {
        next.can_flush()
    }

    /// Whether the disk behaves like a rotating one.
    fn is_rotational(&self, next: &Next) -> Result<bool> {
        next.is_rotational()
    }

    /// Whether `trim` works.
    fn can_trim(&self, next: &Next) -> Result<bool> {
        next.can_trim()
    }

    /// What is done about zeroes. With `Emulate` the server calls this filter's `pwrite`.
    fn can_zero(&self, next: &Next) -> Result<Zero> {
        next.can_zero()
    }

    /// Whether fast zero may be asked for.
    fn can_fast_zero(&self, next: &Next) -> Result<bool> {
        next.can_fast_zero()
    }

    /// Whether `extents` works.
    fn can_extents(&self, next: &Next) -> Result<bool> {
        next.can_extents()
    }

    /// What is done about FUA.
    fn can_fua(&self, next: &Next) -> Result<Fua> {
        next.can_fua()
    }

    /// Whether a flush on one connection covers the writes of all.
    fn can_multi_conn(&self, next: &Next) -> Result<bool> {
        next.can_multi_conn()
    }

    /// What is done about cache requests. With `Emulate` the server calls this filter's `pread`.
    fn can_cache(&self, next: &Next) -> Result<Cache> {
        next.can_cache()
    }

    /// Fills `buf` from `offset`.
    fn pread(&self, next: &Next, buf: &mut [u8], offset: u64) -> Result<()> {
        next.pread(buf, offset)
    }

    /// Writes `buf` at `offset`.
    fn pwrite(&self, next: &Next, buf: &[u8], offset: u64, flags: Flags) -> Result<()> {
        next.pwrite(buf, offset, flags)
    }

    /// Flushes.
    fn flush(&self, next: &Next) -> Result<()> {
        next.flush()
    }

    /// Trims.
    fn trim(&self, next: &Next, count: u64, offset: u64, flags: Flags) -> Result<()> {
        next.trim(count, offset, flags)
    }

    /// Zeroes. Must not fail with EOPNOTSUPP unless FAST_ZERO is set: there is no fallback.
    fn zero(&self, next: &Next, count: u64, offset: u64, flags: Flags) -> Result<()> {
        next.zero(count, offset, flags)
    }

    /// Describes the disk from `offset` on.
    fn extents(
        &self,
        next: &Next,
        count: u64,
        offset: u64,
        flags: Flags,
        extents: &mut Extents,
    ) -> Result<()> {
        next.extents(count, offset, flags, extents)
    }

    /// Prefetches.
    fn cache(&self, next: &Next, count: u64, offset: u64) -> Result<()> {
        next.cache(count, offset)
    }

    /// What this filter does to the bytes of reads, or of writes without flags. Asked once.
    fn data_path(&self, direction: Direction) -> DataPath {
        let _ = direction;
        DataPath::Opaque
    }

    /// Whether a request passes to the same offset of the layer below, which need not be the case
    /// for the next one. Called for [`DataPath::PerRequest`].
    fn passes(&self, next: &Next, direction: Direction, count: u64, offset: u64) -> bool {
        let _ = (next, direction, count, offset);
        false
    }

    /// How long the data methods may take, apart from those of the layer below. Asked once.
    fn blocking(&self) -> Blocking {
        Blocking::Never
    }

    /// `pread` if that cannot block, else `None`, and nothing has been done. Called unless the data
    /// path is [`Transparent`](DataPath::Transparent) or [`Shifted`](DataPath::Shifted). The
    /// default can tell only if nothing ever blocks.
    fn try_pread(&self, next: &Next, buf: &mut [u8], offset: u64) -> Option<Result<()>> {
        let never = self.blocking().max(next.blocking()) == Blocking::Never;
        never.then(|| self.pread(next, buf, offset))
    }

    /// The range of a file in which this layer itself keeps the bytes of a request that does not
    /// pass to the layer below, if reading or writing there is all there is to it.
    fn file_range(&self, direction: Direction, count: u32, offset: u64) -> Option<FileRange<'_>> {
        let _ = (direction, count, offset);
        None
    }
}
