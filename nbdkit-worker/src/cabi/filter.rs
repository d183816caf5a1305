//! A filter in C as a [`Filter`]. nbdkit-filter(3).
//!
//! - [`layout`]: the structures of the interface; [`of_1_16`]: those with the signatures of nbdkit
//!   1.16; [`table`]: either;
//! - [`configure`]: the layer below as the callbacks before `open` reach it;
//! - [`context`], [`next`] and [`ops`]: as the filter opens it, as it is then, and the functions
//!   that reach it;
//! - [`connection`]: the callbacks of a connection.

#![expect(unsafe_code, reason = "calls code in another language")]

mod configure;
mod connection;
mod context;
mod next;
mod of_1_16;
mod ops;
mod table;

use std::ffi::{OsStr, c_int};
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use nbdkit_abi::filter as layout;
use nbdkit_api::{
    Client, Error, Exports, Filter, Isolation, Layer, ModuleFile, Needs, NextConfig, Open,
    OpenLayer, Result, Slot, ThreadModel, Value,
};
use nbdkit_ipc::messages::DebugFlag;

use self::configure::Configuring;
use self::connection::CFilterConnection;
use self::context::CBackend;
pub(super) use self::layout::NextPointer;
use self::layout::{BackendPointer, Head, Middle};
pub(super) use self::next::with;
use self::table::Table;
use super::calls::{c_string, dump, flush_streams, is_name, named};
use super::context::{Served, enter, failure};
use super::declaration::Declaration;
use super::functions::keep_forever;
use super::functions::lists::CExports;
use super::library::Module;
use crate::describe::COMPATIBILITY;

/// The callbacks of a loaded filter.
struct Callbacks {
    head: Head,
    table: Table,
}

// SAFETY: the tables are copies that nobody changes. Their pointers are to functions and texts of a
// library that stays open, and the functions are called from several threads only as far as the
// final thread model allows.
unsafe impl Send for Callbacks {}
// SAFETY: nobody changes the copies, and the thread model decides which threads call the functions.
unsafe impl Sync for Callbacks {}

/// A filter that was loaded from a file.
struct CFilter {
    callbacks: Arc<Callbacks>,
    file: ModuleFile,
    declaration: Option<Declaration>,
    name: String,
    longname: Option<String>,
    description: Option<String>,
    config_help: Option<String>,
    /// Once it is configured.
    backend: OnceLock<Arc<CBackend>>,
}

/// Loads the filter that the command line calls `name` from the file at `path`, and sets those of
/// `flags` that are its.
///
/// # Errors
/// The file cannot be loaded, or is no filter that could be used.
pub(crate) fn load_filter(
    name: &OsStr,
    path: &Path,
    flags: &[DebugFlag],
) -> Result<Box<dyn Filter>> {
    let module = Module::open("filter", name, path)?;
    if module.stands_for_built_in() {
        return module.built_in("filter", nbdkit_filters::load);
    }
    let pointer = module.init("filter_init")?;
    // SAFETY: a filter's entry point returns a pointer to its table, by the interface.
    let marker = unsafe { table::marker(pointer) };
    let path = module.path.display();
    check_version(marker.api_version, marker.version.as_deref())
        .map_err(|why| Error::msg(format!("{path}: {why}")))?;
    // SAFETY: compiled with headers of this version, as was just checked.
    let (head, table) = unsafe { Table::copy(pointer, marker.api_version) };
    let filter = CFilter::new(&module, head, table)?;
    module.set_debug_flags(&filter.name, flags);
    if let Some(load) = head.load {
        let _entered = enter(None);
        // SAFETY: called once, before every other callback.
        unsafe { load() };
    }
    Ok(Box::new(filter))
}

/// Whether a filter with these marks can be used: unlike a plugin, it was compiled with headers of
/// this very version.
///
/// # Errors
/// Why not.
fn check_version(api_version: c_int, version: Option<&str>) -> Result<(), String> {
    let Some(version) = version else {
        return Err("the filter does not say for which version it was compiled".to_owned());
    };
    if version != COMPATIBILITY {
        return Err(format!(
            "filter was compiled for version {} and cannot be used by version {COMPATIBILITY}: \
             it must be compiled anew with the headers of this server",
            version.escape_debug()
        ));
    }
    if ![layout::CURRENT, of_1_16::API].contains(&api_version) {
        return Err(format!(
            "filter is incompatible with this version of nbdkit (_api_version = {api_version})"
        ));
    }
    Ok(())
}

impl CFilter {
    /// Checks what the server relies on.
    fn new(module: &Module, head: Head, table: Table) -> Result<CFilter> {
        let path = module.path.display();
        let refuse = |why: &str| Err(Error::msg(format!("{path}: {why}")));
        // SAFETY: texts of the table, which end with a null byte and live as long as the library.
        let (name, longname, description, config_help) = unsafe {
            (
                super::table::text(head.name),
                super::table::text(head.longname),
                super::table::text(head.description),
                super::table::text(head.config_help),
            )
        };
        let Some(name) = name else { return refuse("filter must have a .name field") };
        if !is_name(&name) {
            return refuse(
                "filter.name must begin with an ASCII alphanumeric and contain only those and dashes",
            );
        }
        let declaration = Declaration::of(module)?;
        let file = ModuleFile {
            path: module.path.clone(),
            api_version: head.api_version,
            struct_size: 0,
            errno_is_preserved: false,
            members: Vec::new(),
        };
        Ok(CFilter {
            callbacks: Arc::new(Callbacks { head, table }),
            file,
            declaration,
            name,
            longname,
            description,
            config_help,
            backend: OnceLock::new(),
        })
    }

