//! `nbdkit_next`: the layer below a filter as it was opened. It may be used by any thread of the filter's.

use std::ffi::{CStr, CString, c_char};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use nbdkit_api::exports::MAX_STRING;
use nbdkit_api::{Backend, Client, Errno, Error, Layer, Open, Result};

use super::ops;
use super::table::{NextOps, NextPointer};

/// An open layer. C sees the functions in front; what is behind them is why it must not copy the structure.
#[repr(C)]
pub(in super::super) struct Next {
    functions: NextOps,
    layer: Arc<Layer>,
    /// `None` in contexts that serve several.
    client: Option<Arc<Client>>,
    tls: bool,
    export: String,
    /// Nothing is open after a reopening that failed. Written to by what changes the context as a whole.
    state: RwLock<Option<State>>,
    /// Connections that have it as their layer below: one that it serves alone owns it.
    connections: AtomicUsize,
    /// What C was shown, which must stay where it is. A layer has one description, or few.
    descriptions: Mutex<Vec<CString>>,
}

struct State {
    backend: Backend,
    prepared: bool,
}

/// For whom the layer below is opened.
pub(super) struct For {
    /// `None` for several.
    pub(super) client: Option<Arc<Client>>,
    /// The client has negotiated TLS.
    pub(super) tls: bool,
}

pub(super) fn absent() -> Error {
    Error::new(Errno::EIO, "there is no open layer below this filter")
}

impl Next {
    /// Opens the layer below a filter. The result is to be given to [`close`](Self::close).
    ///
    /// # Errors
    /// Those of the layers, which have been logged; EINVAL for a name that no export can have.
    pub(super) fn open(
        layer: &Arc<Layer>,
        whose: For,
        readonly: bool,
        export: &CStr,
    ) -> Result<*const Next> {
        let export =
            export.to_str().ok().filter(|export| export.len() <= MAX_STRING).ok_or_else(|| {
                Error::new(Errno::EINVAL, "the export name is not UTF-8 or too long")
            })?;
        let For { client, tls } = whose;
        let open = Open { client: client.as_ref(), readonly, export, tls };
        let backend = layer.open(&open)?;
        Ok(Box::into_raw(Box::new(Next {
            functions: ops::CURRENT,
            layer: Arc::clone(layer),
            client,
            tls,
            export: export.to_owned(),
            state: RwLock::new(Some(State { backend, prepared: false })),
            connections: AtomicUsize::new(0),
            descriptions: Mutex::default(),
        })))
    }

    /// Finalizes the context if that has not been done, and closes it.
    ///
    /// # Safety
    /// `next` came from [`open`](Self::open), and is not used again.
    pub(super) unsafe fn close(next: *const Next) {
        // SAFETY: it came from a box, and is given back once, as the caller promises.
        let next = unsafe { Box::from_raw(next.cast_mut()) };
        // A failure has been logged, and nobody is left to be told.
        let _ = next.finalize();
    }

    /// Counts a connection that has this as its layer below.
    pub(super) fn attach(&self) {
        self.connections.fetch_add(1, Ordering::AcqRel);
    }

    /// One connection less; whether it was the last one.
    pub(super) fn detach(&self) -> bool {
        self.connections.fetch_sub(1, Ordering::AcqRel) == 1
    }

    /// Whether this is the layer below of exactly one connection.
    pub(super) fn is_of_one(&self) -> bool {
        self.connections.load(Ordering::Acquire) == 1
    }

    /// Whether this is the layer below of any connection.
    pub(super) fn is_attached(&self) -> bool {
        self.connections.load(Ordering::Acquire) > 0
    }

    /// Prepares the context unless that has been done.
    ///
    /// # Errors
    /// Those of the layers, logged.
    pub(super) fn prepare(&self) -> Result<()> {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let state = state.as_mut().ok_or_else(absent)?;
        if !state.prepared {
            state.backend.prepare()?;
            state.prepared = true;
        }
        Ok(())
    }

    /// Finalizes the context unless that has been done, or it was not prepared.
    ///
    /// # Errors
    /// Those of the layers, logged.
    pub(super) fn finalize(&self) -> Result<()> {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let Some(state) = state.as_mut().filter(|state| state.prepared) else { return Ok(()) };
        state.prepared = false;
        state.backend.finalize()
    }

    /// Closes the layer below and opens and prepares it once more.
    ///
    /// # Errors
    /// Those of the layers, logged. Nothing is open then.
    pub(super) fn reopen(&self, readonly: bool) -> Result<()> {
        // A layer that has to be reopened need not succeed in ending well.
        let _ = self.finalize();
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        *state = None;
        let client = self.client.as_ref();
        let open = Open { client, readonly, export: &self.export, tls: self.tls };
        let mut backend = self.layer.open(&open)?;
        backend.prepare()?;
        *state = Some(State { backend, prepared: true });
        Ok(())
    }

    /// Asks or orders something of the layer below.
    ///
    /// # Errors
    /// Those of the layer, logged.
    pub(super) fn with<T>(&self, call: impl FnOnce(&Backend) -> Result<T>) -> Result<T> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        state.as_ref().ok_or_else(absent).and_then(|state| call(&state.backend))
    }

    /// The text, where it will be as long as the context.
    pub(super) fn keep(&self, text: String) -> Option<*const c_char> {
        let text = CString::new(text).ok()?;
        let mut kept = self.descriptions.lock().unwrap_or_else(PoisonError::into_inner);
        // What is on the heap stays there when its owner moves.
        if let Some(known) = kept.iter().find(|known| **known == text) {
            return Some(known.as_ptr());
        }
        let pointer = text.as_ptr();
        kept.push(text);
        Some(pointer)
    }
}

/// Asks or orders something of the layer below.
///
/// # Errors
/// There is none; or those of the layer, logged.
///
/// # Safety
/// `next` is null, or came from [`Next::open`] and has not been closed, nor is until this returns.
pub(in super::super) unsafe fn with<T>(
    next: NextPointer,
    call: impl FnOnce(&Backend) -> Result<T>,
) -> Result<T> {
    // SAFETY: as promised to us.
    unsafe { next.as_ref() }.ok_or_else(absent).and_then(|next| next.with(call))
}
