//! Plugins in files, which our server and Debian's nbdkit load.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::Path;

/// A plugin that Debian's nbdkit brings. It serves a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loaded {
    /// Its file plugin, in C.
    File,
    /// A script, for its Python plugin.
    Python,
}

/// Where Debian has them.
const PLUGINS: &str = "/usr/lib/x86_64-linux-gnu/nbdkit/plugins";
/// Reads of the file whose path is its parameter.
const SCRIPT: &str = "import os
API_VERSION = 2
def config(key, value):
    global disk
    disk = os.open(value, os.O_RDONLY)
def thread_model():
    import nbdkit
    return nbdkit.THREAD_MODEL_PARALLEL
def open(readonly):
    return 1
def get_size(handle):
    return os.fstat(disk).st_size
def pread(handle, buffer, offset, flags):
    os.preadv(disk, [buffer], offset)
";

impl Loaded {
    /// The plugin and its parameters, for serving `file`. A script is written to `dir`.
    pub(crate) fn arguments(self, dir: &Path, file: &Path) -> io::Result<Vec<OsString>> {
        Ok(match self {
            Loaded::File => {
                vec![format!("{PLUGINS}/nbdkit-file-plugin.so").into(), file.into()]
            }
            Loaded::Python => {
                let script = dir.join("script.py");
                fs::write(&script, SCRIPT)?;
                let parameters = [("script", script.as_path()), ("file", file)];
                let parameters = parameters.map(|(key, path)| format!("{key}={}", path.display()));
                [format!("{PLUGINS}/nbdkit-python-plugin.so")]
                    .into_iter()
                    .chain(parameters)
                    .map(Into::into)
                    .collect()
            }
        })
    }
}
