//! nbdkit-eval-plugin(1): every method is a fragment of shell script from the command line.
//!
//! What is the sh plugin's file is the text of a parameter here, given to the shell as it is; the
//! rest is the same machinery.

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use nbdkit_api::{
    Client, Connection, Error, Exports, Needs, Open, Plugin, Result, ThreadModel, Value,
};

use crate::sh::call::{Found, Program, Scripts, Start, lacks_shebang};
use crate::sh::connection::Handle;
use crate::sh::lifecycle;
use crate::sh::tmpdir::TempDir;

/// The parameters that are scripts, sorted. Any other is one for the `config` script.
const METHODS: &[&str] = &[
    "after_fork",
    "block_size",
    "cache",
    "can_cache",
    "can_extents",
    "can_fast_zero",
    "can_flush",
    "can_fua",
    "can_multi_conn",
    "can_trim",
    "can_write",
    "can_zero",
    "close",
    "config",
    "config_complete",
    "default_export",
    "dump_plugin",
    "export_description",
    "extents",
    "flush",
    "get_ready",
    "get_size",
    "is_rotational",
    "list_exports",
    "missing",
    "open",
    "pread",
    "preconnect",
    "pwrite",
    "thread_model",
    "trim",
    "unload",
    "zero",
];

/// Methods that are there if another one is, unless they are given themselves, and what they print.
const IMPLIED: &[(&str, &str, &[u8])] = &[
    ("can_cache", "cache", b"native\n"),
    ("can_extents", "extents", b""),
    ("can_flush", "flush", b""),
    ("can_trim", "trim", b""),
    ("can_write", "pwrite", b""),
    ("can_zero", "zero", b""),
];

/// The plugin: its scripts, once there is one.
#[derive(Default)]
pub struct Eval {
    fragments: Option<Arc<Fragments>>,
}

/// One script for each method.
struct Fragments {
    scripts: BTreeMap<&'static str, Fragment>,
    tmpdir: TempDir,
}

struct Fragment {
    /// What nbdkit calls it, `$0` for the script. The file exists only if it names its interpreter.
    path: PathBuf,
    /// The script, if it is for /bin/sh.
    text: Option<OsString>,
}

impl Fragment {
    fn program(&self) -> Found<'_> {
        let start = self.text.as_deref().map_or(Start::Execute, Start::Text);
        Found::Program(Program { path: &self.path, start })
    }
}

impl Scripts for Fragments {
    fn find(&self, method: &str) -> Found<'_> {
        if let Some(fragment) = self.scripts.get(method) {
            return fragment.program();
        }
        let implied =
            IMPLIED.iter().find(|(name, by, _)| *name == method && self.scripts.contains_key(by));
        match (implied, self.scripts.get("missing")) {
            (Some((_, _, output)), _) => Found::Known(output),
            (None, Some(missing)) => missing.program(),
            (None, None) => Found::Missing(Cow::Owned(self.tmpdir.path().join("missing"))),
        }
    }

    fn tmpdir(&self) -> &TempDir {
        &self.tmpdir
    }
}

impl Eval {
    fn fragments(&self) -> Result<&Fragments> {
        self.fragments.as_deref().ok_or_else(no_size)
    }

    /// The scripts while they are being collected, when nobody else refers to them.
    fn collecting(&mut self) -> Result<&mut Fragments> {
        let fragments = match self.fragments.take() {
            Some(fragments) => fragments,
            None => Arc::new(Fragments { scripts: BTreeMap::new(), tmpdir: TempDir::new()? }),
        };
        Arc::get_mut(self.fragments.insert(fragments))
            .ok_or_else(|| Error::msg("eval: parameter after the first connection"))
    }
}

fn no_size() -> Error {
    Error::msg("the get_size method is required")
}

impl Plugin for Eval {
    fn name(&self) -> &str {
        "eval"
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
        Some("nbdkit eval plugin")
    }

    fn config_help(&self) -> Option<&str> {
        Some("get_size=' SCRIPT '\npread=' SCRIPT '\n[etc]")
    }

    fn config(&mut self, key: &str, value: Value<'_>) -> Result<()> {
        let fragments = self.collecting()?;
        if let Some(&method) = METHODS.iter().find(|method| **method == key) {
            if fragments.scripts.contains_key(method) {
                return Err(Error::msg(format!(
                    "method {method} defined more than once on the command line"
                )));
            }
            let fragment = if lacks_shebang(value.as_bytes()) {
                let path = fragments.tmpdir.path().join(method);
                Fragment { path, text: Some(value.to_os_string()) }
            } else {
                let path = fragments.tmpdir.add_script(method, value.as_bytes())?;
                Fragment { path, text: None }
            };
            fragments.scripts.insert(method, fragment);
            return Ok(());
        }
        if lifecycle::config(fragments, key, value.as_os_str())? {
            return Ok(());
        }
        Err(Error::msg(format!(
            "callback '{}' is unknown, and there is no 'config' callback to handle it",
            key.escape_default()
        )))
    }

    fn config_complete(&mut self) -> Result<()> {
        let fragments = self.fragments()?;
        // A script for missing methods may well have this one.
        if !["get_size", "missing"].iter().any(|name| fragments.scripts.contains_key(name)) {
            return Err(no_size());
        }
        lifecycle::step(fragments, "config_complete")
    }

    fn thread_model(&self) -> Result<ThreadModel> {
        match &self.fragments {
            Some(fragments) => lifecycle::thread_model(&**fragments),
            None => Ok(ThreadModel::SerializeAllRequests),
        }
    }

    fn get_ready(&mut self) -> Result<()> {
        lifecycle::step(self.fragments()?, "get_ready")
    }

    fn after_fork(&self) -> Result<()> {
        lifecycle::step(self.fragments()?, "after_fork")
    }

    fn dump_plugin(&self, out: &mut dyn Write) -> std::io::Result<()> {
        lifecycle::dump_plugin(self.fragments.as_deref().map(|all| all as &dyn Scripts), out)
    }

    fn needs(&self, _readonly: bool) -> Needs {
        let mut needs = Needs::nothing().programs().shutdown();
        if let Some(fragments) = &self.fragments {
            needs.merge(fragments.tmpdir.needs());
        }
        needs
    }

    fn preconnect(&self, client: &Arc<Client>, readonly: bool) -> Result<()> {
        lifecycle::preconnect(self.fragments()?, client, readonly)
    }

    fn list_exports(
        &self,
        client: &Arc<Client>,
        readonly: bool,
        exports: &mut Exports,
    ) -> Result<()> {
        lifecycle::list_exports(self.fragments()?, client, readonly, exports)
    }

    fn default_export(&self, client: &Arc<Client>, readonly: bool) -> Result<Option<String>> {
        lifecycle::default_export(self.fragments()?, client, readonly)
    }

    fn temporary(&self) -> Vec<PathBuf> {
        self.fragments.iter().map(|fragments| fragments.tmpdir.path().to_owned()).collect()
    }

    /// `$tmpdir` is the scripts' memory, and a new one is empty.
    fn keeps_state(&self) -> bool {
        true
    }

    fn open(&self, open: &Open<'_>) -> Result<Box<dyn Connection>> {
        let fragments = self.fragments.clone().ok_or_else(no_size)?;
        Ok(Box::new(Handle::open(&(fragments as Arc<dyn Scripts>), open)?))
    }
}

impl Drop for Eval {
    fn drop(&mut self) {
        if let Some(fragments) = &self.fragments {
            lifecycle::unload(&**fragments);
        }
    }
}
