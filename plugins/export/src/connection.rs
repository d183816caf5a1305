//! The callbacks of the table that are about what one client has open. A handle is a box that
//! `open` gave to the server and that `close` takes back.

#![expect(unsafe_code, reason = "defines functions that C calls, and reads what they are passed")]

use std::ffi::{c_char, c_int, c_void};

use nbdkit_abi::plugin::ExtentsPointer;
use nbdkit_api::{Connection, Errno, Error, Extents, Flags, Result};

use crate::{as_int, guard, server};

/// What the server holds for a client.
pub(crate) struct Handle {
    /// The plugin's.
    pub(crate) connection: Box<dyn Connection>,
}

impl Handle {
    /// As the server sees it.
    pub(crate) fn into_raw(self) -> *mut c_void {
        Box::into_raw(Box::new(self)).cast()
    }

    /// The handle behind a pointer.
    ///
    /// # Safety
    /// `handle` is what `open` returned, and `close` has not been called with it: the server
    /// promises that for every callback below. Buffers are as long as their count says, and are
    /// the callback's until it returns.
    unsafe fn of<'a>(handle: *mut c_void) -> &'a dyn Connection {
        // SAFETY: a box of this type, which is still there.
        unsafe { &*(*handle.cast::<Handle>()).connection }
    }
}

pub(crate) unsafe extern "C" fn close(handle: *mut c_void) {
    guard((), || {
        // SAFETY: what into_raw made of a box, which the server gives back once.
        drop(unsafe { Box::from_raw(handle.cast::<Handle>()) });
        Ok(())
    });
}

/// Runs a callback on a connection.
unsafe fn on<T>(
    handle: *mut c_void,
    failure: T,
    body: impl FnOnce(&dyn Connection) -> Result<T>,
) -> T {
    // SAFETY: the server's handle, as it promises for every callback.
    guard(failure, || body(unsafe { Handle::of(handle) }))
}

/// Defines callbacks that ask a question about a handle.
macro_rules! questions {
    ($($name:ident: $connection:ident => $answer:expr;)*) => {$(
        pub(crate) unsafe extern "C" fn $name(handle: *mut c_void) -> c_int {
            // SAFETY: the server's handle, as it promises for every callback.
            unsafe { on(handle, -1, |$connection| $answer) }
        }
    )*};
}

questions! {
    can_write: it => as_int(it.can_write());
    can_flush: it => as_int(it.can_flush());
    is_rotational: it => as_int(it.is_rotational());
    can_trim: it => as_int(it.can_trim());
    can_zero: it => as_int(it.can_zero());
    can_fast_zero: it => as_int(it.can_fast_zero());
    can_multi_conn: it => as_int(it.can_multi_conn());
    can_extents: it => as_int(it.can_extents());
    can_fua: it => it.can_fua().map(|fua| fua as c_int);
    can_cache: it => it.can_cache().map(|cache| cache as c_int);
}

pub(crate) unsafe extern "C" fn get_size(handle: *mut c_void) -> i64 {
    let size = |it: &dyn Connection| {
        let too_large = |_| Error::new(Errno::EFBIG, "the disk is too large");
        i64::try_from(it.size()?).map_err(too_large)
    };
    // SAFETY: the server's handle, as it promises for every callback.
    unsafe { on(handle, -1, size) }
}

pub(crate) unsafe extern "C" fn export_description(handle: *mut c_void) -> *const c_char {
    let null = std::ptr::null();
    let describe = |it: &dyn Connection| {
        Ok(it.export_description().map_or(null, |description| server::intern(&description)))
    };
    // SAFETY: the server's handle, as it promises for every callback.
    unsafe { on(handle, null, describe) }
}

pub(crate) unsafe extern "C" fn block_size(
    handle: *mut c_void,
    minimum: *mut u32,
    preferred: *mut u32,
    maximum: *mut u32,
) -> c_int {
    let answer = |it: &dyn Connection| {
        let size = it.block_size()?;
        // SAFETY: three numbers of the server's, which the callback fills.
        unsafe {
            minimum.write(size.minimum);
            preferred.write(size.preferred);
            maximum.write(size.maximum);
        }
        Ok(0)
    };
    // SAFETY: the server's handle, as it promises for every callback.
    unsafe { on(handle, -1, answer) }
}

pub(crate) unsafe extern "C" fn pread(
    handle: *mut c_void,
    buffer: *mut c_void,
    count: u32,
    offset: u64,
    _flags: u32,
) -> c_int {
    // SAFETY: the buffer is as long as the server says and the callback's alone. What is in it does
    // not matter: a plugin fills it, and any byte is valid.
    let buffer = unsafe { std::slice::from_raw_parts_mut(buffer.cast::<u8>(), count as usize) };
    // SAFETY: the server's handle, as it promises for every callback.
    unsafe { on(handle, -1, |it| it.pread(buffer, offset).map(|()| 0)) }
}

pub(crate) unsafe extern "C" fn pwrite(
    handle: *mut c_void,
    buffer: *const c_void,
    count: u32,
    offset: u64,
    flags: u32,
) -> c_int {
    // SAFETY: the buffer is as long as the server says, and nobody changes it during the callback.
    let buffer = unsafe { std::slice::from_raw_parts(buffer.cast::<u8>(), count as usize) };
    let flags = Flags::from_bits_truncate(flags);
    // SAFETY: the server's handle, as it promises for every callback.
    unsafe { on(handle, -1, |it| it.pwrite(buffer, offset, flags).map(|()| 0)) }
}

pub(crate) unsafe extern "C" fn flush(handle: *mut c_void, _flags: u32) -> c_int {
    // SAFETY: the server's handle, as it promises for every callback.
    unsafe { on(handle, -1, |it| it.flush().map(|()| 0)) }
}

/// Defines callbacks that are about a range and carry no data.
macro_rules! ranges {
    ($($name:ident: $it:ident, $count:ident, $offset:ident, $flags:ident => $call:expr;)*) => {$(
        pub(crate) unsafe extern "C" fn $name(
            handle: *mut c_void,
            count: u32,
            $offset: u64,
            flags: u32,
        ) -> c_int {
            let ($count, $flags) = (u64::from(count), Flags::from_bits_truncate(flags));
            // SAFETY: the server's handle, as it promises for every callback.
            unsafe { on(handle, -1, |$it| $call.map(|()| 0)) }
        }
    )*};
}

ranges! {
    trim: it, count, offset, flags => it.trim(count, offset, flags);
    zero: it, count, offset, flags => it.zero(count, offset, flags);
    cache: it, count, offset, _flags => it.cache(count, offset);
}

pub(crate) unsafe extern "C" fn extents(
    handle: *mut c_void,
    count: u32,
    offset: u64,
    flags: u32,
    list: ExtentsPointer,
) -> c_int {
    let answer = |it: &dyn Connection| {
        let count = u64::from(count);
        let mut extents = Extents::new(offset, offset.saturating_add(count));
        it.extents(count, offset, Flags::from_bits_truncate(flags), &mut extents)?;
        for extent in extents.iter() {
            // SAFETY: the list is the callback's, as the server promises.
            unsafe { server::add_extent(list, extent.offset, extent.length, extent.kind) }?;
        }
        Ok(0)
    };
    // SAFETY: the server's handle, as it promises for every callback.
    unsafe { on(handle, -1, answer) }
}
