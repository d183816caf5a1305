//! nbdkit-cc-plugin(3): compiles a plugin from its source when the server is configured, and is
//! that plugin from then on.
//!
//! Runs in the template before the sandbox closes, as the invoking user, whose source, compiler and
//! flags these are. The plugin that comes out is confined as any other in a file.

#![forbid(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use nbdkit_api::{
    Client, Connection, Error, Exports, Isolation, Needs, Open, Plugin, Result, ResultExt,
    ThreadModel, Value, log, programs,
};
use nbdkit_ipc::messages::DebugFlag;

use crate::cabi;

/// The plugin's name.
pub(crate) const NAME: &str = "cc";
/// The compiler, unless `CC` names another one.
const COMPILER: &str = "cc";
/// Its flags, unless `CFLAGS` has others.
const FLAGS: &str = "-g -O2 -fPIC -shared";
/// Where nbdkit's headers are: where "make install" puts them, or in the source tree if it was not
/// make that has built this program.
const HEADERS: &str = match option_env!("NBDKIT_INCLUDEDIR") {
    Some(installed) => installed,
    None => concat!(env!("CARGO_MANIFEST_DIR"), "/../include"),
};
/// Longest source that is read from standard input, bytes.
const MAX_INLINE: u64 = 16 << 20;
/// The version of the interface that a source has to be written to.
const API_VERSION: i32 = 2;

/// The plugin, before and after it has been compiled.
#[derive(Default)]
pub(crate) struct Cc {
    source: Option<Source>,
    compiler: Option<OsString>,
    flags: Option<OsString>,
    extra_flags: Option<OsString>,
    /// For the plugin, in their order.
    parameters: Vec<(String, OsString)>,
    /// For the plugin, whose name is not yet known.
    debug_flags: Vec<DebugFlag>,
    compiled: Option<Box<dyn Plugin>>,
}

/// Where the source is.
enum Source {
    File(PathBuf),
    /// It was read from standard input.
    Inline(Vec<u8>),
}

impl Source {
    fn new(value: Value<'_>) -> Result<Source> {
        if value.as_bytes() != b"-" {
            return Ok(Source::File(value.realpath()?));
        }
        if !nbdkit_api::client::stdio_safe() {
            return Err(Error::msg("inline script is incompatible with -s"));
        }
        let mut text = Vec::new();
        let mut input = io::stdin().take(MAX_INLINE + 1);
        input.read_to_end(&mut text).or_error(|| "cc: read inline script: stdin")?;
        if text.len() as u64 > MAX_INLINE {
            return Err(Error::msg(format!("cc: inline script is longer than {MAX_INLINE} bytes")));
        }
        Ok(Source::Inline(text))
    }
}

/// A directory for the compiler's output, which is removed once that has been loaded.
struct TempDir(PathBuf);

impl TempDir {
    fn new() -> Result<TempDir> {
        let parent = std::env::var_os("TMPDIR").filter(|dir| !dir.is_empty());
        let parent = parent.unwrap_or_else(|| "/tmp".into());
        let parent = std::path::absolute(parent).or_error(|| "absolute path: $TMPDIR")?;
        let path = nix::unistd::mkdtemp(&parent.join("nbdkitccXXXXXX"))
            .or_error(|| format!("mkdtemp: {}", parent.display()))?;
        Ok(TempDir(path))
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            log::error(&format!("could not remove {}: {error}", self.0.display()));
        }
    }
}

impl Cc {
    /// One to be configured. `debug_flags` are those of the command line.
    pub(crate) fn new(debug_flags: &[DebugFlag]) -> Cc {
        Cc { debug_flags: debug_flags.to_vec(), ..Cc::default() }
    }

    fn compiler(&self) -> &OsStr {
        self.compiler.as_deref().unwrap_or(OsStr::new(COMPILER))
    }

    /// Compiles and loads.
    fn compile(&self, source: &Source) -> Result<Box<dyn Plugin>> {
        let dir = TempDir::new()?;
        let path = match source {
            Source::File(path) => path.clone(),
            Source::Inline(text) => {
                let path = dir.0.join("inline.c");
                std::fs::write(&path, text).or_error(|| format!("create: {}", path.display()))?;
                path
            }
        };
        let library = dir.0.join("plugin.so");
        self.run(&path, &library)?;
        let plugin = cabi::load_plugin(path.as_os_str(), &library, &self.debug_flags)?;
        match plugin.file() {
            Some(file) if file.api_version == API_VERSION => Ok(plugin),
            _ => Err(Error::msg(format!(
                "plugin uses the wrong NBDKIT_API_VERSION, it must be {API_VERSION}"
            ))),
        }
    }

