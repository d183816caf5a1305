//! `struct nbdkit_filter`, the table of callbacks that a filter returns, and `struct
//! nbdkit_next_ops`, the table of functions that it is given in return. Unlike that of plugins the
//! layout is not stable: just the first two members stay where they are, and tell whether the rest
//! may be looked at.

use std::ffi::{c_int, c_void};

use super::super::table::{ExportsPointer, ExtentsPointer, Text};

/// `_api_version` of the current layout, `NBDKIT_FILTER_API_VERSION`.
pub(super) const CURRENT: c_int = 6;

/// `nbdkit_backend` as C has it: in the configuration a
/// [`Configuring`](super::configure::Configuring), later a [`CBackend`](super::context::CBackend).
pub(super) type BackendPointer = *mut c_void;
/// `nbdkit_context`: a [`CContext`](super::context::CContext).
pub(super) type ContextPointer = *const c_void;
/// `nbdkit_next`: a [`CNext`](super::next::CNext).
pub(in super::super) type NextPointer = *const c_void;
pub(super) type Handle = *mut c_void;

pub(super) type NextConfigOf = unsafe extern "C" fn(BackendPointer, Text, Text) -> c_int;
pub(super) type NextComplete = unsafe extern "C" fn(BackendPointer) -> c_int;
pub(super) type NextPreconnect = unsafe extern "C" fn(BackendPointer, c_int) -> c_int;
pub(super) type NextList = unsafe extern "C" fn(BackendPointer, c_int, ExportsPointer) -> c_int;
pub(super) type NextDefault = unsafe extern "C" fn(BackendPointer, c_int) -> Text;
pub(super) type NextOpen = unsafe extern "C" fn(ContextPointer, c_int, Text) -> c_int;

/// The callbacks of a connection, which begin with `$first`: what stands for the layer below, and
/// the handle. `struct nbdkit_next_ops` has the same ones without a handle.
macro_rules! per_connection {
    ($name:ident, $doc:literal, [$($before:tt)*], ($($first:ty),*), [$($beyond:tt)*]) => {
        per_connection! { @expand $name, $doc, [$($before)*], ($($first),*), [$($beyond)*],
            Option<unsafe extern "C" fn($($first),*) -> c_int> }
    };
    (@expand $name:ident, $doc:literal, [$($before:tt)*], ($($first:ty),*), [$($beyond:tt)*], $ask:ty) => {
        #[doc = $doc]
        #[repr(C)]
        #[derive(Clone, Copy)]
        pub(super) struct $name {
            $($before)*
            pub(super) get_size: Option<unsafe extern "C" fn($($first),*) -> i64>,
            $($beyond)*
            pub(super) can_write: $ask,
            pub(super) can_flush: $ask,
            pub(super) is_rotational: $ask,
            pub(super) can_trim: $ask,
            pub(super) can_zero: $ask,
            pub(super) can_fast_zero: $ask,
            pub(super) can_extents: $ask,
            pub(super) can_fua: $ask,
            pub(super) can_multi_conn: $ask,
            pub(super) can_cache: $ask,
            pub(super) pread: Option<
                unsafe extern "C" fn($($first,)* *mut c_void, u32, u64, u32, *mut c_int) -> c_int>,
            pub(super) pwrite: Option<
                unsafe extern "C" fn($($first,)* *const c_void, u32, u64, u32, *mut c_int) -> c_int>,
            pub(super) flush: Option<unsafe extern "C" fn($($first,)* u32, *mut c_int) -> c_int>,
            pub(super) trim:
                Option<unsafe extern "C" fn($($first,)* u32, u64, u32, *mut c_int) -> c_int>,
            pub(super) zero:
                Option<unsafe extern "C" fn($($first,)* u32, u64, u32, *mut c_int) -> c_int>,
            pub(super) extents: Option<
                unsafe extern "C" fn($($first,)* u32, u64, u32, ExtentsPointer, *mut c_int) -> c_int>,
            pub(super) cache:
                Option<unsafe extern "C" fn($($first,)* u32, u64, u32, *mut c_int) -> c_int>,
        }
    };
}

pub(super) use per_connection;

per_connection! { NextOps, "`struct nbdkit_next_ops`.",
    [
        pub(super) prepare: Option<unsafe extern "C" fn(NextPointer) -> c_int>,
        pub(super) finalize: Option<unsafe extern "C" fn(NextPointer) -> c_int>,
    ],
    (NextPointer),
    [
        pub(super) export_description: Option<unsafe extern "C" fn(NextPointer) -> Text>,
        pub(super) block_size: Option<
            unsafe extern "C" fn(NextPointer, *mut u32, *mut u32, *mut u32) -> c_int>,
    ]
}

per_connection! { OfConnection, "The callbacks of a connection, the last members of the table.",
    [
        pub(super) prepare: Option<unsafe extern "C" fn(NextPointer, Handle, c_int) -> c_int>,
        pub(super) finalize: Option<unsafe extern "C" fn(NextPointer, Handle) -> c_int>,
    ],
    (NextPointer, Handle),
    [
        pub(super) export_description: Option<unsafe extern "C" fn(NextPointer, Handle) -> Text>,
        pub(super) block_size: Option<
            unsafe extern "C" fn(NextPointer, Handle, *mut u32, *mut u32, *mut u32) -> c_int>,
    ]
}

/// What both layouts have in front.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Head {
    pub(super) api_version: c_int,
    pub(super) version: Text,
    pub(super) name: Text,
    pub(super) longname: Text,
    pub(super) description: Text,
    pub(super) load: Option<unsafe extern "C" fn()>,
    pub(super) unload: Option<unsafe extern "C" fn()>,
    pub(super) config:
        Option<unsafe extern "C" fn(NextConfigOf, BackendPointer, Text, Text) -> c_int>,
    pub(super) config_complete: Option<unsafe extern "C" fn(NextComplete, BackendPointer) -> c_int>,
    pub(super) config_help: Text,
    pub(super) thread_model: Option<unsafe extern "C" fn() -> c_int>,
}

/// What follows it, up to `close`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Middle {
    pub(super) dump_plugin: Option<unsafe extern "C" fn()>,
    pub(super) get_ready: Option<unsafe extern "C" fn(c_int) -> c_int>,
    pub(super) after_fork: Option<unsafe extern "C" fn(BackendPointer) -> c_int>,
    pub(super) cleanup: Option<unsafe extern "C" fn(BackendPointer)>,
    pub(super) preconnect:
        Option<unsafe extern "C" fn(NextPreconnect, BackendPointer, c_int) -> c_int>,
    pub(super) list_exports: Option<
        unsafe extern "C" fn(NextList, BackendPointer, c_int, c_int, ExportsPointer) -> c_int,
    >,
    pub(super) default_export:
        Option<unsafe extern "C" fn(NextDefault, BackendPointer, c_int, c_int) -> Text>,
    pub(super) open:
        Option<unsafe extern "C" fn(NextOpen, ContextPointer, c_int, Text, c_int) -> Handle>,
    pub(super) close: Option<unsafe extern "C" fn(Handle)>,
}

#[repr(C)]
pub(super) struct Current {
    pub(super) head: Head,
    pub(super) middle: Middle,
    pub(super) connection: OfConnection,
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
