//! A plugin in C as a [`Plugin`].

#![expect(unsafe_code, reason = "calls code in another language")]

use std::ffi::{OsStr, c_int};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use nbdkit_api::{
    Client, Connection, Error, Exports, Isolation, ModuleFile, Needs, Open, Plugin, Result,
    ThreadModel, Value,
};
use nbdkit_ipc::messages::DebugFlag;

use super::callbacks::Callbacks;
use super::calls::{c_string, dump, flush_streams, is_name, named};
use super::connection::CConnection;
use super::context::{self, Served};
use super::declaration::Declaration;
use super::functions::keep_forever;
use super::functions::lists::CExports;
use super::library::Module;
use super::table::{self, PluginTable};

/// The highest version of the interface. nbdkit-plugin(3), "NBDKIT_API_VERSION".
const MAX_API_VERSION: c_int = 2;

/// A plugin that was loaded from a file.
struct CPlugin {
    callbacks: Arc<Callbacks>,
    file: ModuleFile,
    declaration: Option<Declaration>,
    thread_model_limit: ThreadModel,
    name: String,
    longname: Option<String>,
    version: Option<String>,
    description: Option<String>,
    config_help: Option<String>,
    magic_config_key: Option<String>,
}

/// Loads the plugin that the command line calls `name` from the file at `path`, and sets those of
/// `flags` that are its.
///
/// # Errors
/// The file cannot be loaded, or is no plugin that could be used.
pub(crate) fn load_plugin(
    name: &OsStr,
    path: &Path,
    flags: &[DebugFlag],
) -> Result<Box<dyn Plugin>> {
    let module = Module::open("plugin", name, path)?;
    if module.stands_for_built_in() {
        return module.built_in("plugin", |name| crate::configure::built_in(name, flags));
    }
    let table = module.init("plugin_init")?;
    // SAFETY: a plugin's entry point returns a pointer to its table, by the interface.
    let table = unsafe { PluginTable::copy(table) };
    let plugin = CPlugin::new(&module, table)?;
    module.set_debug_flags(&plugin.name, flags);
    if let Some(load) = table.load {
        let _entered = context::enter(None);
        // SAFETY: called once, before every other callback.
        unsafe { load() };
    }
    Ok(Box::new(plugin))
}

impl CPlugin {
    /// Checks what the server relies on.
    fn new(module: &Module, table: PluginTable) -> Result<CPlugin> {
        let path = module.path.display();
        let refuse = |why: &str| Err(Error::msg(format!("{path}: {why}")));
        if !(0..=MAX_API_VERSION).contains(&table.api_version) {
            return refuse(&format!(
                "plugin is incompatible with this version of nbdkit (_api_version = {})",
                table.api_version
            ));
        }
        // SAFETY: texts of the table, which end with a null byte and live as long as the library.
        let (name, longname, version, description, config_help, magic_config_key) = unsafe {
            (
                table::text(table.name),
                table::text(table.longname),
                table::text(table.version),
                table::text(table.description),
                table::text(table.config_help),
                table::text(table.magic_config_key),
            )
        };
        let Some(name) = name else { return refuse("plugin must have a .name field") };
        if !is_name(&name) {
            return refuse(
                "plugin.name must begin with an ASCII alphanumeric and contain only those and dashes",
            );
        }
        let pread =
            if table.api_version < 2 { table.pread_v1.is_some() } else { table.pread.is_some() };
        let required = [
            ("open", table.open.is_some()),
            ("get_size", table.get_size.is_some()),
            ("pread", pread),
        ];
        if let Some((callback, _)) = required.iter().find(|(_, there)| !there) {
            return refuse(&format!("plugin must have a .{callback} callback"));
        }
        let Some(thread_model_limit) = ThreadModel::from_number(table.thread_model_limit) else {
            return refuse(&format!("unknown thread model {}", table.thread_model_limit));
        };
        let declaration = Declaration::of(module)?;
        let file = ModuleFile {
            path: module.path.clone(),
            api_version: table.api_version,
            struct_size: table.struct_size,
            errno_is_preserved: table.errno_is_preserved != 0,
            members: table.members(),
        };
        Ok(CPlugin {
            callbacks: Arc::new(Callbacks { table }),
            file,
            declaration,
            thread_model_limit,
            name,
            longname,
            version,
            description,
            config_help,
            magic_config_key,
        })
    }

    /// Runs a callback of the configuration that may be absent. One that fails without a word is
    /// named.
    fn step(&self, name: &str, callback: Option<unsafe extern "C" fn() -> c_int>) -> Result<()> {
        let Some(callback) = callback else { return Ok(()) };
        // SAFETY: takes nothing; called when the interface says, by the only thread.
        let result = self.callbacks.checked(None, || unsafe { callback() });
        flush_streams()?;
        result.map(drop).map_err(|error| named(name, error))
    }
}

impl Plugin for CPlugin {
    fn name(&self) -> &str {
        &self.name
    }

    fn longname(&self) -> Option<&str> {
        self.longname.as_deref()
    }

    fn version(&self) -> Option<&str> {
        self.version.as_deref()
    }

    fn description(&self) -> Option<&str> {
        self.description.as_deref()
    }

    fn config_help(&self) -> Option<&str> {
        self.config_help.as_deref()
    }

