//! Paths that mean the same wherever the server is. nbdkit-plugin(3), "Filenames and paths".

use std::ffi::{CStr, OsStr, c_char};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use nbdkit_api::{Error, Result, ResultExt};

use super::{allocated, fail, text};

fn absolute(path: &CStr) -> Result<Vec<u8>> {
    let path = path.to_bytes();
    if path.starts_with(b"/") {
        return Ok(path.to_vec());
    }
    let mut absolute = std::env::current_dir().or_error(|| "getcwd")?.into_os_string().into_vec();
    if absolute != b"/" {
        absolute.push(b'/');
    }
    absolute.extend_from_slice(path);
    Ok(absolute)
}

fn real(path: &CStr) -> Result<Vec<u8>> {
    let path = Path::new(OsStr::from_bytes(path.to_bytes()));
    let real = path.canonicalize().or_error(|| format!("realpath: {}", path.display()))?;
    Ok(real.into_os_string().into_vec())
}

fn convert(path: Option<&CStr>, to: fn(&CStr) -> Result<Vec<u8>>) -> *mut c_char {
    let converted = path
        .filter(|path| !path.is_empty())
        .ok_or_else(|| Error::msg("cannot convert null or empty path to an absolute path"))
        .and_then(to);
    match converted {
        Ok(path) => allocated(&path),
        Err(error) => {
            fail(&error);
            std::ptr::null_mut()
        }
    }
}

/// The path with the working directory in front, for the caller to free.
///
/// # Safety
/// `path` is null or ends with a null byte.
#[unsafe(no_mangle)]
unsafe extern "C" fn nbdkit_absolute_path(path: *const c_char) -> *mut c_char {
    // SAFETY: `path` is null or ends with a null byte; the module upholds that.
    convert(unsafe { text(path) }, absolute)
}

/// The path without links, for the caller to free.
///
/// # Safety
/// `path` is null or ends with a null byte.
#[unsafe(no_mangle)]
unsafe extern "C" fn nbdkit_realpath(path: *const c_char) -> *mut c_char {
    // SAFETY: `path` is null or ends with a null byte; the module upholds that.
    convert(unsafe { text(path) }, real)
}
