//! The file that stands for a built-in plugin or filter. `make install` puts a copy of it where
//! people look for `nbdkit-file-plugin.so` and its like. This server recognises the marker and
//! takes the module of the file's name from its registry; other servers call the entry point, which
//! says why there is nothing to load.
//!
//! Runs in whatever process opens the file. Needs nothing but the server's `nbdkit_error`.

#![no_std]
#![expect(unsafe_code, reason = "defines symbols for another language, and calls its function")]

use core::ffi::{c_char, c_void};
use core::ptr;

unsafe extern "C" {
    /// nbdkit-plugin(3), "ERROR HANDLING".
    fn nbdkit_error(message: *const c_char, ...);
}

/// By this symbol the server recognises the file. `nbdkit-worker/src/cabi/library.rs`.
#[unsafe(no_mangle)]
pub static nbdkitd_built_in: u32 = 1;

/// The entry point of a plugin: there is none.
#[unsafe(no_mangle)]
pub extern "C" fn plugin_init() -> *const c_void {
    nothing()
}

/// The entry point of a filter: there is none.
#[unsafe(no_mangle)]
pub extern "C" fn filter_init() -> *const c_void {
    nothing()
}

fn nothing() -> *const c_void {
    let why =
        c"this file only stands for a plugin or filter that is built into nbdkitd, and has no code";
    // SAFETY: a format without conversions, that lives as long as the library. Whoever calls an
    // entry point of the interface has this function.
    unsafe { nbdkit_error(why.as_ptr()) };
    ptr::null()
}

/// Nothing here panics; a shared library without the standard library has to have this all the
/// same.
#[cfg(panic = "abort")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