    /// Runs the compiler, whose messages go to standard error.
    fn run(&self, source: &Path, library: &Path) -> Result<()> {
        let flags = self.flags.as_deref().unwrap_or(OsStr::new(FLAGS));
        let extra = self.extra_flags.as_deref().unwrap_or_default();
        let mut script = OsString::new();
        for words in [self.compiler(), flags, extra, OsStr::new("\"$1\" -o \"$2\"")] {
            script.push(words);
            script.push(" ");
        }
        nbdkit_api::debug!(
            "cc: {} with $1={} $2={}",
            script.display(),
            source.display(),
            library.display()
        );
        let errors = io::stderr().as_fd().try_clone_to_owned().or_error(|| "dup: stderr")?;
        let mut command = Command::new("/bin/sh");
        command.arg("-c").arg(script).arg("sh").arg(source).arg(library);
        command.stdin(Stdio::null()).stdout(Stdio::from(errors));
        for variable in ["C_INCLUDE_PATH", "CPLUS_INCLUDE_PATH"] {
            command.env(variable, include_path(std::env::var_os(variable)));
        }
        let compiler = self.compiler().display().to_string();
        let ended = programs::start(&mut command).and_then(|mut program| program.wait());
        let status = ended.map_err(|error| Error::io(format!("cannot run {compiler}"), &error))?;
        match (status.code(), status.signal()) {
            (Some(0), _) => Ok(()),
            (Some(127), _) => Err(Error::msg(format!(
                "{compiler}: command failed with exit code 127: \
                 is it installed? (Debian has a compiler in the package gcc)"
            ))),
            (Some(code), _) => {
                Err(Error::msg(format!("{compiler}: command failed with exit code {code}")))
            }
            (None, signal) => {
                let signal = signal.unwrap_or_default();
                Err(Error::msg(format!("{compiler}: command was killed by signal {signal}")))
            }
        }
    }

    fn compiled(&self) -> Result<&dyn Plugin> {
        self.compiled.as_deref().ok_or_else(|| Error::msg("cc: nothing has been compiled"))
    }
}

/// The value of `C_INCLUDE_PATH` with our headers at the end, which the user's own come before.
fn include_path(value: Option<OsString>) -> OsString {
    match value.filter(|value| !value.is_empty()) {
        Some(mut value) => {
            value.push(":");
            value.push(HEADERS);
            value
        }
        None => HEADERS.into(),
    }
}

impl Plugin for Cc {
    fn name(&self) -> &str {
        NAME
    }

