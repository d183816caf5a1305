//! An open layer of the stack, and the handles of it. Three types that need each other, hence one
//! module:
//!
//! - [`OpenLayer`], what the `open` of a filter made for one connection or one shared context; of a
//!   plugin's connection the innermost one is made;
//! - [`Backend`], the wrapper around each, which holds nbdkit's contract in one place: the server
//!   calls the outermost one, each filter the one below;
//! - [`Next`], the owned handle of a backend.
//!
//! What a backend does is in parts:
//!
//! - [`opened`]: the layer that the wrapper is around, from `open` to `close`;
//! - [`reopen`]: contexts whose layer can be closed and opened anew;
//! - [`answers`]: questions about the layer, each asked once and cached ([`cached`]);
//! - [`data`]: requests, whose ranges are checked and which are traced;
//! - [`fast`]: the ways around a request's callbacks: answers that cannot block, ranges of files;
//! - [`pipelined`]: requests that the plugin has in flight without a thread for each;
//! - [`emulate`]: zeroes and prefetching done by writing and reading;
//! - [`extents`]: `nbdkit_extents_full` and `nbdkit_extents_aligned`.
//!
//! nbdkit-plugin(3) and nbdkit-filter(3), "Callbacks".

mod answers;
mod cached;
mod data;
pub(crate) mod emulate;
mod extents;
mod fast;
mod opened;
mod pipelined;
mod reopen;
#[cfg(test)]
mod tests;

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

pub use self::fast::Range;
pub(crate) use self::opened::{Below, Opened};
pub(crate) use self::reopen::Opener;
use self::reopen::Reopenable;
use crate::error::{Errno, Error, Result};
use crate::extents::Extents;
use crate::pipeline::Pipeline;
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

    /// A request that was carried out without a call of `pread` or `pwrite`, in `took`. Called for
    /// [`DataPath::Watched`]; `done`: it succeeded.
    fn passed(&self, direction: Direction, count: u64, offset: u64, took: Duration, done: bool) {
        let _ = (direction, count, offset, took, done);
    }

    /// How long the data methods may take, apart from those of the layer below. Asked once.
    fn blocking(&self) -> Blocking {
        Blocking::Never
    }

    /// `pread` if it need not wait, on the thread that reads the client's requests. `None`: it has
    /// to, and `pread` is called for the same request, on a thread that may wait. Called unless the
    /// data path is [`Transparent`](DataPath::Transparent), [`Shifted`](DataPath::Shifted) or
    /// [`Watched`](DataPath::Watched), or the request [`passes`](Self::passes): what passes is
    /// tried below without asking the filter.
    ///
    /// An attempt that returns `None` must have done nothing that `pread` does again: counted or
    /// logged a request, drawn a random number, taken a token, moved a head. It may look at things,
    /// fill parts of `buf`, and leave a mark that is the same if it is made twice. So an attempt
    /// takes locks only if they are free; makes at most one request below, by `next.try_pread`,
    /// for a second one that has to wait could not undo the first; and does what counts behind
    /// that. A filter that neither sleeps nor computes for long answers whenever the layer below
    /// does, unless it has to make several requests there.
    ///
    /// The default can tell only if nothing ever blocks.
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

    /// How requests that do not pass to a layer below are carried out without a thread for each. A
    /// plugin's layer has one.
    fn pipeline(&self) -> Option<&dyn Pipeline> {
        None
    }
}

static ABSENT: Backend = Backend::ABSENT;

/// An owned handle of an open layer (`nbdkit_next *`). Clones are handles of the same context and
/// may be used by any thread, also a filter's own. The layer is closed with the last handle.
///
/// The opener of a context calls [`prepare`](Backend::prepare) before it is used and
/// [`finalize`](Backend::finalize) before it is dropped: for a context from
/// [`Slot::open`](crate::Slot::open) that is the connection, for one that a filter opened itself by
/// [`Layer::open`](crate::Layer::open), to outlive connections, it is the filter.
///
/// The default is the handle of a filter that opened nothing below: all requests fail with EIO.
#[derive(Debug, Clone, Default)]
pub struct Next(Option<Arc<Backend>>);

