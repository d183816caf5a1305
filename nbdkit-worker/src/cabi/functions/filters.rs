//! Extents of the layer below a filter, more conveniently. nbdkit-filter(3), "Reading the full
//! extents from the plugin", "Enforcing alignment of an nbdkit_extents list".

use std::ffi::c_int;

use nbdkit_api::{Errno, Error, Extents, Flags, Next, Result};

use super::super::filter::{NextPointer, with};
use super::super::table::ExtentsPointer;
use super::{context, lists};

/// Stores the errno of a failure of the layer below.
///
/// # Safety
/// `err` is null or may be written.
unsafe fn store(error: Error, err: *mut c_int) {
    let errno = context::failed_below(error);
    if !err.is_null() {
        // SAFETY: `err` is null or may be written; the caller upholds that.
        unsafe { err.write(errno as c_int) };
    }
}

/// Checks that a range lies within the disk.
fn within(below: &Next, function: &str, count: u32, offset: u64) -> Result<()> {
    let size = below.size()?;
    match offset.checked_add(count.into()) {
        Some(end) if end <= size => Ok(()),
        _ => Err(Error::new(
            Errno::EINVAL,
            format!("{function}: out of bounds: offset={offset} count={count} size={size}"),
        )),
    }
}

/// The extents of all of a range, for `nbdkit_extents_free`. Null for failure.
///
/// # Safety
/// `next` is null or open; `err` is null or may be written.
#[unsafe(no_mangle)]
unsafe extern "C" fn nbdkit_extents_full(
    next: NextPointer,
    count: u32,
    offset: u64,
    _flags: u32,
    err: *mut c_int,
) -> ExtentsPointer {
    // SAFETY: `next` is null or open; `err` is null or may be written; the module upholds that.
    let full = unsafe {
        with(next, |below| {
            within(below, "nbdkit_extents_full", count, offset)?;
            below.extents_full(count.into(), offset)
        })
    };
    match full {
        Ok(list) => Box::into_raw(Box::new(list)).cast(),
        Err(error) => {
            // SAFETY: `next` is null or open; `err` is null or may be written; the module upholds
            // that.
            unsafe { store(error, err) };
            std::ptr::null_mut()
        }
    }
}

/// Adds extents whose bounds are multiples of `align`.
///
/// # Safety
/// `next` is null or open; `list` is a list of extents that nothing else uses now; `err` is null or
/// may be written.
#[unsafe(no_mangle)]
unsafe extern "C" fn nbdkit_extents_aligned(
    next: NextPointer,
    count: u32,
    offset: u64,
    flags: u32,
    align: u32,
    list: ExtentsPointer,
    err: *mut c_int,
) -> c_int {
    let aligned = |list: &mut Extents| {
        let call = |below: &Next| {
            within(below, "nbdkit_extents_aligned", count, offset)?;
            if !align.is_power_of_two() {
                let why = format!("nbdkit_extents_aligned: {align} is not a power of 2");
                return Err(Error::new(Errno::EINVAL, why));
            }
            let flags = Flags::from_bits_truncate(flags);
            below.extents_aligned(count.into(), offset, flags, align, list)
        };
        // SAFETY: `next` is null or open; `list` is a list of extents that nothing else uses now;
        // `err` is null or may be written; the module upholds that.
        unsafe { with(next, call) }
    };
    // SAFETY: `next` is null or open; `list` is a list of extents that nothing else uses now; `err`
    // is null or may be written; the module upholds that.
    let list = unsafe { lists::extents(list) };
    let list = list.ok_or_else(|| Error::new(Errno::EINVAL, "nbdkit_extents_aligned: no list"));
    match list.and_then(aligned) {
        Ok(()) => 0,
        Err(error) => {
            // SAFETY: `next` is null or open; `list` is a list of extents that nothing else uses
            // now; `err` is null or may be written; the module upholds that.
            unsafe { store(error, err) };
            -1
        }
    }
}
