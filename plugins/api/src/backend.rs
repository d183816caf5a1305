//! [`Backend`]: the wrapper around each open layer of the stack, which holds nbdkit's contract in
//! one place. The server calls the outermost one; each filter calls the one below, by a
//! [`Next`](crate::Next).
//!
//! - [`opened`]: the layer that the wrapper is around, from `open` to `close`;
//! - [`reopen`]: contexts whose layer can be closed and opened anew;
//! - [`answers`]: questions about the layer, each asked once and cached;
//! - [`data`]: requests, whose ranges are checked and which are traced;
//! - [`fast`]: the ways around a request's callbacks: answers that cannot block, ranges of files;
//! - [`emulate`]: zeroes and prefetching done by writing and reading;
//! - [`extents`]: `nbdkit_extents_full` and `nbdkit_extents_aligned`.
//!
//! nbdkit-plugin(3) and nbdkit-filter(3), "Callbacks".

mod answers;
mod data;
pub(crate) mod emulate;
mod extents;
mod fast;
mod opened;
mod reopen;

use std::sync::Arc;

pub(crate) use self::opened::Below;
use self::opened::Opened;
use self::reopen::Reopenable;
use crate::error::{Errno, Error, Result};
use crate::plugin::Open;
use crate::stack::Layer;

/// An open layer of the stack, as a connection or a shared context uses it.
pub struct Backend {
    name: &'static str,
    context: Context,
}

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
    pub(crate) const ABSENT: Backend = Backend { name: "nbdkit", context: Context::Absent };

    pub(crate) fn open(layer: &Arc<Layer>, open: &Open<'_>) -> Result<Backend> {
        let context = Context::Fixed(Opened::open(layer, open)?);
        Ok(Backend { name: layer.name(), context })
    }

    pub(crate) fn open_to_reopen(layer: &Arc<Layer>, open: &Open<'_>) -> Result<Backend> {
        let context = Context::Reopenable(Reopenable::open(layer, open)?);
        Ok(Backend { name: layer.name(), context })
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
    /// prepared and have not been finalized. Whoever opened a context calls this before dropping
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
