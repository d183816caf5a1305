//! Filters with the signatures of nbdkit 1.16 (`NBDKIT_FILTER_API` 116): their table, the functions
//! that they are given, and `next` in their `open`. All that they have of their own is here.

use std::ffi::{c_int, c_void};

use nbdkit_abi::per_connection;
use nbdkit_api::{Errno, Error, Layer};

use super::super::table::ExtentsPointer;
use super::context::{CContext, opened};
use super::layout::{ContextPointer, Handle, Head, NextPointer};
use super::next::with;
use super::ops::{CURRENT, answer};

/// `_api_version` with the signatures of nbdkit 1.16, `NBDKIT_FILTER_API`.
pub(super) const API: c_int = 116;

/// `next` in `open`.
type NextOpen116 = unsafe extern "C" fn(ContextPointer, c_int) -> c_int;

per_connection! { NextOps116, "`struct nbdkit_next_ops` with `NBDKIT_FILTER_API` 116.",
    [
        pub(super) reopen: Option<unsafe extern "C" fn(NextPointer, c_int) -> c_int>,
    ],
    (NextPointer),
    []
}

per_connection! { OfConnection116, "The same with `NBDKIT_FILTER_API` 116.",
    [
        pub(super) prepare: Option<
            unsafe extern "C" fn(*const NextOps116, NextPointer, Handle, c_int) -> c_int>,
        pub(super) finalize: Option<
            unsafe extern "C" fn(*const NextOps116, NextPointer, Handle) -> c_int>,
    ],
    (*const NextOps116, NextPointer, Handle),
    []
}

/// What follows the head with `NBDKIT_FILTER_API` 116.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Middle116 {
    pub(super) open: Option<unsafe extern "C" fn(NextOpen116, ContextPointer, c_int) -> Handle>,
    pub(super) close: Option<unsafe extern "C" fn(Handle)>,
}

#[repr(C)]
pub(super) struct Of116 {
    pub(super) head: Head,
    pub(super) middle: Middle116,
    pub(super) connection: OfConnection116,
}

/// `next_ops` of every filter with `NBDKIT_FILTER_API` 116, whose `nxdata` is an `nbdkit_next`.
pub(super) static OPS: NextOps116 = NextOps116 {
    reopen: Some(reopen),
    get_size: CURRENT.get_size,
    can_write: CURRENT.can_write,
    can_flush: CURRENT.can_flush,
    is_rotational: CURRENT.is_rotational,
    can_trim: CURRENT.can_trim,
    can_zero: CURRENT.can_zero,
    can_fast_zero: CURRENT.can_fast_zero,
    can_extents: CURRENT.can_extents,
    can_fua: CURRENT.can_fua,
    can_multi_conn: CURRENT.can_multi_conn,
    can_cache: CURRENT.can_cache,
    pread: CURRENT.pread,
    pwrite: CURRENT.pwrite,
    flush: CURRENT.flush,
    trim: CURRENT.trim,
    zero: CURRENT.zero,
    extents: CURRENT.extents,
    cache: CURRENT.cache,
};

unsafe extern "C" fn reopen(next: NextPointer, readonly: c_int) -> c_int {
    // SAFETY: the filter passes the `next` that it was given, which is null or open.
    answer(unsafe { with(next, |below| below.reopen(readonly != 0).map(|()| 0)) })
}

/// `next` in `open`.
///
/// # Safety
/// `context` is the one that `open` was called with.
pub(super) unsafe extern "C" fn next_open(context: ContextPointer, readonly: c_int) -> c_int {
    // SAFETY: `context` is the one that `open` was called with; the module upholds that.
    let context = unsafe { CContext::of(context) };
    let context = context.ok_or_else(|| Error::new(Errno::EINVAL, "open: no nxdata"));
    // Among the functions of this version is one to reopen.
    opened(
        context.and_then(|context| {
            context.open(Layer::open_to_reopen, readonly != 0, &context.export)
        }),
    )
}