    /// The callbacks that filters of nbdkit 1.16 did not have.
    fn middle(&self) -> Option<&Middle> {
        match &self.callbacks.table {
            Table::Current(middle, _) => Some(middle),
            Table::Of116(..) => None,
        }
    }

    /// The layer below, of which every callback sees the same pointer.
    fn backend(&self, below: &Arc<Layer>) -> &Arc<CBackend> {
        self.backend.get_or_init(|| Arc::new(CBackend { layer: Arc::clone(below) }))
    }

    /// `nbdkit_backend *` of [`backend`](Self::backend).
    fn pointer(&self, below: &Arc<Layer>) -> BackendPointer {
        Arc::as_ptr(self.backend(below)).cast_mut().cast()
    }
}

/// Runs a callback for `served` that returns -1 for failure.
///
/// # Errors
/// The filter's, or that of the layer below which it passed on.
fn checked(served: Option<&Arc<Served>>, callback: impl FnOnce() -> c_int) -> Result<c_int> {
    let _entered = enter(served);
    match callback() {
        -1 => Err(failure(None)),
        result => Ok(result),
    }
}

/// Runs a callback of the configuration. One that fails without a word is named.
///
/// # Errors
/// As [`checked`], or standard output cannot be written.
fn step(name: &str, callback: impl FnOnce() -> c_int) -> Result<c_int> {
    let result = checked(None, callback);
    flush_streams()?;
    result.map_err(|error| named(name, error))
}

impl Filter for CFilter {
    fn name(&self) -> &str {
        &self.name
    }

    fn longname(&self) -> Option<&str> {
        self.longname.as_deref()
    }

    fn description(&self) -> Option<&str> {
        self.description.as_deref()
    }

    fn config_help(&self) -> Option<&str> {
        self.config_help.as_deref()
    }

    fn config(&mut self, next: NextConfig<'_>, key: &str, value: Value<'_>) -> Result<()> {
        let Some(config) = self.callbacks.head.config else { return next.config(key, value) };
        // They are valid for as long as the filter is loaded.
        let key = keep_forever(c_string(key.as_bytes()));
        let value = keep_forever(c_string(value.as_bytes()));
        let mut configuring = Configuring { next };
        let nxdata: *mut Configuring<'_> = &mut configuring;
        // SAFETY: two strings that live on, and what `next` takes, which is the callback's until it
        // returns.
        let result =
            step("config", || unsafe { config(configure::next_config, nxdata.cast(), key, value) });
        result.map(drop)
    }

    fn config_complete(&mut self, next: NextConfig<'_>) -> Result<()> {
        let Some(config_complete) = self.callbacks.head.config_complete else {
            return next.config_complete();
        };
        let mut configuring = Configuring { next };
        let nxdata: *mut Configuring<'_> = &mut configuring;
        // SAFETY: what `next` takes is the callback's until it returns.
        let result = step("config_complete", || unsafe {
            config_complete(configure::next_config_complete, nxdata.cast())
        });
        result.map(drop)
    }

    fn thread_model(&self, below: ThreadModel) -> Result<ThreadModel> {
        let Some(thread_model) = self.callbacks.head.thread_model else { return Ok(below) };
        // SAFETY: takes a number, in a register that functions of filters of 1.16, which take
        // nothing, may change; called after the configuration, by the only thread.
        let model = step("thread_model", || unsafe { thread_model(below as c_int) })?;
        ThreadModel::from_number(model)
            .ok_or_else(|| Error::msg(format!("thread_model returned {model}, which is none")))
    }

    fn get_ready(&mut self, model: ThreadModel) -> Result<()> {
        let get_ready = self.middle().and_then(|middle| middle.get_ready);
        let Some(get_ready) = get_ready else { return Ok(()) };
        // SAFETY: takes a number; called by the only thread.
        let result = step("get_ready", || unsafe { get_ready(model as c_int) });
        result.map(drop)
    }

    fn after_fork(&self, below: &Arc<Layer>) -> Result<()> {
        let after_fork = self.middle().and_then(|middle| middle.after_fork);
        let Some(after_fork) = after_fork else { return Ok(()) };
        let backend = self.pointer(below);
        // SAFETY: the backend is there as long as the filter.
        let result = step("after_fork", || unsafe { after_fork(backend) });
        result.map(drop)
    }

    fn cleanup(&self, below: &Arc<Layer>) {
        if let Some(cleanup) = self.middle().and_then(|middle| middle.cleanup) {
            let backend = self.pointer(below);
            let _entered = enter(None);
            // SAFETY: the backend is there as long as the filter; called once the last client has
            // gone.
            unsafe { cleanup(backend) };
        }
    }