impl Next {
    /// A layer that has just been opened.
    pub(crate) fn new(opened: Opened) -> Next {
        Next(Some(Arc::new(Backend::fixed_to(opened))))
    }

    /// A layer that has just been opened, and can be [reopened](Backend::reopen) by `reopen`, which
    /// is given whether to open it read-only.
    pub(crate) fn reopenable(opened: Opened, reopen: Box<Opener>) -> Next {
        Next(Some(Arc::new(Backend::reopenable(opened, reopen))))
    }
}

impl Deref for Next {
    type Target = Backend;

    #[inline]
    fn deref(&self) -> &Backend {
        self.0.as_deref().unwrap_or(&ABSENT)
    }
}

/// An open layer of the stack, as a connection or a shared context uses it.
pub struct Backend {
    name: &'static str,
    context: Context,
}

#[expect(clippy::large_enum_variant, reason = "the usual one, which every request looks at")]
enum Context {
    /// One layer from beginning to end: requests take no lock to find it.
    Fixed(Opened),
    Reopenable(Reopenable),
    /// A filter opened nothing below itself.
    Absent,
}

impl std::fmt::Debug for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Backend").field("name", &self.name).finish_non_exhaustive()
    }
}

fn absent() -> Error {
    Error::new(Errno::EIO, "there is no open layer below this filter")
}

impl Backend {
    /// What a filter has below that opened nothing.
    const ABSENT: Backend = Backend { name: "nbdkit", context: Context::Absent };

    /// A layer that stays as it is.
    fn fixed_to(opened: Opened) -> Backend {
        Backend { name: opened.name, context: Context::Fixed(opened) }
    }

    /// A layer that can be opened anew, by `reopen`, which is given whether to open it read-only.
    fn reopenable(opened: Opened, reopen: Box<Opener>) -> Backend {
        Backend { name: opened.name, context: Context::Reopenable(Reopenable::new(opened, reopen)) }
    }

    /// Name of the layer.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Calls `body` with the layer that is open now.
    ///
    /// # Errors
    /// EIO if there is none; those of `body`.
    #[inline]
    fn with<T>(&self, body: impl FnOnce(&Opened) -> Result<T>) -> Result<T> {
        match &self.context {
            Context::Fixed(opened) => body(opened),
            Context::Reopenable(reopenable) => body(&*reopenable.current()?),
            Context::Absent => Err(absent()),
        }
    }

    /// Prepares this layer after the layers below that were opened for it, unless that has been
    /// done.
    ///
    /// # Errors
    /// A layer failed; the context must be finalized and dropped.
    pub fn prepare(&self) -> Result<()> {
        self.with(Opened::prepare)
    }

    /// Finalizes this layer and then the layers below that were opened for it, those that were
    /// prepared and have not been finalized. The opener of a context calls this before dropping
    /// it.
    ///
    /// # Errors
    /// The first failure; the client must be cut off.
    pub fn finalize(&self) -> Result<()> {
        // A failed reopening has left nothing to finalize.
        self.with(|opened| Ok(opened.finalize())).unwrap_or(Ok(()))
    }

    /// Finalizes and closes the layer, and opens and prepares it once more: all handles of the
    /// context have the new layer then. Requests that are being carried out end with the old one.
    ///
    /// # Errors
    /// Those of the layers: nothing is open then, and a later attempt may succeed. EINVAL if the
    /// context was not opened by [`Slot::open_to_reopen`](crate::Slot::open_to_reopen).
    pub fn reopen(&self, readonly: bool) -> Result<()> {
        match &self.context {
            Context::Reopenable(reopenable) => reopenable.reopen(readonly),
            Context::Fixed(_) | Context::Absent => {
                Err(Error::new(Errno::EINVAL, "reopen: the context was not opened for that"))
            }
        }
    }
}
