//! nbdkit-sh-plugin(3): every method is a run of one script or program.
//!
//! Loading and configuration happen in the template, requests in the workers, which run the
//! program under their own sandbox. [`plugin`] and its neighbours serve the eval plugin too.

pub(crate) mod call;
pub(crate) mod connection;
pub(crate) mod lifecycle;
pub(crate) mod plugin;
pub(crate) mod run;
pub(crate) mod status;
#[cfg(test)]
mod tests;
pub(crate) mod text;
pub(crate) mod tmpdir;

use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nbdkit_api::{Access, Error, Needs, Result, ResultExt, ThreadModel, Value, quoted, shebang};

use call::{Call, Found, Program, Scripts, Start, chomp, lacks_shebang};
use plugin::{ScriptPlugin, Source};
use tmpdir::TempDir;

/// Longest inline script, bytes.
const MAX_INLINE: u64 = 16 << 20;

/// The plugin.
pub(crate) type Sh = ScriptPlugin<File>;

/// Where its methods come from: the script, once its parameter was given.
#[derive(Default)]
pub(crate) struct File {
    script: Option<Arc<Script>>,
    /// What the script's `magic_config_key` printed.
    magic: Option<String>,
}

/// One script for all methods.
pub(crate) struct Script {
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
    let read =
        std::fs::File::open(path).and_then(|file| file.take(LONGEST).read_to_end(&mut beginning));
    let line = read.ok().and_then(|_| shebang::line(&beginning));
    line.is_some_and(|line| shebang::language(line).is_ok())
}

impl File {
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

impl Source for File {
    type Scripts = Script;

    const NAME: &'static str = "sh";
    const LONGNAME: &'static str = "nbdkit shell script plugin";
    const MAGIC_CONFIG_KEY: Option<&'static str> = Some("script");
    const CONFIG_HELP: &'static str = "script=<FILENAME>     (required) The shell script to run.\n\
         [other arguments may be used by the plugin that you load]";
    const THREAD_MODEL: ThreadModel = ThreadModel::Parallel;

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

    /// The server has checked that there is a script.
    fn check_complete(&self) -> Result<()> {
        Ok(())
    }

    fn scripts(&self) -> Option<&Arc<Script>> {
        self.script.as_ref()
    }

    fn missing() -> Error {
        Error::msg("missing script parameter")
    }

    fn needs(&self, of_all: Needs) -> Needs {
        match &self.script {
            Some(script) => of_all.path(&script.path, Access::Read),
            None => of_all,
        }
    }
}