    fn magic_config_key(&self) -> Option<&str> {
        self.magic_config_key.as_deref()
    }

    fn has_config(&self) -> bool {
        self.callbacks.table.config.is_some()
    }

    fn config(&mut self, key: &str, value: Value<'_>) -> Result<()> {
        let Some(config) = self.callbacks.table.config else {
            return Err(Error::unknown_parameter(key));
        };
        // They are the plugin's for as long as it is loaded.
        let key = keep_forever(c_string(key.as_bytes()));
        let value = keep_forever(c_string(value.as_os_str().as_bytes()));
        // SAFETY: two strings that live on.
        let result = self.callbacks.checked(None, || unsafe { config(key, value) });
        flush_streams()?;
        result.map(drop).map_err(|error| named("config", error))
    }

    fn config_complete(&mut self) -> Result<()> {
        self.step("config_complete", self.callbacks.table.config_complete)
    }

    fn max_thread_model(&self) -> ThreadModel {
        self.thread_model_limit
    }

    fn thread_model(&self) -> Result<ThreadModel> {
        let Some(thread_model) = self.callbacks.table.thread_model else {
            return Ok(self.thread_model_limit);
        };
        // SAFETY: takes nothing; called after the configuration, by the only thread.
        let model = self.callbacks.checked(None, || unsafe { thread_model() });
        let model = model.map_err(|error| named("thread_model", error))?;
        ThreadModel::from_number(model)
            .ok_or_else(|| Error::msg(format!("thread_model returned {model}, which is none")))
    }

    fn get_ready(&mut self) -> Result<()> {
        self.step("get_ready", self.callbacks.table.get_ready)
    }

    fn after_fork(&self) -> Result<()> {
        self.step("after_fork", self.callbacks.table.after_fork)
    }

    fn cleanup(&self) {
        if let Some(cleanup) = self.callbacks.table.cleanup {
            let _entered = context::enter(None);
            // SAFETY: takes nothing; called once the last client has gone.
            unsafe { cleanup() };
        }
    }

    fn unload(&self) {
        if let Some(unload) = self.callbacks.table.unload {
            let _entered = context::enter(None);
            // SAFETY: takes nothing; nothing of the plugin is called after this.
            unsafe { unload() };
        }
    }

    fn file(&self) -> Option<&ModuleFile> {
        Some(&self.file)
    }

    fn dump_plugin(&self, out: &mut dyn Write) -> io::Result<()> {
        dump(self.callbacks.table.dump_plugin, out)
    }

    fn warm_up(&self) -> Result<()> {
        self.declaration.as_ref().map_or(Ok(()), Declaration::warm_up)
    }

    fn needs(&self, _readonly: bool) -> Needs {
        self.declaration.as_ref().map_or_else(Needs::undeclared, Declaration::needs)
    }

    fn checked_needs(&self, readonly: bool) -> Result<Needs> {
        match &self.declaration {
            Some(declaration) => declaration.checked_needs(readonly),
            None => Ok(self.needs(readonly)),
        }
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

    fn preconnect(&self, client: &Arc<Client>, readonly: bool) -> Result<()> {
        let Some(preconnect) = self.callbacks.table.preconnect else { return Ok(()) };
        let served = Served::before_open(client);
        // SAFETY: takes a number; called as the thread model allows.
        self.callbacks.checked(Some(&served), || unsafe { preconnect(readonly.into()) }).map(drop)
    }

    fn list_exports(
        &self,
        client: &Arc<Client>,
        readonly: bool,
        exports: &mut Exports,
    ) -> Result<()> {
        let Some(list_exports) = self.callbacks.table.list_exports else {
            exports.use_default();
            return Ok(());
        };
        let served = Served::before_open(client);
        let mut list = CExports::default();
        let (readonly, tls) = (readonly.into(), client.is_tls().into());
        let pointer = (&raw mut list).cast();
        let listed = self.callbacks.checked(Some(&served), || {
            // SAFETY: the list is the callback's alone until it returns.
            unsafe { list_exports(readonly, tls, pointer) }
        });
        listed?;
        list.append_to(exports)
    }

    fn default_export(&self, client: &Arc<Client>, readonly: bool) -> Result<Option<String>> {
        let Some(default_export) = self.callbacks.table.default_export else {
            return Ok(Some(String::new()));
        };
        let served = Served::before_open(client);
        let _entered = context::enter(Some(&served));
        // SAFETY: takes numbers; called as the thread model allows.
        let name = unsafe { default_export(readonly.into(), client.is_tls().into()) };
        // SAFETY: null or a string that lives at least as long as the connection. A name that is
        // not UTF-8 is none.
        Ok(unsafe { table::text(name) }.filter(|name| !name.contains('\u{fffd}')))
    }

    fn open(&self, open: &Open<'_>) -> Result<Box<dyn Connection>> {
        Ok(Box::new(CConnection::open(&self.callbacks, open)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_alphanumeric_with_dashes_inside() {
        for name in ["x", "memory", "foo-2", "S3", "9p-"] {
            assert!(is_name(name), "{name}");
        }
        for name in ["", "-x", "a b", "a_b", "\u{e9}", "a.b", "a/b"] {
            assert!(!is_name(name), "{name}");
        }
    }
}
