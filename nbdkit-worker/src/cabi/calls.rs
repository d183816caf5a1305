//! What plugins and filters in C have in common: names, `dump_plugin`, errors without a text, and
//! the C library's streams.

#![expect(unsafe_code, reason = "calls code in another language")]

use std::ffi::CString;
use std::io::{self, Write};

use nbdkit_api::{Errno, Error, Result, ResultExt};

use super::context;

/// nbdkit-plugin(3), `.name`.
pub(super) fn is_name(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
}

/// Runs a `dump_plugin`, which may be absent.
///
/// # Errors
/// Standard output cannot be written.
pub(super) fn dump(
    dump_plugin: Option<unsafe extern "C" fn()>,
    out: &mut dyn Write,
) -> io::Result<()> {
    // It writes to the C library's standard output, which has a buffer of its own.
    out.flush()?;
    if let Some(dump_plugin) = dump_plugin {
        let _entered = context::enter(None);
        // SAFETY: takes nothing; called after the configuration, by the only thread.
        unsafe { dump_plugin() };
    }
    flush_streams().map_err(|error| io::Error::from(error.errno()))
}

/// The error, or if it has no text one that says which callback it was: silence does not help who
/// starts the server.
pub(super) fn named(callback: &str, error: Error) -> Error {
    if error.message().is_empty() { error.context(format!("{callback} failed")) } else { error }
}

/// Writes out what the plugin has printed. The C library's streams have buffers of their own, whose
/// content would come after what we print, and be lost when the standard streams are given up.
pub(super) fn flush_streams() -> Result<()> {
    // SAFETY: null stands for all streams.
    Errno::result(unsafe { libc::fflush(std::ptr::null_mut()) })
        .map(drop)
        .or_error(|| "standard output")
}

/// A C string; a null byte, which nothing from a command line has, ends it.
pub(super) fn c_string(bytes: &[u8]) -> CString {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    CString::new(&bytes[..end]).unwrap_or_default()
}
