//! Handles of open layers: what a filter has of the layer below, and the server of the outermost
//! one.

use std::ops::Deref;
use std::sync::Arc;

use crate::backend::Backend;

static ABSENT: Backend = Backend::ABSENT;

/// An owned handle of an open layer (`nbdkit_next *`). Clones are handles of the same context and
/// may be used by any thread, also a filter's own. The layer is closed with the last handle.
///
/// Whoever opened a context calls [`prepare`](Backend::prepare) before it is used and
/// [`finalize`](Backend::finalize) before it is dropped: for a context from
/// [`Slot::open`](crate::Slot::open) that is the connection, for one that a filter opened itself by
/// [`Layer::open`](crate::Layer::open), to outlive connections, it is the filter.
///
/// The default is the handle of a filter that opened nothing below: all requests fail with EIO.
#[derive(Debug, Clone, Default)]
pub struct Next(Option<Arc<Backend>>);

impl Next {
    pub(crate) fn new(backend: Backend) -> Next {
        Next(Some(Arc::new(backend)))
    }
}

impl Deref for Next {
    type Target = Backend;

    #[inline]
    fn deref(&self) -> &Backend {
        self.0.as_deref().unwrap_or(&ABSENT)
    }
}

#[cfg(test)]
mod tests;
