//! `nbdkit_next` as C has it: a [`Next`] with the table of functions in front, and the connections
//! that have it as their layer below.

use std::ffi::{CStr, CString, c_char};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use nbdkit_api::exports::MAX_STRING;
use nbdkit_api::{Client, Errno, Error, Layer, Next, Open, Result};

use super::layout::{NextOps, NextPointer};

/// An open layer. C sees the functions in front; the rest is why C must not copy the structure.
#[repr(C)]
pub(in super::super) struct CNext {
    functions: NextOps,
    pub(super) next: Next,
    /// Connections that have it as their layer below: a connection that has it alone owns it.
    connections: AtomicUsize,
    /// Texts that C was given, which must stay where they are. A layer has one description, or few.
    descriptions: Mutex<Vec<CString>>,
}

/// For whom the layer below is opened.
pub(super) struct For {
    /// `None` for several.
    pub(super) client: Option<Arc<Client>>,
    /// The client has negotiated TLS.
    pub(super) tls: bool,
}

/// How the layer below is opened.
pub(super) type OpenLayerBelow = fn(&Arc<Layer>, &Open<'_>) -> Result<Next>;

pub(super) fn absent() -> Error {
    Error::new(Errno::EIO, "there is no open layer below this filter")
}

impl CNext {
    /// What C's pointer leads to; `None` for null.
    ///
    /// # Safety
    /// `next` is null, or came from [`open`](Self::open) and has not been closed, nor is while the
    /// reference lives.
    pub(super) unsafe fn of<'a>(next: NextPointer) -> Option<&'a CNext> {
        // SAFETY: null or an open CNext while the reference lives, which the caller upholds.
        unsafe { next.cast::<CNext>().as_ref() }
    }

    /// Opens the layer below a filter. The result is to be given to [`close`](Self::close).
    ///
    /// # Errors
    /// Those of the layers, which have been logged; EINVAL for a name that no export can have.
    pub(super) fn open(
        functions: NextOps,
        layer: &Arc<Layer>,
        open_layer: OpenLayerBelow,
        whose: &For,
        readonly: bool,
        export: &CStr,
    ) -> Result<NextPointer> {
        let export =
            export.to_str().ok().filter(|export| export.len() <= MAX_STRING).ok_or_else(|| {
                Error::new(Errno::EINVAL, "the export name is not UTF-8 or too long")
            })?;
        let open = Open { client: whose.client.as_ref(), readonly, export, tls: whose.tls };
        let next = open_layer(layer, &open)?;
        let next = Box::new(CNext {
            functions,
            next,
            connections: AtomicUsize::new(0),
            descriptions: Mutex::default(),
        });
        Ok(Box::into_raw(next).cast_const().cast())
    }

    /// Finalizes the context if that has not been done, and closes it.
    ///
    /// # Safety
    /// `next` came from [`open`](Self::open), and is not used again.
    pub(super) unsafe fn close(next: NextPointer) {
        // SAFETY: `next` came from `Box::into_raw` in `open`, and the caller gives it back once.
        let closed = unsafe { Box::from_raw(next.cast_mut().cast::<CNext>()) };
        // A failure has been logged, and no caller is left to get it.
        let _ = closed.next.finalize();
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

    /// The text, where it stays as long as the context.
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

/// Calls `call` with the layer below.
///
/// # Errors
/// There is none; or those of the layer, logged.
///
/// # Safety
/// `next` is null, or came from [`CNext::open`] and has not been closed, nor is until this returns.
pub(in super::super) unsafe fn with<T>(
    next: NextPointer,
    call: impl FnOnce(&Next) -> Result<T>,
) -> Result<T> {
    // SAFETY: null or open until this returns, as the caller promises.
    unsafe { CNext::of(next) }.ok_or_else(absent).and_then(|next| call(&next.next))
}
