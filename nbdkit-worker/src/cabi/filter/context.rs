//! `nbdkit_backend` and `nbdkit_context`: the layer below a filter before it is opened, and a
//! connection's place for what it opened there; and the functions by which a filter opens contexts
//! of its own. nbdkit-filter(3), "nbdkit_next".

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr::null;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, Ordering};

use nbdkit_api::{Errno, Error, Layer, Result, client};

use super::super::context::{self, Served};
use super::super::functions::{fail, text};
use super::layout::{BackendPointer, ContextPointer, NextPointer};
use super::next::{CNext, For, OpenLayerBelow};
use super::ops;

/// The layer below a filter. There is one for each filter, from `after_fork` until the process
/// ends.
pub(super) struct CBackend {
    pub(super) layer: Arc<Layer>,
}

/// `nbdkit_context`: what a connection has below, from `open` to `close`.
pub(super) struct CContext {
    backend: Arc<CBackend>,
    /// The name that `open` was called with, for filters that do not pass one on.
    pub(super) export: CString,
    served: Arc<Served>,
    /// Null, or came from [`CNext::open`], and counts this one among its connections.
    next: AtomicPtr<c_void>,
}

impl CContext {
    /// What C's pointer leads to; `None` for null.
    ///
    /// # Safety
    /// `context` is null, or one that `open` was called with and that is not closed while the
    /// reference lives.
    pub(super) unsafe fn of<'a>(context: ContextPointer) -> Option<&'a CContext> {
        // SAFETY: null or a context that is not closed, which the caller upholds.
        unsafe { context.cast::<CContext>().as_ref() }
    }

    pub(super) fn new(backend: Arc<CBackend>, export: CString, served: Arc<Served>) -> CContext {
        CContext { backend, export, served, next: AtomicPtr::default() }
    }

    /// The layer below, if there is one now.
    pub(super) fn next(&self) -> NextPointer {
        self.next.load(Ordering::Acquire)
    }

    /// Replaces the layer below. What was there before is the caller's.
    fn set(&self, next: NextPointer) -> NextPointer {
        // SAFETY: null or open, as it is by the interface.
        if let Some(next) = unsafe { CNext::of(next) } {
            next.attach();
        }
        let previous = self.next.swap(next.cast_mut(), Ordering::AcqRel);
        // SAFETY: it was put there open, and is not closed while it counts this connection.
        if let Some(previous) = unsafe { CNext::of(previous) } {
            previous.detach();
        }
        previous
    }

    /// Opens the layer below for this connection.
    ///
    /// # Errors
    /// Those of the layer, logged.
    pub(super) fn open(
        &self,
        open_layer: OpenLayerBelow,
        readonly: bool,
        export: &CStr,
    ) -> Result<()> {
        let whose = For { client: self.served.client.clone(), tls: self.served.tls };
        let layer = &self.backend.layer;
        let previous =
            self.set(CNext::open(ops::CURRENT, layer, open_layer, &whose, readonly, export)?);
        // SAFETY: null or open: a filter that opens twice does not use the first any more.
        if let Some(unused) = unsafe { CNext::of(previous) }
            && !unused.is_attached()
        {
            // SAFETY: it came from `CNext::open`, and no connection has it.
            unsafe { CNext::close(previous) };
        }
        Ok(())
    }
}

impl Drop for CContext {
    /// Closes the layer below, unless other connections have it too.
    fn drop(&mut self) {
        let next = *self.next.get_mut();
        // SAFETY: null or open, since it counts this connection.
        let was_last = unsafe { CNext::of(next) }.is_some_and(CNext::detach);
        if was_last {
            // SAFETY: it was its last connection's.
            unsafe { CNext::close(next) };
        }
    }
}

