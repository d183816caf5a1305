//! `struct nbdkit_filter`, the table of callbacks that a filter returns, and `struct
//! nbdkit_next_ops`, the table of functions that it is given in return: `include/nbdkit-filter.h`.
//! Unlike that of plugins the layout is not stable: just the first two members stay where they are,
//! and tell whether the rest may be looked at.

#![expect(missing_docs, reason = "members are called as in the header, which describes them")]

use std::ffi::{c_int, c_void};

use crate::plugin::{ExportsPointer, ExtentsPointer, Text};

/// `_api_version` of the current layout, `NBDKIT_FILTER_API_VERSION`.
pub const CURRENT: c_int = 6;

/// `nbdkit_backend`: the layer below before it is opened. The server knows what it points to.
pub type BackendPointer = *mut c_void;
/// `nbdkit_context`: a connection's place for the layer below.
pub type ContextPointer = *const c_void;
/// `nbdkit_next`: the layer below as it was opened, which begins with its [`NextOps`].
pub type NextPointer = *const c_void;
/// What the filter's `open` returned.
pub type Handle = *mut c_void;

pub type NextConfigOf = unsafe extern "C" fn(BackendPointer, Text, Text) -> c_int;
pub type NextComplete = unsafe extern "C" fn(BackendPointer) -> c_int;
pub type NextPreconnect = unsafe extern "C" fn(BackendPointer, c_int) -> c_int;
pub type NextList = unsafe extern "C" fn(BackendPointer, c_int, ExportsPointer) -> c_int;
pub type NextDefault = unsafe extern "C" fn(BackendPointer, c_int) -> Text;
pub type NextOpen = unsafe extern "C" fn(ContextPointer, c_int, Text) -> c_int;

/// The callbacks of a connection, which begin with `$first`: what stands for the layer below, and
/// the handle. `struct nbdkit_next_ops` has the same ones without a handle.
#[macro_export]
macro_rules! per_connection {
    ($name:ident, $doc:literal, [$($before:tt)*], ($($first:ty),*), [$($beyond:tt)*]) => {
        $crate::per_connection! { @expand $name, $doc, [$($before)*], ($($first),*), [$($beyond)*],
            Option<unsafe extern "C" fn($($first),*) -> c_int> }
    };
    (@expand $name:ident, $doc:literal, [$($before:tt)*], ($($first:ty),*), [$($beyond:tt)*], $ask:ty) => {
        #[doc = $doc]
        #[repr(C)]
        #[derive(Clone, Copy)]
        pub struct $name {
            $($before)*
            pub get_size: Option<unsafe extern "C" fn($($first),*) -> i64>,
            $($beyond)*
            pub can_write: $ask,
            pub can_flush: $ask,
            pub is_rotational: $ask,
            pub can_trim: $ask,
            pub can_zero: $ask,
            pub can_fast_zero: $ask,
            pub can_extents: $ask,
            pub can_fua: $ask,
            pub can_multi_conn: $ask,
            pub can_cache: $ask,
            pub pread: Option<
                unsafe extern "C" fn($($first,)* *mut c_void, u32, u64, u32, *mut c_int) -> c_int>,
            pub pwrite: Option<
                unsafe extern "C" fn($($first,)* *const c_void, u32, u64, u32, *mut c_int) -> c_int>,
            pub flush: Option<unsafe extern "C" fn($($first,)* u32, *mut c_int) -> c_int>,
            pub trim:
                Option<unsafe extern "C" fn($($first,)* u32, u64, u32, *mut c_int) -> c_int>,
            pub zero:
                Option<unsafe extern "C" fn($($first,)* u32, u64, u32, *mut c_int) -> c_int>,
            pub extents: Option<
                unsafe extern "C" fn($($first,)* u32, u64, u32, ExtentsPointer, *mut c_int) -> c_int>,
            pub cache:
                Option<unsafe extern "C" fn($($first,)* u32, u64, u32, *mut c_int) -> c_int>,
        }
    };
}

per_connection! { NextOps, "`struct nbdkit_next_ops`.",
    [
        pub prepare: Option<unsafe extern "C" fn(NextPointer) -> c_int>,
        pub finalize: Option<unsafe extern "C" fn(NextPointer) -> c_int>,
    ],
    (NextPointer),
    [
        pub export_description: Option<unsafe extern "C" fn(NextPointer) -> Text>,
        pub block_size: Option<
            unsafe extern "C" fn(NextPointer, *mut u32, *mut u32, *mut u32) -> c_int>,
    ]
}

per_connection! { OfConnection, "The callbacks of a connection, the last members of the table.",
    [
        pub prepare: Option<unsafe extern "C" fn(NextPointer, Handle, c_int) -> c_int>,
        pub finalize: Option<unsafe extern "C" fn(NextPointer, Handle) -> c_int>,
    ],
    (NextPointer, Handle),
    [
        pub export_description: Option<unsafe extern "C" fn(NextPointer, Handle) -> Text>,
        pub block_size: Option<
            unsafe extern "C" fn(NextPointer, Handle, *mut u32, *mut u32, *mut u32) -> c_int>,
    ]
}

/// What both layouts have in front.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Head {
    pub api_version: c_int,
    pub version: Text,
    pub name: Text,
    pub longname: Text,
    pub description: Text,
    pub load: Option<unsafe extern "C" fn()>,
    pub unload: Option<unsafe extern "C" fn()>,
    pub config: Option<unsafe extern "C" fn(NextConfigOf, BackendPointer, Text, Text) -> c_int>,
    pub config_complete: Option<unsafe extern "C" fn(NextComplete, BackendPointer) -> c_int>,
    pub config_help: Text,
    /// Filters of 1.16 take no argument.
    pub thread_model: Option<unsafe extern "C" fn(c_int) -> c_int>,
}

/// What follows it, up to `close`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Middle {
    pub dump_plugin: Option<unsafe extern "C" fn()>,
    pub get_ready: Option<unsafe extern "C" fn(c_int) -> c_int>,
    pub after_fork: Option<unsafe extern "C" fn(BackendPointer) -> c_int>,
    pub cleanup: Option<unsafe extern "C" fn(BackendPointer)>,
    pub preconnect: Option<unsafe extern "C" fn(NextPreconnect, BackendPointer, c_int) -> c_int>,
    pub list_exports: Option<
        unsafe extern "C" fn(NextList, BackendPointer, c_int, c_int, ExportsPointer) -> c_int,
    >,
    pub default_export:
        Option<unsafe extern "C" fn(NextDefault, BackendPointer, c_int, c_int) -> Text>,
    pub open: Option<unsafe extern "C" fn(NextOpen, ContextPointer, c_int, Text, c_int) -> Handle>,
    pub close: Option<unsafe extern "C" fn(Handle)>,
}

#[repr(C)]
pub struct Current {
    pub head: Head,
    pub middle: Middle,
    pub connection: OfConnection,
}

#[cfg(target_pointer_width = "64")]
const _: () = {
    use std::mem::offset_of;
    assert!(size_of::<NextOps>() == 176);
    assert!(offset_of!(NextOps, get_size) == 16);
    assert!(size_of::<Current>() == 336);
    assert!(offset_of!(Current, head.thread_model) == 80);
    assert!(offset_of!(Current, middle.close) == 152);
    assert!(offset_of!(Current, connection.prepare) == 160);
    assert!(offset_of!(Current, connection.get_size) == 176);
    assert!(offset_of!(Current, connection.block_size) == 192);
    assert!(offset_of!(Current, connection.can_cache) == 272);
    assert!(offset_of!(Current, connection.cache) == 328);
};
