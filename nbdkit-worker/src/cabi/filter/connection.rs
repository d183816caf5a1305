//! One client's handle of a filter in C as an [`OpenLayer`]. The layer below is the one in the
//! handle's [`CContext`](super::context), where the filter may replace it at any time. Requests
//! that the filter has no callback for go there too. The `next` that the methods are called with is
//! absent.

use std::ffi::c_int;
use std::sync::Arc;

use nbdkit_api::{
    BlockSize, Blocking, Cache, Errno, Error, Extents, Flags, Fua, Layer, Next, Open, OpenLayer,
    Result, Zero,
};

use super::super::connection::{MAX_COUNT, pieces};
use super::super::context::{self, Served};
use super::super::table;
use super::Callbacks;
use super::configure::export_name;
use super::context::{CBackend, CContext, next_open};
use super::layout::Handle;
use super::next::{self, CNext};
use super::of_1_16;
use super::table::Table;

/// What a filter without `open` has for a handle. It is passed back to it, as nbdkit does with one
/// of its own.
static NO_HANDLE: u8 = 0;

/// A client's handle of a C filter.
pub(super) struct CFilterConnection {
    callbacks: Arc<Callbacks>,
    /// What `open` returned.
    handle: OpenHandle,
    // Dropped, that is closed, after the filter's own close.
    context: Arc<CContext>,
    served: Arc<Served>,
}

#[derive(Clone, Copy)]
struct OpenHandle(Handle);

// SAFETY: only the filter looks at what it points to, and only in callbacks, which run on several
// threads as far as the thread model allows.
unsafe impl Send for OpenHandle {}
// SAFETY: only the filter looks at what the pointer points to, as the thread model allows.
unsafe impl Sync for OpenHandle {}

/// Runs a callback of either layout with the layer below, the handle and further arguments, if it
/// is there.
macro_rules! call {
    ($self:ident, $callback:ident $(, $argument:expr)*) => {{
        let next = $self.context.next();
        let handle = $self.handle.0;
        let _entered = context::enter(Some(&$self.served));
        match &$self.callbacks.table {
            Table::Current(_, of_connection) => of_connection.$callback.map(|callback| {
                // SAFETY: the handle is what open returned and is not yet closed; `next` is null or
                // open as long as the filter leaves it; buffers and lists are as long as the call
                // says and are the callback's until it returns.
                unsafe { callback(next, handle $(, $argument)*) }
            }),
            Table::Of116(_, of_connection) => of_connection.$callback.map(|callback| {
                // SAFETY: the handle is what open returned and is not yet closed; `next` is null or
                // open as long as the filter leaves it; the functions are there as long as the
                // process; buffers and lists are the callback's until it returns.
                unsafe { callback(&raw const of_1_16::OPS, next, handle $(, $argument)*) }
            }),
        }
    }};
}

/// A question: the callback's answer, or that of the layer below.
macro_rules! ask {
    ($self:ident, $callback:ident, $below:expr, $answer:expr) => {
        match call!($self, $callback) {
            None => $self.below($below),
            Some(-1) => Err(context::failure(None)),
            Some(answer) => $answer(answer),
        }
    };
}

/// A data request: the callback's outcome, or that of the layer below.
macro_rules! data {
    ($self:ident, $callback:ident ($($argument:expr),*), $below:expr) => {{
        let mut err: c_int = 0;
        match call!($self, $callback $(, $argument)*, &raw mut err) {
            None => $self.below($below),
            Some(-1) => Err(failure(err)),
            Some(_) => Ok(()),
        }
    }};
}

/// The failure of a data request: the filter says in `err` which it is.
fn failure(err: c_int) -> Error {
    if err != 0 {
        context::set_errno(err);
    }
    context::failure(None)
}

fn truth(answer: c_int) -> Result<bool> {
    Ok(answer != 0)
}

fn invalid<T>(question: &str, answer: impl std::fmt::Display) -> Result<T> {
    let why = format!("{question}: the filter returned invalid value {answer}");
    Err(Error::new(Errno::EINVAL, why))
}

