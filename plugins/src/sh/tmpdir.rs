//! The `$tmpdir` of sh and eval: made when the plugin is configured, seen by the scripts of all
//! clients, removed with everything in it when the template unloads the plugin.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nbdkit_api::{Access, Needs, Result, ResultExt};

/// A directory that only its owner may enter.
#[derive(Debug)]
pub(crate) struct TempDir {
    path: PathBuf,
    /// The process that made it. Workers hold a copy of this value and must not remove anything.
    owner: u32,
}

impl TempDir {
    /// A fresh directory /tmp/nbdkitXXXXXX.
    pub(crate) fn new() -> Result<TempDir> {
        let path =
            nix::unistd::mkdtemp("/tmp/nbdkitXXXXXX").or_error(|| "mkdtemp: /tmp/nbdkitXXXXXX")?;
        Ok(TempDir { path, owner: std::process::id() })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// That scripts use the directory and it is removed in the end.
    pub(crate) fn needs(&self) -> Needs {
        let needs = Needs::nothing().path(&self.path, Access::Write);
        match self.path.parent() {
            Some(parent) => needs.path(parent, Access::RemoveDirs),
            None => needs,
        }
    }

    /// Whether this is the process that made the directory.
    pub(crate) fn is_owner(&self) -> bool {
        self.owner == std::process::id()
    }

    /// Puts a script there, readable and executable for its owner.
    pub(crate) fn add_script(&self, name: &str, text: &[u8]) -> Result<PathBuf> {
        let path = self.path.join(name);
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o500)
            .open(&path)
            .and_then(|mut file| file.write_all(text))
            .or_error(|| format!("create: {}", path.display()))?;
        Ok(path)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        if self.is_owner()
            && let Err(error) = std::fs::remove_dir_all(&self.path)
        {
            nbdkit_api::error!("could not remove {}: {error}", self.path.display());
        }
    }
}
