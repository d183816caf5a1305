//! Makes a [`Plugin`] in Rust a file: a shared library with nbdkit's C interface, which nbdkit
//! loads too, and with a declaration of what it needs, by which this server confines it strictly.
//!
//! ```ignore
//! nbdkit_export::export_plugin!(MyPlugin::default());
//! ```
//!
//! in a crate of type `cdylib` is all there is to do. docs/modules.md.
//!
//! Runs in the template and in the processes of clients, in whatever server loads the file. What
//! belongs to the process is the server's ([`nbdkit_api::host`]): its functions are resolved when
//! the file is loaded. Trusts that the server keeps to the interface; no panic reaches it.
//!
//! - [`callbacks`]: the functions of the table that are about the plugin;
//! - [`connection`]: those about one client's handle;
//! - [`declaration`]: the declaration of what it needs;
//! - [`server`]: the functions of the server.

#![deny(unsafe_code)]

mod callbacks;
mod connection;
mod declaration;
mod server;

use std::ffi::c_int;
use std::ffi::{CString, c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{PoisonError, RwLock};

use nbdkit_abi::plugin::PluginTable;
use nbdkit_api::{Errno, Error, Plugin, Result};

#[doc(hidden)]
pub use declaration::Declaration;
pub use nbdkit_api;

/// Exports a plugin: an expression that makes it, in the state before configuration. Once in a
/// crate of type `cdylib`.
///
/// What the expression makes says at once how clients may be divided over processes
/// ([`Plugin::default_isolation`]): that cannot depend on parameters.
#[macro_export]
macro_rules! export_plugin {
    ($make:expr) => {
        /// What the plugin needs. nbdkit-confine.h
        #[unsafe(no_mangle)]
        pub static nbdkitd_declaration: $crate::Declaration = $crate::Declaration::new();

        /// The entry point. nbdkit-plugin(3)
        #[unsafe(no_mangle)]
        pub extern "C" fn plugin_init() -> *const ::std::ffi::c_void {
            $crate::init(|| ::std::boxed::Box::new($make), &nbdkitd_declaration)
        }
    };
}

/// The plugin of this file.
static PLUGIN: RwLock<Option<Box<dyn Plugin>>> = RwLock::new(None);

/// What `plugin_init` does: makes the plugin, and returns its table, or null after an error.
#[doc(hidden)]
pub fn init(make: fn() -> Box<dyn Plugin>, declaration: &Declaration) -> *const c_void {
    guard(std::ptr::null(), || {
        serve_under_host();
        let plugin = make();
        declaration.set_isolation(plugin.default_isolation());
        let table = callbacks::table(&*plugin);
        *PLUGIN.write().unwrap_or_else(PoisonError::into_inner) = Some(plugin);
        // Used by the server for as long as the library is loaded.
        Ok(std::ptr::from_ref::<PluginTable>(Box::leak(Box::new(table))).cast())
    })
}

/// Has log, sleep and so on of [`nbdkit_api`] be those of the server that has loaded this file.
#[doc(hidden)]
pub fn serve_under_host() {
    nbdkit_api::client::serve_under(server::HOST);
}

/// Runs `body` on the plugin.
///
/// # Errors
/// Those of `body`; the plugin is not there any more.
fn with<T>(body: impl FnOnce(&dyn Plugin) -> Result<T>) -> Result<T> {
    match &*PLUGIN.read().unwrap_or_else(PoisonError::into_inner) {
        Some(plugin) => body(&**plugin),
        None => Err(Error::msg("the plugin has been unloaded")),
    }
}

/// As [`with`], while it is configured and nothing else runs.
///
/// # Errors
/// Those of [`with`].
fn with_mut<T>(body: impl FnOnce(&mut dyn Plugin) -> Result<T>) -> Result<T> {
    match &mut *PLUGIN.write().unwrap_or_else(PoisonError::into_inner) {
        Some(plugin) => body(&mut **plugin),
        None => Err(Error::msg("the plugin has been unloaded")),
    }
}

/// A question that a callback answers by 0 or 1.
fn as_int(answer: Result<bool>) -> Result<c_int> {
    answer.map(c_int::from)
}

/// Runs a callback that C has called. An error is logged and leaves its errno, and C gets
/// `failure`; so it is with a panic, which must not cross.
#[doc(hidden)]
pub fn guard<T>(failure: T, body: impl FnOnce() -> Result<T>) -> T {
    let panicked = |_| {
        // The hook of std has said where.
        Err(Error::new(Errno::EIO, "the module panicked"))
    };
    match catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(panicked) {
        Ok(result) => result,
        Err(error) => {
            server::fail(error);
            failure
        }
    }
}

/// A string that lives as long as the process; null for none. What follows a null byte is lost.
fn text(text: Option<&str>) -> *const c_char {
    text.map_or(std::ptr::null(), |text| c_string(text.as_bytes()).into_raw().cast_const())
}

/// A C string, as far as a null byte.
#[doc(hidden)]
pub fn c_string(bytes: &[u8]) -> CString {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    CString::new(&bytes[..end]).unwrap_or_default()
}
