//! The functions that a filter's callbacks get as `next` before anything is open: the same
//! callbacks of the layer below.

use std::ffi::{CString, OsStr, c_char, c_int};
use std::os::unix::ffi::OsStrExt;
use std::ptr::null;

use nbdkit_api::{Errno, Error, Exports, NextConfig, Result, Value};

use super::super::context;
use super::super::functions::lists::CExports;
use super::super::functions::{keep, text};
use super::super::table::{ExportsPointer, Text};
use super::context::CBackend;
use super::layout::BackendPointer;

/// `nxdata` of `config` and `config_complete`, while they run.
pub(super) struct Configuring<'a> {
    pub(super) next: NextConfig<'a>,
}

/// -1 for a failure of the layer below, which is logged and remembered.
fn outcome(result: Result<()>) -> c_int {
    match result {
        Ok(()) => 0,
        Err(error) => {
            context::failed_below(error);
            -1
        }
    }
}

fn misused(callback: &str) -> Error {
    Error::new(Errno::EINVAL, format!("{callback}: the filter passed null pointers to next"))
}

/// `next` in `config`.
///
/// # Safety
/// `nxdata` is a [`Configuring`] that nothing else uses now; the strings are null or end with a
/// null byte.
pub(super) unsafe extern "C" fn next_config(
    nxdata: BackendPointer,
    key: *const c_char,
    value: *const c_char,
) -> c_int {
    // SAFETY: `nxdata` is a `Configuring` that nothing else uses now; the strings are null or end
    // with a null byte; the module upholds that.
    let (nxdata, key, value) =
        unsafe { (nxdata.cast::<Configuring<'_>>().as_mut(), text(key), text(value)) };
    let (Some(configuring), Some(key), Some(value)) = (nxdata, key, value) else {
        return outcome(Err(misused("config")));
    };
    let value = Value::new(OsStr::from_bytes(value.to_bytes()));
    outcome(configuring.next.reborrow().config(&key.to_string_lossy(), value))
}

/// `next` in `config_complete`.
///
/// # Safety
/// `nxdata` is a [`Configuring`] that nothing else uses now.
pub(super) unsafe extern "C" fn next_config_complete(nxdata: BackendPointer) -> c_int {
    // SAFETY: `nxdata` is a `Configuring` that nothing else uses now; the module upholds that.
    let configuring = unsafe { nxdata.cast::<Configuring<'_>>().as_mut() };
    let configuring = configuring.ok_or_else(|| misused("config_complete"));
    outcome(configuring.and_then(|configuring| configuring.next.reborrow().config_complete()))
}

/// The backend behind a pointer.
///
/// # Safety
/// `nxdata` is null or a [`CBackend`].
unsafe fn backend<'a>(nxdata: BackendPointer, callback: &str) -> Result<&'a CBackend> {
    // SAFETY: `nxdata` is null or a `CBackend`; the caller upholds that.
    unsafe { nxdata.cast::<CBackend>().as_ref() }.ok_or_else(|| misused(callback))
}

/// `next` in `preconnect`.
///
/// # Safety
/// `nxdata` is null or a [`CBackend`].
pub(super) unsafe extern "C" fn next_preconnect(nxdata: BackendPointer, readonly: c_int) -> c_int {
    // SAFETY: `nxdata` is null or a `CBackend`; the module upholds that.
    let backend = unsafe { backend(nxdata, "preconnect") };
    outcome(backend.and_then(|backend| {
        backend.layer.preconnect(&context::client("preconnect")?, readonly != 0)
    }))
}

/// `next` in `list_exports`.
///
/// # Safety
/// `nxdata` is null or a [`CBackend`]; `list` is null or a list of exports that nothing else uses
/// now.
pub(super) unsafe extern "C" fn next_list_exports(
    nxdata: BackendPointer,
    readonly: c_int,
    list: ExportsPointer,
) -> c_int {
    // SAFETY: `nxdata` is null or a `CBackend`; `list` is null or a list of exports that nothing
    // else uses now; the module upholds that.
    let (backend, list) =
        unsafe { (backend(nxdata, "list_exports"), list.cast::<CExports>().as_mut()) };
    outcome(backend.and_then(|backend| {
        let list = list.ok_or_else(|| misused("list_exports"))?;
        let mut exports = Exports::new();
        let client = context::client("list_exports")?;
        backend.layer.list_exports(&client, readonly != 0, &mut exports)?;
        list.add_all(&exports)
    }))
}

/// `next` in `default_export`. Null for none, and for failure.
///
/// # Safety
/// `nxdata` is null or a [`CBackend`].
pub(super) unsafe extern "C" fn next_default_export(
    nxdata: BackendPointer,
    readonly: c_int,
) -> Text {
    // SAFETY: `nxdata` is null or a `CBackend`; the module upholds that.
    let backend = unsafe { backend(nxdata, "default_export") };
    let name = backend.and_then(|backend| {
        backend.layer.default_export(&context::client("default_export")?, readonly != 0)
    });
    match name {
        Ok(name) => match name.map(CString::new) {
            Some(Ok(name)) => keep(name),
            // A name with a null byte is none.
            None | Some(Err(_)) => null(),
        },
        Err(error) => {
            context::failed_below(error);
            null()
        }
    }
}

/// The name of an export as C has it. Those of clients have no null byte.
///
/// # Errors
/// EINVAL for one that has.
pub(super) fn export_name(name: &str) -> Result<CString> {
    CString::new(name).map_err(|_| Error::new(Errno::EINVAL, "the export name has a null byte"))
}
