//! The plugin whose methods are scripts, of one file (sh) or of parameters (eval): what it does
//! with them is the same, and where they come from is a [`Source`].

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use nbdkit_api::{
    Client, Connection, Error, Exports, Needs, Open, Plugin, Result, ThreadModel, Value,
};

use super::call::Scripts;
use super::connection::Handle;
use super::lifecycle;

/// Where the scripts of a plugin come from.
pub(crate) trait Source: Default + Send + Sync {
    /// The scripts.
    type Scripts: Scripts + 'static;

    /// The plugin's short name.
    const NAME: &'static str;
    /// Its long name.
    const LONGNAME: &'static str;
    /// The key of a bare value.
    const MAGIC_CONFIG_KEY: Option<&'static str>;
    /// Text about its parameters.
    const CONFIG_HELP: &'static str;
    /// The thread model that `--dump-plugin` shows while there are no scripts.
    const THREAD_MODEL: ThreadModel;

    /// Takes a parameter.
    ///
    /// # Errors
    /// Bad value; the server does not start.
    fn config(&mut self, key: &str, value: Value<'_>) -> Result<()>;

    /// Checks that nothing is missing.
    ///
    /// # Errors
    /// The server does not start.
    fn check_complete(&self) -> Result<()>;

    /// The scripts, once there are some.
    fn scripts(&self) -> Option<&Arc<Self::Scripts>>;

    /// The error of a command line that gives none.
    fn missing() -> Error;

    /// What connections touch besides the scripts' directory.
    fn needs(&self, of_all: Needs) -> Needs {
        of_all
    }
}

/// The plugin.
#[derive(Default)]
pub(crate) struct ScriptPlugin<S: Source>(S);

impl<S: Source> ScriptPlugin<S> {
    pub(crate) fn scripts(&self) -> Result<&S::Scripts> {
        self.0.scripts().map(|scripts| &**scripts).ok_or_else(S::missing)
    }
}

impl<S: Source> Plugin for ScriptPlugin<S> {
    fn name(&self) -> &str {
        S::NAME
    }

    fn callbacks(&self) -> &'static [&'static str] {
        &[
            "longname",
            "dump_plugin",
            "config",
            "config_complete",
            "config_help",
            "thread_model",
            "get_ready",
            "after_fork",
            "preconnect",
            "list_exports",
            "default_export",
            "open",
            "export_description",
            "get_size",
            "block_size",
            "can_write",
            "can_flush",
            "is_rotational",
            "can_trim",
            "can_zero",
            "can_fast_zero",
            "can_extents",
            "can_fua",
            "can_multi_conn",
            "can_cache",
            "pread",
            "pwrite",
            "flush",
            "trim",
            "zero",
            "extents",
            "cache",
        ]
    }

    fn longname(&self) -> Option<&str> {
        Some(S::LONGNAME)
    }

    fn magic_config_key(&self) -> Option<&str> {
        S::MAGIC_CONFIG_KEY
    }

    fn config_help(&self) -> Option<&str> {
        Some(S::CONFIG_HELP)
    }

    fn config(&mut self, key: &str, value: Value<'_>) -> Result<()> {
        self.0.config(key, value)
    }

    fn config_complete(&mut self) -> Result<()> {
        self.0.check_complete()?;
        lifecycle::step(self.scripts()?, "config_complete")
    }

    fn thread_model(&self) -> Result<ThreadModel> {
        match self.0.scripts() {
            Some(scripts) => lifecycle::thread_model(&**scripts),
            None => Ok(S::THREAD_MODEL),
        }
    }

    fn get_ready(&mut self) -> Result<()> {
        lifecycle::step(self.scripts()?, "get_ready")
    }

    fn after_fork(&self) -> Result<()> {
        lifecycle::step(self.scripts()?, "after_fork")
    }

    fn dump_plugin(&self, out: &mut dyn Write) -> std::io::Result<()> {
        lifecycle::dump_plugin(self.0.scripts().map(|scripts| &**scripts as &dyn Scripts), out)
    }

    fn needs(&self, _readonly: bool) -> Needs {
        let mut needs = Needs::nothing().programs().shutdown();
        if let Some(scripts) = self.0.scripts() {
            needs.merge(scripts.tmpdir().needs());
        }
        self.0.needs(needs)
    }

    fn preconnect(&self, client: &Arc<Client>, readonly: bool) -> Result<()> {
        lifecycle::preconnect(self.scripts()?, client, readonly)
    }

    fn list_exports(
        &self,
        client: &Arc<Client>,
        readonly: bool,
        exports: &mut Exports,
    ) -> Result<()> {
        lifecycle::list_exports(self.scripts()?, client, readonly, exports)
    }

    fn default_export(&self, client: &Arc<Client>, readonly: bool) -> Result<Option<String>> {
        lifecycle::default_export(self.scripts()?, client, readonly)
    }

    fn temporary(&self) -> Vec<PathBuf> {
        self.0.scripts().iter().map(|scripts| scripts.tmpdir().path().to_owned()).collect()
    }

    /// `$tmpdir` is the scripts' memory, and a new one is empty.
    fn keeps_state(&self) -> bool {
        true
    }

    fn open(&self, open: &Open<'_>) -> Result<Box<dyn Connection>> {
        let scripts = Arc::clone(self.0.scripts().ok_or_else(S::missing)?);
        Ok(Box::new(Handle::open(&(scripts as Arc<dyn Scripts>), open)?))
    }
}

impl<S: Source> Drop for ScriptPlugin<S> {
    fn drop(&mut self) {
        if let Some(scripts) = self.0.scripts() {
            lifecycle::unload(&**scripts);
        }
    }
}
