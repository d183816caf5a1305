//! `nbdkit_backend` and `nbdkit_context`: the layer below a filter before it is opened, and a
//! connection's place for what it opened there; and the functions by which a filter opens contexts
//! of its own. nbdkit-filter(3), "nbdkit_next".

use std::ffi::{CStr, CString, c_char, c_int};
use std::ptr::null;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, Ordering};

use nbdkit_api::{Errno, Error, Layer, Result, client};

use super::super::context::{self, Served};
use super::super::functions::{fail, text};
use super::next::{CNext, For, OpenLayerBelow};
use super::table::{BackendPointer, ContextPointer, NextPointer};

/// The layer below a filter. There is one for each filter, from `after_fork` until the process
/// ends.
pub(super) struct CBackend {
    pub(super) layer: Arc<Layer>,
}

/// The place of a connection, from `open` to `close`, for the layer below.
pub(super) struct CContext {
    backend: Arc<CBackend>,
    /// The name that `open` was called with, for filters that do not pass one on.
    export: CString,
    served: Arc<Served>,
    /// Null, or came from [`CNext::open`], and counts us among its connections.
    next: AtomicPtr<CNext>,
}

impl CContext {
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
        if let Some(next) = unsafe { next.as_ref() } {
            next.attach();
        }
        let previous = self.next.swap(next.cast_mut(), Ordering::AcqRel);
        // SAFETY: it was put there open, and nobody could close it while it counted us.
        if let Some(previous) = unsafe { previous.as_ref() } {
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
        let previous = self.set(CNext::open(layer, open_layer, &whose, readonly, export)?);
        // SAFETY: a filter that opens twice has forgotten the first.
        if let Some(unused) = unsafe { previous.as_ref() }
            && !unused.is_attached()
        {
            // SAFETY: it was ours, and is nobody's now.
            unsafe { CNext::close(previous) };
        }
        Ok(())
    }
}

impl Drop for CContext {
    /// Closes the layer below, unless other connections have it too.
    fn drop(&mut self) {
        let next = *self.next.get_mut();
        // SAFETY: it counts us, so it is open.
        let was_last = unsafe { next.as_ref() }.is_some_and(CNext::detach);
        if was_last {
            // SAFETY: with its last connection it is nobody's.
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
    // SAFETY: as promised to us.
    let (context, export) = unsafe { (context.as_ref(), text(export)) };
    let result = match (context, export) {
        (Some(context), Some(export)) => context.open(Layer::open, readonly != 0, export),
        _ => Err(Error::new(Errno::EINVAL, "open: the filter passed no context or export name")),
    };
    opened(result)
}

/// `next` in `open` with `NBDKIT_FILTER_API` 116.
///
/// # Safety
/// `context` is the one that `open` was called with.
pub(super) unsafe extern "C" fn next_open_of_1_16(
    context: ContextPointer,
    readonly: c_int,
) -> c_int {
    // SAFETY: as promised to us.
    let context = unsafe { context.as_ref() };
    let context = context.ok_or_else(|| Error::new(Errno::EINVAL, "open: no nxdata"));
    // Among the functions of this version is one to reopen.
    opened(
        context.and_then(|context| {
            context.open(Layer::open_to_reopen, readonly != 0, &context.export)
        }),
    )
}

fn opened(result: Result<()>) -> c_int {
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
    // SAFETY: as promised to us.
    let context = unsafe { context.as_ref() };
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
    // SAFETY: as promised to us.
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
            CNext::open(&backend.layer, Layer::open, &whose, readonly != 0, export)
        }
        (Some(backend), Some(export), Some(served)) => {
            let whose = For { client: served.client.clone(), tls: served.tls };
            CNext::open(&backend.layer, Layer::open, &whose, readonly != 0, export)
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
    // SAFETY: as promised to us.
    let Some(open) = (unsafe { next.as_ref() }) else { return };
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
    // SAFETY: as promised to us.
    unsafe { context.as_ref() }.map_or(null(), |context| context.set(next))
}
