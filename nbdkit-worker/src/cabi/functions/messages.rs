//! What the formatting functions in `variadic.c` do with their texts, and `nbdkit_set_error`.

use std::ffi::{c_char, c_int};

use nbdkit_api::log;

use super::{context, text};

/// Whether `nbdkit_debug` need format anything.
#[unsafe(no_mangle)]
extern "C" fn worker_wants_debug() -> c_int {
    log::verbose().into()
}

/// Logs a formatted message.
///
/// # Safety
/// `message` is null or ends with a null byte.
#[unsafe(no_mangle)]
unsafe extern "C" fn worker_message(is_error: c_int, message: *const c_char) {
    // SAFETY: `message` is null or ends with a null byte; the module upholds that.
    let Some(message) = (unsafe { text(message) }) else { return };
    let message = message.to_string_lossy();
    if is_error != 0 {
        context::error(&message);
    } else {
        log::debug(&message);
    }
}

/// The errno for the client if the callback fails.
#[unsafe(no_mangle)]
extern "C" fn nbdkit_set_error(errno: c_int) {
    context::set_errno(errno);
}