    /// Whatever a plugin may have: which ones it does have is not known before it is compiled.
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
            "cleanup",
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
        Some("nbdkit C compiler plugin")
    }

    fn config_help(&self) -> Option<&str> {
        Some(
            "[script=]<FILENAME>   (required) The C source to compile, or \"-\".\n\
             CC=<CC>                          C compiler.\n\
             CFLAGS=<CFLAGS>                  C compiler flags.\n\
             EXTRA_CFLAGS=<CFLAGS>            Extra C compiler flags.\n\
             [other arguments may be used by the plugin that you load]",
        )
    }

    fn config(&mut self, key: &str, value: Value<'_>) -> Result<()> {
        match (key, &self.source) {
            ("script", None) => self.source = Some(Source::new(value)?),
            ("script", Some(_)) => {
                return Err(Error::msg("cc: script parameter must appear only once"));
            }
            (_, None) => {
                return Err(Error::msg("cc: the first parameter must be the C file or \"-\""));
            }
            ("CC", _) => self.compiler = Some(value.to_os_string()),
            ("CFLAGS", _) => self.flags = Some(value.to_os_string()),
            ("EXTRA_CFLAGS", _) => self.extra_flags = Some(value.to_os_string()),
            _ => self.parameters.push((key.to_owned(), value.to_os_string())),
        }
        Ok(())
    }

    fn config_complete(&mut self) -> Result<()> {
        let Some(source) = &self.source else {
            return Err(Error::msg("cc: no C program name (or \"-\") given"));
        };
        let mut plugin = self.compile(source)?;
        for (key, value) in &self.parameters {
            plugin.config(key, Value::new(value))?;
        }
        plugin.config_complete()?;
        self.compiled = Some(plugin);
        Ok(())
    }

    fn max_thread_model(&self) -> ThreadModel {
        self.compiled.as_ref().map_or(ThreadModel::Parallel, |plugin| plugin.max_thread_model())
    }

    fn thread_model(&self) -> Result<ThreadModel> {
        match &self.compiled {
            Some(plugin) => plugin.thread_model(),
            None => Ok(ThreadModel::SerializeConnections),
        }
    }

    fn get_ready(&mut self) -> Result<()> {
        self.compiled.as_mut().map_or(Ok(()), |plugin| plugin.get_ready())
    }

    fn after_fork(&self) -> Result<()> {
        self.compiled()?.after_fork()
    }

    fn warm_up(&self) -> Result<()> {
        self.compiled()?.warm_up()
    }

    fn cleanup(&self) {
        if let Some(plugin) = &self.compiled {
            plugin.cleanup();
        }
    }

    fn unload(&self) {
        if let Some(plugin) = &self.compiled {
            plugin.unload();
        }
    }

    fn dump_plugin(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "CC={COMPILER}\nCFLAGS={FLAGS}")
    }

    fn needs(&self, readonly: bool) -> Needs {
        self.compiled.as_ref().map_or_else(Needs::undeclared, |plugin| plugin.needs(readonly))
    }

    fn checked_needs(&self, readonly: bool) -> Result<Needs> {
        self.compiled()?.checked_needs(readonly)
    }

    fn isolation(&self) -> Isolation {
        self.compiled.as_ref().map_or(Isolation::Connection, |plugin| plugin.isolation())
    }

    fn default_isolation(&self) -> Isolation {
        self.compiled.as_ref().map_or(Isolation::Shared, |plugin| plugin.default_isolation())
    }

    fn temporary(&self) -> Vec<PathBuf> {
        self.compiled.as_ref().map_or_else(Vec::new, |plugin| plugin.temporary())
    }

    /// A source from standard input cannot be read a second time.
    fn keeps_state(&self) -> bool {
        matches!(self.source, Some(Source::Inline(_)))
            || self.compiled.as_ref().is_some_and(|plugin| plugin.keeps_state())
    }

    fn preconnect(&self, client: &Arc<Client>, readonly: bool) -> Result<()> {
        self.compiled()?.preconnect(client, readonly)
    }

    fn list_exports(
        &self,
        client: &Arc<Client>,
        readonly: bool,
        exports: &mut Exports,
    ) -> Result<()> {
        self.compiled()?.list_exports(client, readonly, exports)
    }

    fn default_export(&self, client: &Arc<Client>, readonly: bool) -> Result<Option<String>> {
        self.compiled()?.default_export(client, readonly)
    }

    fn open(&self, open: &Open<'_>) -> Result<Box<dyn Connection>> {
        self.compiled()?.open(open)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_source_comes_first_and_once() {
        let why = |result: Result<()>| result.unwrap_err().message().to_owned();
        let mut cc = Cc::new(&[]);
        let expected = "cc: the first parameter must be the C file or \"-\"";
        assert_eq!(why(cc.config("CC", Value::new("gcc"))), expected);
        let expected = "cc: no C program name (or \"-\") given";
        assert_eq!(why(cc.config_complete()), expected);
        cc.config("script", Value::new("/dev/null")).unwrap();
        let expected = "cc: script parameter must appear only once";
        assert_eq!(why(cc.config("script", Value::new("/dev/null"))), expected);
        cc.config("CC", Value::new("exit 3;")).unwrap();
        assert_eq!(why(cc.config_complete()), "exit 3;: command failed with exit code 3");
        assert!(cc.compiled().is_err());
    }

    #[test]
    fn a_users_own_headers_come_before_ours() {
        assert_eq!(include_path(None), HEADERS);
        assert_eq!(include_path(Some("".into())), HEADERS);
        assert_eq!(include_path(Some("/a:/b".into())), format!("/a:/b:{HEADERS}").as_str());
    }
}