/// `next` in `open`.
///
/// # Safety
/// `context` is the one that `open` was called with; `export` is null or ends with a null byte.
pub(super) unsafe extern "C" fn next_open(
    context: ContextPointer,
    readonly: c_int,
    export: *const c_char,
) -> c_int {
    // SAFETY: `context` is the one that `open` was called with; `export` is null or ends with a
    // null byte; the module upholds that.
    let (context, export) = unsafe { (CContext::of(context), text(export)) };
    let result = match (context, export) {
        (Some(context), Some(export)) => context.open(Layer::open, readonly != 0, export),
        _ => Err(Error::new(Errno::EINVAL, "open: the filter passed no context or export name")),
    };
    opened(result)
}

pub(super) fn opened(result: Result<()>) -> c_int {
    match result {
        Ok(()) => 0,
        Err(error) => {
            context::failed_below(error);
            -1
        }
    }
}

/// The backend that the context's filter is on.
///
/// # Safety
/// `context` is one that `open` was called with, and has not been closed.
#[unsafe(no_mangle)]
unsafe extern "C" fn nbdkit_context_get_backend(context: ContextPointer) -> BackendPointer {
    // SAFETY: `context` is one that `open` was called with, and has not been closed; the module
    // upholds that.
    let context = unsafe { CContext::of(context) };
    context.map_or(null(), |context| Arc::as_ptr(&context.backend)).cast_mut().cast()
}

/// Opens a context that is under the filter's own control: for the client that this thread serves,
/// or `shared` by all. Null for failure.
///
/// # Safety
/// `backend` is null or a [`CBackend`]; `export` is null or ends with a null byte.
#[unsafe(no_mangle)]
unsafe extern "C" fn nbdkit_next_context_open(
    backend: BackendPointer,
    readonly: c_int,
    export: *const c_char,
    shared: c_int,
) -> NextPointer {
    // SAFETY: `backend` is null or a `CBackend`; `export` is null or ends with a null byte; the
    // module upholds that.
    let (backend, export) = unsafe { (backend.cast::<CBackend>().as_ref(), text(export)) };
    let refuse =
        |why: &str| Err(Error::new(Errno::EINVAL, format!("nbdkit_next_context_open: {why}")));
    let served = context::served().filter(|served| served.client.is_some());
    let result = match (backend, export, served) {
        (None, ..) => refuse("no backend was given"),
        (_, None, _) => refuse("no export name was given"),
        // Nothing that is meant for TLS alone may reach those without, if there may be such.
        (Some(backend), Some(export), _) if shared != 0 => {
            let whose = For { client: None, tls: client::tls_required() };
            CNext::open(ops::CURRENT, &backend.layer, Layer::open, &whose, readonly != 0, export)
        }
        (Some(backend), Some(export), Some(served)) => {
            let whose = For { client: served.client.clone(), tls: served.tls };
            CNext::open(ops::CURRENT, &backend.layer, Layer::open, &whose, readonly != 0, export)
        }
        (_, _, None) => refuse("no connection in this thread, and the context is not shared"),
    };
    result.unwrap_or_else(|error| {
        context::failed_below(error);
        null()
    })
}

/// Closes a context that is under the filter's own control.
///
/// # Safety
/// `next` is null or open, and not used again.
#[unsafe(no_mangle)]
unsafe extern "C" fn nbdkit_next_context_close(next: NextPointer) {
    // SAFETY: `next` is null or open, and not used again; the module upholds that.
    let Some(open) = (unsafe { CNext::of(next) }) else { return };
    if open.is_attached() {
        let why = "nbdkit_next_context_close: the context is a connection's, which closes it";
        fail(&Error::new(Errno::EBUSY, why));
        return;
    }
    // SAFETY: no connection has it, so it is the caller's.
    unsafe { CNext::close(next) };
}

/// Makes `next` the layer below of a connection, and returns what was so far, which is then the
/// caller's to close.
///
/// # Safety
/// `context` is one that `open` was called with, and has not been closed; `next` is null or open.
#[unsafe(no_mangle)]
unsafe extern "C" fn nbdkit_context_set_next(
    context: ContextPointer,
    next: NextPointer,
) -> NextPointer {
    // SAFETY: `context` is one that `open` was called with, and has not been closed; `next` is null
    // or open; the module upholds that.
    unsafe { CContext::of(context) }.map_or(null(), |context| context.set(next))
}
