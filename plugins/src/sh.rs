//! nbdkit-sh-plugin(3): every method is a run of one script or program.
//!
//! Loading and configuration happen in the template, requests in the workers, which run the
//! program under their own sandbox. [`call`] and its neighbours serve the eval plugin too.

pub(crate) mod call;
pub(crate) mod connection;
pub(crate) mod lifecycle;
mod run;
pub(crate) mod status;
#[cfg(test)]
mod tests;
pub(crate) mod text;
pub(crate) mod tmpdir;

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nbdkit_api::{
    Access, Client, Connection, Error, Exports, Needs, Open, Plugin, Result, ResultExt,
    ThreadModel, Value, quoted, shebang,
};

use call::{Call, Found, Program, Scripts, Start, chomp, lacks_shebang};
use connection::Handle;
use tmpdir::TempDir;

/// Longest inline script, bytes.
const MAX_INLINE: u64 = 16 << 20;

/// The plugin: the script, once its parameter was given.
#[derive(Default)]
pub struct Sh {
    script: Option<Arc<Script>>,
    /// What the script's `magic_config_key` printed.
    magic: Option<String>,
}

/// One script for all methods.
struct Script {
    path: PathBuf,
    start: Start<'static>,
    tmpdir: TempDir,
}

impl Scripts for Script {
    fn find(&self, _method: &str) -> Found<'_> {
        Found::Program(Program { path: &self.path, start: self.start })
    }

    fn tmpdir(&self) -> &TempDir {
        &self.tmpdir
    }
}

impl Script {
    fn new(value: Value<'_>) -> Result<Script> {
        if value.as_bytes() != b"-" {
            let path = value.realpath()?;
            // Whether it is executable and has an interpreter, running it will show.
            let start = if is_for_nbdkit(&path) { Start::Read } else { Start::Execute };
            return Ok(Script { path, start, tmpdir: TempDir::new()? });
        }
        if !nbdkit_api::client::stdio_safe() {
            return Err(Error::msg("inline script is incompatible with -s"));
        }
        let mut text = Vec::new();
        std::io::stdin()
            .take(MAX_INLINE + 1)
            .read_to_end(&mut text)
            .or_error(|| "read inline script: stdin")?;
        if text.len() as u64 > MAX_INLINE {
            return Err(Error::msg(format!("inline script is longer than {MAX_INLINE} bytes")));
        }
        let tmpdir = TempDir::new()?;
        let path = tmpdir.add_script("inline-script.sh", &text)?;
        let start = if lacks_shebang(&text) { Start::Read } else { Start::Execute };
        Ok(Script { path, start, tmpdir })
    }
}

/// Whether executing a script would start another nbdkit, and that the next: `#!/usr/sbin/nbdkit
/// sh`. It is for /bin/sh.
fn is_for_nbdkit(path: &Path) -> bool {
    /// The kernel's limit on such a line, bytes.
    const LONGEST: u64 = 256;
    let mut beginning = Vec::new();
    let read = File::open(path).and_then(|file| file.take(LONGEST).read_to_end(&mut beginning));
    let line = read.ok().and_then(|_| shebang::line(&beginning));
    line.is_some_and(|line| shebang::language(line).is_ok())
}

impl Sh {
    /// The script; the server has checked by `config_complete` that there is one.
    fn script(&self) -> Result<&Script> {
        self.script.as_deref().ok_or_else(|| Error::msg("missing script parameter"))
    }

    /// Takes `script=`, the first parameter: loads the script.
    fn load(&mut self, value: Value<'_>) -> Result<()> {
        let script = Script::new(value)?;
        lifecycle::step(&script, "load")?;
        let magic = Call::new(&script, "magic_config_key");
        if let Some(key) = magic.text()? {
            let key = text::utf8(chomp(&key)).map_err(|why| magic.error(why))?;
            self.magic = Some(key.to_owned());
        }
        self.script = Some(Arc::new(script));
        Ok(())
    }
}

impl Plugin for Sh {
    fn name(&self) -> &str {
        "sh"
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
        Some("nbdkit shell script plugin")
    }

    fn magic_config_key(&self) -> Option<&str> {
        Some("script")
    }

    fn config_help(&self) -> Option<&str> {
        Some(
            "script=<FILENAME>     (required) The shell script to run.\n\
             [other arguments may be used by the plugin that you load]",
        )
    }

    fn config(&mut self, key: &str, value: Value<'_>) -> Result<()> {
        let Some(script) = &self.script else {
            if key != "script" {
                return Err(Error::msg("the first parameter must be script=/path/to/script"));
            }
            return self.load(value);
        };
        // A later bare value comes with our magic key; the script may have one of its own.
        let key = match (key, &self.magic) {
            ("script", Some(magic)) => magic,
            ("script", None) => {
                return Err(Error::msg(format!(
                    "{}: expecting key=value on the command line but got: {}",
                    script.path.display(),
                    quoted(value.as_os_str().as_bytes())
                )));
            }
            (key, _) => key,
        };
        if lifecycle::config(&**script, key, value.as_os_str())? {
            return Ok(());
        }
        Err(Error::msg(format!(
            "{}: this plugin does not need command line configuration",
            script.path.display()
        )))
    }

    fn config_complete(&mut self) -> Result<()> {
        lifecycle::step(self.script()?, "config_complete")
    }

    fn thread_model(&self) -> Result<ThreadModel> {
        // Without a script the plugin itself is asked about (`--dump-plugin`).
        match &self.script {
            Some(script) => lifecycle::thread_model(&**script),
            None => Ok(ThreadModel::Parallel),
        }
    }

    fn get_ready(&mut self) -> Result<()> {
        lifecycle::step(self.script()?, "get_ready")
    }

    fn after_fork(&self) -> Result<()> {
        lifecycle::step(self.script()?, "after_fork")
    }

    fn dump_plugin(&self, out: &mut dyn Write) -> std::io::Result<()> {
        lifecycle::dump_plugin(self.script.as_deref().map(|script| script as &dyn Scripts), out)
    }

    fn needs(&self, _readonly: bool) -> Needs {
        let mut needs = Needs::nothing().programs().shutdown();
        if let Some(script) = &self.script {
            needs = needs.path(&script.path, Access::Read);
            needs.merge(script.tmpdir.needs());
        }
        needs
    }

    fn preconnect(&self, client: &Arc<Client>, readonly: bool) -> Result<()> {
        lifecycle::preconnect(self.script()?, client, readonly)
    }

    fn list_exports(
        &self,
        client: &Arc<Client>,
        readonly: bool,
        exports: &mut Exports,
    ) -> Result<()> {
        lifecycle::list_exports(self.script()?, client, readonly, exports)
    }

    fn default_export(&self, client: &Arc<Client>, readonly: bool) -> Result<Option<String>> {
        lifecycle::default_export(self.script()?, client, readonly)
    }

    fn temporary(&self) -> Vec<PathBuf> {
        self.script.iter().map(|script| script.tmpdir.path().to_owned()).collect()
    }

    /// `$tmpdir` is the scripts' memory, and a new one is empty.
    fn keeps_state(&self) -> bool {
        true
    }

    fn open(&self, open: &Open<'_>) -> Result<Box<dyn Connection>> {
        self.script()?;
        let script = self.script.clone().ok_or_else(|| Error::msg("missing script parameter"))?;
        Ok(Box::new(Handle::open(&(script as Arc<dyn Scripts>), open)?))
    }
}

impl Drop for Sh {
    fn drop(&mut self) {
        if let Some(script) = &self.script {
            lifecycle::unload(&**script);
        }
    }
}
