//! Copies of strings that live as long as the server, or, made while a client is served, as the
//! connection. nbdkit-plugin(3), "String lifetime".

use std::ffi::{CStr, CString, c_char};
use std::sync::{Mutex, PoisonError};

use nbdkit_api::{Errno, Error};

use super::{context, fail, text};

/// Those that live as long as the server.
static STRINGS: Mutex<Vec<CString>> = Mutex::new(Vec::new());

/// Keeps a string for as long as the process runs. The result never changes.
pub(in super::super) fn keep_forever(string: CString) -> *const c_char {
    // What is on the heap stays there when its owner moves.
    let pointer = string.as_ptr();
    STRINGS.lock().unwrap_or_else(PoisonError::into_inner).push(string);
    pointer
}

/// Keeps a string for as long as the connection that this thread serves, or the server.
pub(in super::super) fn keep(string: CString) -> *const c_char {
    let Some(client) = context::served().and_then(|served| served.client.clone()) else {
        return keep_forever(string);
    };
    let pointer = string.as_ptr();
    client.keep(string);
    pointer
}

fn null(function: &str) -> *const c_char {
    fail(&Error::new(Errno::EINVAL, format!("{function}: no string was given")));
    std::ptr::null()
}

/// The end of `nbdkit_printf_intern`.
///
/// # Safety
/// `string` is null or ends with a null byte.
#[unsafe(no_mangle)]
unsafe extern "C" fn worker_intern(string: *const c_char) -> *const c_char {
    // SAFETY: `string` is null or ends with a null byte; the module upholds that.
    unsafe { text(string) }.map_or_else(|| null("nbdkit_printf_intern"), |s| keep(s.to_owned()))
}

/// A copy of a string.
///
/// # Safety
/// `string` is null or ends with a null byte.
#[unsafe(no_mangle)]
unsafe extern "C" fn nbdkit_strdup_intern(string: *const c_char) -> *const c_char {
    // SAFETY: `string` is null or ends with a null byte; the module upholds that.
    unsafe { text(string) }.map_or_else(|| null("nbdkit_strdup_intern"), |s| keep(s.to_owned()))
}

/// A copy of at most `length` bytes of a string.
///
/// # Safety
/// `string` is null, or has a null byte or `length` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn nbdkit_strndup_intern(string: *const c_char, length: usize) -> *const c_char {
    if string.is_null() {
        return null("nbdkit_strndup_intern");
    }
    // SAFETY: does not read beyond a null byte or `length` bytes, which are there.
    let copy = unsafe { libc::strndup(string, length) };
    if copy.is_null() {
        fail(&Error::os("nbdkit_strndup_intern", Errno::ENOMEM));
        return std::ptr::null();
    }
    // SAFETY: strndup puts a null byte at the end.
    let kept = keep(unsafe { CStr::from_ptr(copy) }.to_owned());
    // SAFETY: it was allocated for us, and copied.
    unsafe { libc::free(copy.cast()) };
    kept
}
