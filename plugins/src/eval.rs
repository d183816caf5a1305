//! nbdkit-eval-plugin(1): every method is a fragment of shell script from the command line.
//!
//! What is the sh plugin's file is the text of a parameter here, given to the shell as it is; the
//! rest is the same machinery.

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use nbdkit_api::{Error, Result, ThreadModel, Value};

use crate::sh::call::{Found, Program, Scripts, Start, lacks_shebang};
use crate::sh::lifecycle;
use crate::sh::plugin::{ScriptPlugin, Source};
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

/// The plugin.
pub(crate) type Eval = ScriptPlugin<Parameters>;

/// Where its methods come from: parameters, of which there may be none yet.
#[derive(Default)]
pub(crate) struct Parameters(Option<Arc<Fragments>>);

/// One script for each method.
pub(crate) struct Fragments {
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

impl Parameters {
    /// The scripts while they are being collected, when nobody else refers to them.
    fn collecting(&mut self) -> Result<&mut Fragments> {
        let fragments = match self.0.take() {
            Some(fragments) => fragments,
            None => Arc::new(Fragments { scripts: BTreeMap::new(), tmpdir: TempDir::new()? }),
        };
        Arc::get_mut(self.0.insert(fragments))
            .ok_or_else(|| Error::msg("eval: parameter after the first connection"))
    }
}

impl Source for Parameters {
    type Scripts = Fragments;

    const NAME: &'static str = "eval";
    const LONGNAME: &'static str = "nbdkit eval plugin";
    const MAGIC_CONFIG_KEY: Option<&'static str> = None;
    const CONFIG_HELP: &'static str = "get_size=' SCRIPT '\npread=' SCRIPT '\n[etc]";
    const THREAD_MODEL: ThreadModel = ThreadModel::SerializeAllRequests;

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

    fn check_complete(&self) -> Result<()> {
        let fragments = self.0.as_ref().ok_or_else(Self::missing)?;
        // A script for missing methods may well have this one.
        if ["get_size", "missing"].iter().any(|name| fragments.scripts.contains_key(name)) {
            return Ok(());
        }
        Err(Self::missing())
    }

    fn scripts(&self) -> Option<&Arc<Fragments>> {
        self.0.as_ref()
    }

    fn missing() -> Error {
        Error::msg("the get_size method is required")
    }
}
