//! The functions that plugins and filters in C call, `nbdkit_*`. Those with variable arguments are
//! in `variadic.c`. nbdkit-plugin(3).
//!
//! Every one may be called by any thread of the plugin's at any time, with whatever it passes:
//! pointers must be what the interface says, everything else is checked. They never panic.

#![expect(unsafe_code, reason = "defines C functions, and reads what they are passed")]

mod control;
mod filters;
mod intern;
pub(super) mod lists;
mod messages;
mod parse;
mod paths;
mod peer;

use std::ffi::{CStr, c_char};

use nbdkit_api::{Errno, Error};

use super::context;

pub(super) use intern::{keep, keep_forever};

/// Reports a failure as `nbdkit_error` would, and leaves its errno.
pub(super) fn fail(error: &Error) {
    if !error.message().is_empty() {
        context::error(error.message());
    }
    error.errno().set();
}

/// Reports a failure to the caller of a function that returns -1 for it.
fn minus_one<T: From<i8>>(error: &Error) -> T {
    fail(error);
    T::from(-1)
}

/// A text that C passed; `None` for a null pointer.
///
/// # Safety
/// `text` is null, or ends with a null byte and stays as it is for `'a`.
pub(super) unsafe fn text<'a>(text: *const c_char) -> Option<&'a CStr> {
    // SAFETY: not null here; the rest is the caller's promise.
    (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) })
}

/// A copy of `bytes`, as far as they go before a null byte, for the caller in C to free; null,
/// after a message, without memory.
fn allocated(bytes: &[u8]) -> *mut c_char {
    // SAFETY: reads at most as many bytes as there are.
    let copy = unsafe { libc::strndup(bytes.as_ptr().cast(), bytes.len()) };
    if copy.is_null() {
        fail(&Error::os("strndup", Errno::ENOMEM));
    }
    copy
}