    fn unload(&self) {
        if let Some(unload) = self.callbacks.head.unload {
            let _entered = enter(None);
            // SAFETY: takes nothing; nothing of the filter is called after this.
            unsafe { unload() };
        }
    }

    fn file(&self) -> Option<&ModuleFile> {
        Some(&self.file)
    }

    fn dump_plugin(&self, out: &mut dyn Write) -> io::Result<()> {
        dump(self.middle().and_then(|middle| middle.dump_plugin), out)
    }

    fn warm_up(&self) -> Result<()> {
        self.declaration.as_ref().map_or(Ok(()), Declaration::warm_up)
    }

    fn needs(&self, mut below: Needs) -> Needs {
        let own = self.declaration.as_ref().map_or_else(Needs::undeclared, Declaration::needs);
        below.merge(own);
        below
    }

    fn checked_needs(&self, mut below: Needs, readonly: bool) -> Result<Needs> {
        match &self.declaration {
            Some(declaration) => below.merge(declaration.checked_needs(readonly)?),
            None => below = self.needs(below),
        }
        Ok(below)
    }

    fn isolation(&self) -> Isolation {
        self.declaration.as_ref().map_or(Isolation::Connection, Declaration::isolation)
    }

    /// Code that was written for one process may keep what it likes in its memory.
    fn default_isolation(&self) -> Isolation {
        self.declaration.as_ref().map_or(Isolation::Shared, Declaration::isolation)
    }

    fn keeps_state(&self) -> bool {
        self.declaration.as_ref().is_some_and(Declaration::keeps_state)
    }

    fn preconnect(&self, below: &Arc<Layer>, client: &Arc<Client>, readonly: bool) -> Result<()> {
        let Some(preconnect) = self.middle().and_then(|middle| middle.preconnect) else {
            return below.preconnect(client, readonly);
        };
        let backend = self.pointer(below);
        let served = Served::before_open(client);
        // SAFETY: the backend is there as long as the filter; called as the thread model allows.
        let result = checked(Some(&served), || unsafe {
            preconnect(configure::next_preconnect, backend, readonly.into())
        });
        result.map(drop)
    }

    fn list_exports(
        &self,
        below: &Arc<Layer>,
        client: &Arc<Client>,
        readonly: bool,
        exports: &mut Exports,
    ) -> Result<()> {
        let Some(list_exports) = self.middle().and_then(|middle| middle.list_exports) else {
            return below.list_exports(client, readonly, exports);
        };
        let backend = self.pointer(below);
        let served = Served::before_open(client);
        let mut list = CExports::default();
        let pointer = (&raw mut list).cast();
        let (readonly, tls) = (readonly.into(), client.is_tls().into());
        // SAFETY: the backend is there as long as the filter, and the list is the callback's until
        // it returns.
        checked(Some(&served), || unsafe {
            list_exports(configure::next_list_exports, backend, readonly, tls, pointer)
        })?;
        list.append_to(exports)
    }

    fn default_export(
        &self,
        below: &Arc<Layer>,
        client: &Arc<Client>,
        readonly: bool,
    ) -> Result<Option<String>> {
        let Some(default_export) = self.middle().and_then(|middle| middle.default_export) else {
            return below.default_export(client, readonly);
        };
        let backend = self.pointer(below);
        let served = Served::before_open(client);
        let _entered = enter(Some(&served));
        let (readonly, tls) = (readonly.into(), client.is_tls().into());
        // SAFETY: the backend is there as long as the filter.
        let name =
            unsafe { default_export(configure::next_default_export, backend, readonly, tls) };
        // SAFETY: null or a string that lives at least as long as the connection. A name that is
        // not UTF-8 is none.
        Ok(unsafe { super::table::text(name) }.filter(|name| !name.contains('\u{fffd}')))
    }

    fn open(&self, below: &mut Slot<'_>, open: &Open<'_>) -> Result<Box<dyn OpenLayer>> {
        let backend = Arc::clone(self.backend(below.layer()));
        Ok(Box::new(CFilterConnection::open(&self.callbacks, backend, open)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_headers_are_of_the_version_that_filters_are_checked_for() {
        let header = include_str!("../../../include/nbdkit-version.h");
        let string = format!("#define NBDKIT_VERSION_STRING \"{COMPATIBILITY}\"\n");
        assert!(header.contains(&string));
    }

    #[test]
    fn the_line_about_another_version_names_both() {
        let why = check_version(layout::CURRENT, Some("1.32.5")).unwrap_err();
        assert!(why.contains("1.32.5") && why.contains(COMPATIBILITY), "{why}");
        assert!(check_version(layout::CURRENT, None).is_err());
        assert!(check_version(5, Some(COMPATIBILITY)).unwrap_err().contains("_api_version = 5"));
        assert!(check_version(layout::CURRENT, Some(COMPATIBILITY)).is_ok());
        assert!(check_version(of_1_16::API, Some(COMPATIBILITY)).is_ok());
    }
}
