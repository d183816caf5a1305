//! The callbacks of the table that are about the plugin. nbdkit-plugin(3), "Callbacks".

#![expect(unsafe_code, reason = "defines functions that C calls, and reads what they are passed")]

use std::ffi::{CStr, OsStr, c_char, c_int, c_void};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, PoisonError};

use nbdkit_abi::plugin::{ExportsPointer, PluginTable};
use nbdkit_api::{Client, Error, Exports, Open, Plugin, ResultExt, Value};

use crate::connection::{self, Handle};
use crate::{PLUGIN, guard, server, text, with, with_mut};

/// The table of a plugin in the state before configuration.
pub(crate) fn table(plugin: &dyn Plugin) -> PluginTable {
    PluginTable {
        struct_size: size_of::<PluginTable>() as u64,
        api_version: 2,
        thread_model_limit: plugin.max_thread_model() as c_int,
        name: text(Some(plugin.name())),
        longname: text(plugin.longname()),
        version: text(plugin.version()),
        description: text(plugin.description()),
        load: None,
        unload: Some(unload),
        config: if plugin.has_config() { Some(config) } else { None },
        config_complete: Some(config_complete),
        config_help: text(plugin.config_help()),
        open: Some(open),
        close: Some(connection::close),
        get_size: Some(connection::get_size),
        can_write: Some(connection::can_write),
        can_flush: Some(connection::can_flush),
        is_rotational: Some(connection::is_rotational),
        can_trim: Some(connection::can_trim),
        pread_v1: None,
        pwrite_v1: None,
        flush_v1: None,
        trim_v1: None,
        zero_v1: None,
        errno_is_preserved: 1,
        dump_plugin: Some(dump_plugin),
        can_zero: Some(connection::can_zero),
        can_fua: Some(connection::can_fua),
        pread: Some(connection::pread),
        pwrite: Some(connection::pwrite),
        flush: Some(connection::flush),
        trim: Some(connection::trim),
        zero: Some(connection::zero),
        magic_config_key: text(plugin.magic_config_key()),
        can_multi_conn: Some(connection::can_multi_conn),
        can_extents: Some(connection::can_extents),
        extents: Some(connection::extents),
        can_cache: Some(connection::can_cache),
        cache: Some(connection::cache),
        thread_model: Some(thread_model),
        can_fast_zero: Some(connection::can_fast_zero),
        preconnect: Some(preconnect),
        get_ready: Some(get_ready),
        after_fork: Some(after_fork),
        list_exports: Some(list_exports),
        default_export: Some(default_export),
        export_description: Some(connection::export_description),
        cleanup: Some(cleanup),
        block_size: Some(connection::block_size),
    }
}

unsafe extern "C" fn unload() {
    guard((), || {
        let plugin = PLUGIN.write().unwrap_or_else(PoisonError::into_inner).take();
        plugin.iter().for_each(|plugin| plugin.unload());
        Ok(())
    });
}

/// # Safety
/// The strings end with a null byte.
unsafe extern "C" fn config(key: *const c_char, value: *const c_char) -> c_int {
    guard(-1, || {
        // SAFETY: strings, as the server promises, which stay for as long as the plugin.
        let (key, value) = unsafe { (CStr::from_ptr(key), CStr::from_ptr(value)) };
        let key = key.to_str().map_err(|_| Error::msg("a parameter is not UTF-8"))?;
        let value = OsStr::from_bytes(value.to_bytes());
        with_mut(|plugin| plugin.config(key, Value::new(value)).map(|()| 0))
    })
}

unsafe extern "C" fn config_complete() -> c_int {
    guard(-1, || with_mut(|plugin| plugin.config_complete().map(|()| 0)))
}

unsafe extern "C" fn thread_model() -> c_int {
    guard(-1, || with(|plugin| plugin.thread_model().map(|model| model as c_int)))
}

unsafe extern "C" fn get_ready() -> c_int {
    guard(-1, || with_mut(|plugin| plugin.get_ready().map(|()| 0)))
}

unsafe extern "C" fn after_fork() -> c_int {
    guard(-1, || with(|plugin| plugin.after_fork().map(|()| 0)))
}

unsafe extern "C" fn cleanup() {
    guard((), || {
        with(|plugin| {
            plugin.cleanup();
            Ok(())
        })
    });
}

unsafe extern "C" fn dump_plugin() {
    guard((), || {
        server::flush_streams();
        with(|plugin| {
            let mut out = std::io::stdout().lock();
            let dumped = plugin.dump_plugin(&mut out).and_then(|()| out.flush());
            dumped.or_error(|| "standard output")
        })
    });
}

/// The client of this callback, which `tls` says has negotiated TLS.
fn client(tls: bool) -> Arc<Client> {
    Client::of_host(&server::HOST, tls)
}

unsafe extern "C" fn preconnect(readonly: c_int) -> c_int {
    guard(-1, || with(|plugin| plugin.preconnect(&client(false), readonly != 0).map(|()| 0)))
}

/// # Safety
/// `list` is the server's list of exports.
unsafe extern "C" fn list_exports(readonly: c_int, tls: c_int, list: ExportsPointer) -> c_int {
    guard(-1, || {
        let mut exports = Exports::new();
        with(|plugin| plugin.list_exports(&client(tls != 0), readonly != 0, &mut exports))?;
        for export in &exports {
            // SAFETY: the list is the callback's, as the server promises.
            unsafe { server::add_export(list, &export.name, export.description.as_deref()) }?;
        }
        if exports.take_use_default() {
            // SAFETY: the list is the callback's, as the server promises.
            unsafe { server::use_default_export(list) }?;
        }
        Ok(0)
    })
}

unsafe extern "C" fn default_export(readonly: c_int, tls: c_int) -> *const c_char {
    guard(std::ptr::null(), || {
        let name = with(|plugin| plugin.default_export(&client(tls != 0), readonly != 0))?;
        Ok(name.map_or(std::ptr::null(), |name| server::intern(&name)))
    })
}

unsafe extern "C" fn open(readonly: c_int) -> *mut c_void {
    guard(std::ptr::null_mut(), || {
        let (tls, export) = (server::is_tls(), server::export_name()?);
        let client = client(tls);
        let open = Open { client: Some(&client), readonly: readonly != 0, export: &export, tls };
        let connection = with(|plugin| plugin.open(&open))?;
        Ok(Handle { connection }.into_raw())
    })
}
