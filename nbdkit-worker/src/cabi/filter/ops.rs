//! `struct nbdkit_next_ops`: the functions by which a filter reaches the layer below, in both
//! layouts. They may be called by any thread of the filter's.

use std::ffi::{c_char, c_int, c_void};

use nbdkit_api::{Errno, Error, Flags, Result};

use super::super::context;
use super::super::functions::lists;
use super::super::table::ExtentsPointer;
use super::layout::{NextOps, NextPointer};
use super::next::{CNext, with};

/// The answer as C has it: -1 for a failure, which leaves its errno.
pub(super) fn answer<T: From<i8>>(result: Result<T>) -> T {
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
        // SAFETY: `err` is null or may be written; the caller upholds that.
        unsafe { err.write(errno as c_int) };
    }
    -1
}

/// `nbdkit_next` of every context.
pub(super) const CURRENT: NextOps = NextOps {
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

// A filter passes to these functions what it was given: nbdkit-filter(3), "Using nbdkit_next".

/// Those that are asked once and answered with a number.
macro_rules! questions {
    ($($name:ident: $question:expr;)*) => {
        $(unsafe extern "C" fn $name(next: NextPointer) -> c_int {
            // SAFETY: the filter passes the `next` that it was given, which is null or open.
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
    // SAFETY: the filter passes the `next` that it was given, which is null or open.
    answer(unsafe { with(next, |below| below.prepare().map(|()| 0)) })
}

unsafe extern "C" fn finalize(next: NextPointer) -> c_int {
    // SAFETY: the filter passes the `next` that it was given, which is null or open.
    answer(unsafe { with(next, |below| below.finalize().map(|()| 0)) })
}

unsafe extern "C" fn get_size(next: NextPointer) -> i64 {
    // SAFETY: the filter passes the `next` that it was given, which is null or open.
    answer(unsafe { with(next, |below| below.size().map(u64::cast_signed)) })
}

unsafe extern "C" fn export_description(next: NextPointer) -> *const c_char {
    // SAFETY: the filter passes the `next` that it was given, which is null or open.
    let Some(next) = (unsafe { CNext::of(next) }) else { return std::ptr::null() };
    let text = next.next.export_description();
    text.and_then(|text| next.keep(text)).unwrap_or_else(std::ptr::null)
}

unsafe extern "C" fn block_size(
    next: NextPointer,
    minimum: *mut u32,
    preferred: *mut u32,
    maximum: *mut u32,
) -> c_int {
    // SAFETY: the filter passes the `next` that it was given, which is null or open.
    let result = unsafe { with(next, |below| below.block_size()) };
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
    // SAFETY: the filter passes the `next` that it was given, which is null or open, and an
    // `err` that is null or its own variable.
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
    // SAFETY: the filter passes the `next` that it was given, which is null or open, and an
    // `err` that is null or its own variable.
    unsafe { outcome(with(next, |below| below.pwrite(buf, offset, flags)), err) }
}

unsafe extern "C" fn flush(next: NextPointer, _flags: u32, err: *mut c_int) -> c_int {
    // SAFETY: the filter passes the `next` that it was given, which is null or open, and an
    // `err` that is null or its own variable.
    unsafe { outcome(with(next, |below| below.flush()), err) }
}

unsafe extern "C" fn trim(
    next: NextPointer,
    count: u32,
    offset: u64,
    flags: u32,
    err: *mut c_int,
) -> c_int {
    let flags = Flags::from_bits_truncate(flags);
    // SAFETY: the filter passes the `next` that it was given, which is null or open, and an
    // `err` that is null or its own variable.
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
    // SAFETY: the filter passes the `next` that it was given, which is null or open, and an
    // `err` that is null or its own variable.
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
        // SAFETY: the filter passes the `next` that it was given, which is null or open.
        unsafe { with(next, |below| below.extents(count.into(), offset, flags, list)) }
    });
    // SAFETY: the filter passes the `next` that it was given, which is null or open, and an
    // `err` that is null or its own variable.
    unsafe { outcome(result, err) }
}

unsafe extern "C" fn cache(
    next: NextPointer,
    count: u32,
    offset: u64,
    _flags: u32,
    err: *mut c_int,
) -> c_int {
    // SAFETY: the filter passes the `next` that it was given, which is null or open, and an
    // `err` that is null or its own variable.
    unsafe { outcome(with(next, |below| below.cache(count.into(), offset)), err) }
}