impl CFilterConnection {
    /// Calls `open`, or without one opens the layer below.
    ///
    /// # Errors
    /// The filter's, or the layer's.
    pub(super) fn open(
        callbacks: &Arc<Callbacks>,
        backend: Arc<CBackend>,
        open: &Open<'_>,
    ) -> Result<CFilterConnection> {
        let export = export_name(open.export)?;
        let served = Arc::new(Served {
            client: open.client.cloned(),
            export: Some(export.clone()),
            tls: open.tls,
        });
        let context = CContext::new(backend, export.clone(), Arc::clone(&served));
        // Not a box: the filter remembers its address while we have it too.
        let context = Arc::new(context);
        let (readonly, tls) = (open.readonly.into(), open.tls.into());
        let pointer = Arc::as_ptr(&context).cast();
        let handle = {
            let _entered = context::enter(Some(&served));
            match &callbacks.table {
                // SAFETY: the context is there until after `close`; called as the thread model
                // allows.
                Table::Current(middle, _) => middle.open.map(|open| unsafe {
                    open(next_open, pointer, readonly, export.as_ptr(), tls)
                }),
                Table::Of116(middle, _) => middle.open.map(|open| {
                    // SAFETY: the context is there until after `close`.
                    unsafe { open(of_1_16::next_open, pointer, readonly) }
                }),
            }
        };
        let handle = match handle {
            Some(handle) if handle.is_null() => return Err(context::failure(None)),
            Some(handle) => handle,
            None => {
                let open_layer = match &callbacks.table {
                    Table::Current(..) => Layer::open,
                    Table::Of116(..) => Layer::open_to_reopen,
                };
                context.open(open_layer, open.readonly, &export)?;
                (&raw const NO_HANDLE).cast_mut().cast()
            }
        };
        let callbacks = Arc::clone(callbacks);
        Ok(CFilterConnection { callbacks, handle: OpenHandle(handle), context, served })
    }

    /// Asks or orders something of the layer below, which is what the filter would do with no
    /// callback for it.
    fn below<T>(&self, call: impl FnOnce(&Next) -> Result<T>) -> Result<T> {
        // SAFETY: null, or open as long as the filter leaves it in its place.
        unsafe { next::with(self.context.next(), call) }
    }

    /// Finalizes the layer below unless others have it too: it is not this connection's to end
    /// then.
    fn finalize_below(&self) -> Result<()> {
        // SAFETY: null, or open as long as the filter leaves it in its place.
        let next = unsafe { CNext::of(self.context.next()) };
        next.filter(|next| next.is_of_one()).map_or(Ok(()), |next| next.next.finalize())
    }
}

impl OpenLayer for CFilterConnection {
    fn prepare(&self, _next: &Next, readonly: bool) -> Result<()> {
        // SAFETY: null, or open as long as the filter leaves it in its place.
        if let Some(next) = unsafe { CNext::of(self.context.next()) } {
            next.next.prepare()?;
        }
        match call!(self, prepare, readonly.into()) {
            Some(-1) => {
                let error = context::failure(None);
                // What was prepared is finalized, though this filter, which was not, will only be
                // closed.
                let _ = self.finalize_below();
                Err(error)
            }
            _ => Ok(()),
        }
    }

    fn finalize(&self, _next: &Next) -> Result<()> {
        let own = match call!(self, finalize) {
            Some(-1) => Err(context::failure(None)),
            _ => Ok(()),
        };
        own.and(self.finalize_below())
    }

    fn size(&self, _next: &Next) -> Result<u64> {
        ask!(self, get_size, |next| next.size(), |size| u64::try_from(size)
            .or_else(|_| invalid("get_size", size)))
    }

    fn export_description(&self, _next: &Next) -> Option<String> {
        if let Table::Current(_, of_connection) = &self.callbacks.table
            && let Some(callback) = of_connection.export_description
        {
            let _entered = context::enter(Some(&self.served));
            // SAFETY: the handle is what open returned and is not yet closed; `next` is null or
            // open as long as the filter leaves it.
            let text = unsafe { callback(self.context.next(), self.handle.0) };
            // SAFETY: null or a string that lives at least as long as the connection. What is not
            // UTF-8 is none.
            return unsafe { table::text(text) }.filter(|text| !text.contains('\u{fffd}'));
        }
        self.below(|next| Ok(next.export_description())).ok().flatten()
    }

    fn block_size(&self, _next: &Next) -> Result<BlockSize> {
        let Table::Current(_, of_connection) = &self.callbacks.table else {
            return self.below(|next| next.block_size());
        };
        let Some(callback) = of_connection.block_size else {
            return self.below(|next| next.block_size());
        };
        let mut size = BlockSize::default();
        let _entered = context::enter(Some(&self.served));
        // SAFETY: the handle is what open returned and is not yet closed; `next` is null or open as
        // long as the filter leaves it; the numbers are the callback's until it returns.
        let result = unsafe {
            callback(
                self.context.next(),
                self.handle.0,
                &raw mut size.minimum,
                &raw mut size.preferred,
                &raw mut size.maximum,
            )
        };
        if result == -1 { Err(context::failure(None)) } else { Ok(size) }
    }

    fn can_write(&self, _next: &Next) -> Result<bool> {
        ask!(self, can_write, |next| next.can_write(), truth)
    }

