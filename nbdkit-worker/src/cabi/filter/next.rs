//! `nbdkit_next`: the layer below a filter as it was opened, with the functions by which the filter reaches it. The
//! functions may be called by any thread of the filter's.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use nbdkit_api::exports::MAX_STRING;
use nbdkit_api::{Backend, Client, Errno, Error, Flags, Layer, Open, Result};

use super::super::context;
use super::super::functions::lists;
use super::super::table::ExtentsPointer;
use super::table::{NextOps, NextOps116, NextPointer};

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

fn absent() -> Error {
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
            functions: FUNCTIONS,
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
    fn reopen(&self, readonly: bool) -> Result<()> {
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
    fn with<T>(&self, call: impl FnOnce(&Backend) -> Result<T>) -> Result<T> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        state.as_ref().ok_or_else(absent).and_then(|state| call(&state.backend))
    }

    /// The text, where it will be as long as the context.
    fn keep(&self, text: String) -> Option<*const c_char> {
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

/// The answer as C has it: -1 for a failure, which leaves its errno.
fn answer<T: From<i8>>(result: Result<T>) -> T {
    result.unwrap_or_else(|error| {
        context::failed_below(error);
        T::from(-1)
    })
}

/// The outcome of a data request, as C has it.
///
/// # Safety
/// `err` is null or may be written.
unsafe fn outcome(result: Result<()>, err: *mut c_int) -> c_int {
    let Err(error) = result else { return 0 };
    let errno = context::failed_below(error);
    if !err.is_null() {
        // SAFETY: as promised to us.
        unsafe { err.write(errno as c_int) };
    }
    -1
}

/// `nbdkit_next` of every context.
const FUNCTIONS: NextOps = NextOps {
    prepare: Some(prepare),
    finalize: Some(finalize),
    get_size: Some(get_size),
    export_description: Some(export_description),
    block_size: Some(block_size),
    can_write: Some(can_write),
    can_flush: Some(can_flush),
    is_rotational: Some(is_rotational),
    can_trim: Some(can_trim),
    can_zero: Some(can_zero),
    can_fast_zero: Some(can_fast_zero),
    can_extents: Some(can_extents),
    can_fua: Some(can_fua),
    can_multi_conn: Some(can_multi_conn),
    can_cache: Some(can_cache),
    pread: Some(pread),
    pwrite: Some(pwrite),
    flush: Some(flush),
    trim: Some(trim),
    zero: Some(zero),
    extents: Some(extents),
    cache: Some(cache),
};

/// `next_ops` of every filter with `NBDKIT_FILTER_API` 116, whose `nxdata` is an `nbdkit_next`.
pub(super) static FUNCTIONS_OF_1_16: NextOps116 = NextOps116 {
    reopen: Some(reopen),
    get_size: FUNCTIONS.get_size,
    can_write: FUNCTIONS.can_write,
    can_flush: FUNCTIONS.can_flush,
    is_rotational: FUNCTIONS.is_rotational,
    can_trim: FUNCTIONS.can_trim,
    can_zero: FUNCTIONS.can_zero,
    can_fast_zero: FUNCTIONS.can_fast_zero,
    can_extents: FUNCTIONS.can_extents,
    can_fua: FUNCTIONS.can_fua,
    can_multi_conn: FUNCTIONS.can_multi_conn,
    can_cache: FUNCTIONS.can_cache,
    pread: FUNCTIONS.pread,
    pwrite: FUNCTIONS.pwrite,
    flush: FUNCTIONS.flush,
    trim: FUNCTIONS.trim,
    zero: FUNCTIONS.zero,
    extents: FUNCTIONS.extents,
    cache: FUNCTIONS.cache,
};

// In what follows every `next` is one that with() takes, and every `err` one that outcome() takes: what a filter passes
// is what it was given, nbdkit-filter(3), "Using nbdkit_next".

/// Those that are asked once and answered with a number.
macro_rules! questions {
    ($($name:ident: $question:expr;)*) => {
        $(unsafe extern "C" fn $name(next: NextPointer) -> c_int {
            // SAFETY: as said above.
            answer(unsafe { with(next, $question) })
        })*
    };
}

questions! {
    can_write: |below| below.can_write().map(c_int::from);
    can_flush: |below| below.can_flush().map(c_int::from);
    is_rotational: |below| below.is_rotational().map(c_int::from);
    can_trim: |below| below.can_trim().map(c_int::from);
    can_zero: |below| below.can_zero().map(|zero| zero as c_int);
    can_fast_zero: |below| below.can_fast_zero().map(c_int::from);
    can_extents: |below| below.can_extents().map(c_int::from);
    can_fua: |below| below.can_fua().map(|fua| fua as c_int);
    can_multi_conn: |below| below.can_multi_conn().map(c_int::from);
    can_cache: |below| below.can_cache().map(|cache| cache as c_int);
}

unsafe extern "C" fn prepare(next: NextPointer) -> c_int {
    // SAFETY: as said above.
    let next = unsafe { next.as_ref() };
    answer(next.ok_or_else(absent).and_then(Next::prepare).map(|()| 0))
}

unsafe extern "C" fn finalize(next: NextPointer) -> c_int {
    // SAFETY: as said above.
    let next = unsafe { next.as_ref() };
    answer(next.ok_or_else(absent).and_then(Next::finalize).map(|()| 0))
}

unsafe extern "C" fn reopen(next: NextPointer, readonly: c_int) -> c_int {
    // SAFETY: as said above.
    let next = unsafe { next.as_ref() };
    answer(next.ok_or_else(absent).and_then(|next| next.reopen(readonly != 0)).map(|()| 0))
}

unsafe extern "C" fn get_size(next: NextPointer) -> i64 {
    // SAFETY: as said above. A size is at most i64::MAX.
    answer(unsafe { with(next, |below| below.size().map(u64::cast_signed)) })
}

unsafe extern "C" fn export_description(next: NextPointer) -> *const c_char {
    // SAFETY: as said above.
    let Some(next) = (unsafe { next.as_ref() }) else { return std::ptr::null() };
    let text = next.with(|below| Ok(below.export_description())).ok().flatten();
    text.and_then(|text| next.keep(text)).unwrap_or_else(std::ptr::null)
}

unsafe extern "C" fn block_size(
    next: NextPointer,
    minimum: *mut u32,
    preferred: *mut u32,
    maximum: *mut u32,
) -> c_int {
    // SAFETY: as said above.
    let result = unsafe { with(next, Backend::block_size) };
    answer(result.map(|size| {
        for (place, value) in
            [(minimum, size.minimum), (preferred, size.preferred), (maximum, size.maximum)]
        {
            if !place.is_null() {
                // SAFETY: the filter's own variables.
                unsafe { place.write(value) };
            }
        }
        0
    }))
}

unsafe extern "C" fn pread(
    next: NextPointer,
    buf: *mut c_void,
    count: u32,
    offset: u64,
    _flags: u32,
    err: *mut c_int,
) -> c_int {
    let buf = if count == 0 {
        &mut []
    } else {
        // SAFETY: as many bytes as the filter says, which nothing else uses until this returns.
        unsafe { std::slice::from_raw_parts_mut(buf.cast::<u8>(), count as usize) }
    };
    // SAFETY: as said above.
    unsafe { outcome(with(next, |below| below.pread(buf, offset)), err) }
}

unsafe extern "C" fn pwrite(
    next: NextPointer,
    buf: *const c_void,
    count: u32,
    offset: u64,
    flags: u32,
    err: *mut c_int,
) -> c_int {
    let buf = if count == 0 {
        &[]
    } else {
        // SAFETY: as many bytes as the filter says, which nobody changes until this returns.
        unsafe { std::slice::from_raw_parts(buf.cast::<u8>(), count as usize) }
    };
    let flags = Flags::from_bits_truncate(flags);
    // SAFETY: as said above.
    unsafe { outcome(with(next, |below| below.pwrite(buf, offset, flags)), err) }
}

unsafe extern "C" fn flush(next: NextPointer, _flags: u32, err: *mut c_int) -> c_int {
    // SAFETY: as said above.
    unsafe { outcome(with(next, Backend::flush), err) }
}

unsafe extern "C" fn trim(
    next: NextPointer,
    count: u32,
    offset: u64,
    flags: u32,
    err: *mut c_int,
) -> c_int {
    let flags = Flags::from_bits_truncate(flags);
    // SAFETY: as said above.
    unsafe { outcome(with(next, |below| below.trim(count.into(), offset, flags)), err) }
}

unsafe extern "C" fn zero(
    next: NextPointer,
    count: u32,
    offset: u64,
    flags: u32,
    err: *mut c_int,
) -> c_int {
    let flags = Flags::from_bits_truncate(flags);
    // SAFETY: as said above.
    unsafe { outcome(with(next, |below| below.zero(count.into(), offset, flags)), err) }
}

unsafe extern "C" fn extents(
    next: NextPointer,
    count: u32,
    offset: u64,
    flags: u32,
    list: ExtentsPointer,
    err: *mut c_int,
) -> c_int {
    let flags = Flags::from_bits_truncate(flags);
    // SAFETY: a list that the filter was given or made, and does not use until this returns.
    let list = unsafe { lists::extents(list) };
    let list = list.ok_or_else(|| Error::new(Errno::EINVAL, "extents: there is no list"));
    let result = list.and_then(|list| {
        // SAFETY: as said above.
        unsafe { with(next, |below| below.extents(count.into(), offset, flags, list)) }
    });
    // SAFETY: as said above.
    unsafe { outcome(result, err) }
}

unsafe extern "C" fn cache(
    next: NextPointer,
    count: u32,
    offset: u64,
    _flags: u32,
    err: *mut c_int,
) -> c_int {
    // SAFETY: as said above.
    unsafe { outcome(with(next, |below| below.cache(count.into(), offset)), err) }
}