    fn can_flush(&self, _next: &Next) -> Result<bool> {
        ask!(self, can_flush, |next| next.can_flush(), truth)
    }

    fn is_rotational(&self, _next: &Next) -> Result<bool> {
        ask!(self, is_rotational, |next| next.is_rotational(), truth)
    }

    fn can_trim(&self, _next: &Next) -> Result<bool> {
        ask!(self, can_trim, |next| next.can_trim(), truth)
    }

    fn can_zero(&self, _next: &Next) -> Result<Zero> {
        ask!(self, can_zero, |next| next.can_zero(), |answer| match answer {
            0 => Ok(Zero::None),
            1 => Ok(Zero::Emulate),
            2 => Ok(Zero::Native),
            other => invalid("can_zero", other),
        })
    }

    fn can_fast_zero(&self, _next: &Next) -> Result<bool> {
        ask!(self, can_fast_zero, |next| next.can_fast_zero(), truth)
    }

    fn can_extents(&self, _next: &Next) -> Result<bool> {
        ask!(self, can_extents, |next| next.can_extents(), truth)
    }

    fn can_fua(&self, _next: &Next) -> Result<Fua> {
        ask!(self, can_fua, |next| next.can_fua(), |answer| match answer {
            0 => Ok(Fua::None),
            1 => Ok(Fua::Emulate),
            2 => Ok(Fua::Native),
            other => invalid("can_fua", other),
        })
    }

    fn can_multi_conn(&self, _next: &Next) -> Result<bool> {
        ask!(self, can_multi_conn, |next| next.can_multi_conn(), truth)
    }

    fn can_cache(&self, _next: &Next) -> Result<Cache> {
        ask!(self, can_cache, |next| next.can_cache(), |answer| match answer {
            0 => Ok(Cache::None),
            1 => Ok(Cache::Emulate),
            2 => Ok(Cache::Native),
            other => invalid("can_cache", other),
        })
    }

    fn pread(&self, _next: &Next, buf: &mut [u8], offset: u64) -> Result<()> {
        let Ok(count) = u32::try_from(buf.len()) else { return Err(Error::silent(Errno::EINVAL)) };
        data!(self, pread(buf.as_mut_ptr().cast(), count, offset, 0), |next| next
            .pread(buf, offset))
    }

    fn pwrite(&self, _next: &Next, buf: &[u8], offset: u64, flags: Flags) -> Result<()> {
        let Ok(count) = u32::try_from(buf.len()) else { return Err(Error::silent(Errno::EINVAL)) };
        data!(self, pwrite(buf.as_ptr().cast(), count, offset, flags.bits()), |next| next
            .pwrite(buf, offset, flags))
    }

    fn flush(&self, _next: &Next) -> Result<()> {
        data!(self, flush(0), |next| next.flush())
    }

    fn trim(&self, _next: &Next, count: u64, offset: u64, flags: Flags) -> Result<()> {
        pieces(count, offset, |count, offset| {
            data!(self, trim(count, offset, flags.bits()), |next| next.trim(
                count.into(),
                offset,
                flags
            ))
        })
    }

    fn zero(&self, _next: &Next, count: u64, offset: u64, flags: Flags) -> Result<()> {
        pieces(count, offset, |count, offset| {
            data!(self, zero(count, offset, flags.bits()), |next| next.zero(
                count.into(),
                offset,
                flags
            ))
        })
    }

    fn extents(
        &self,
        _next: &Next,
        count: u64,
        offset: u64,
        flags: Flags,
        extents: &mut Extents,
    ) -> Result<()> {
        // A list may end early.
        let count = u32::try_from(count).unwrap_or(MAX_COUNT);
        let list = std::ptr::from_mut(extents);
        data!(self, extents(count, offset, flags.bits(), list.cast()), |next| next.extents(
            count.into(),
            offset,
            flags,
            extents
        ))
    }

    fn cache(&self, _next: &Next, count: u64, offset: u64) -> Result<()> {
        pieces(count, offset, |count, offset| {
            data!(self, cache(count, offset, 0), |next| next.cache(count.into(), offset))
        })
    }

    /// There is no knowing.
    fn blocking(&self) -> Blocking {
        Blocking::Long
    }
}

impl Drop for CFilterConnection {
    fn drop(&mut self) {
        let close = match &self.callbacks.table {
            Table::Current(middle, _) => middle.close,
            Table::Of116(middle, _) => middle.close,
        };
        if let Some(close) = close {
            let _entered = context::enter(Some(&self.served));
            // SAFETY: the handle is what open returned, and is not used after this.
            unsafe { close(self.handle.0) };
        }
    }
}
