//! A directory in which a disk is made, removed when that has been done. What a killed process has
//! left behind is recognised by its lock, which is gone, and removed by the next one.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nbdkit_api::{Error, Result, ResultExt};
use nix::fcntl::OFlag;
use nix::unistd::{geteuid, mkdtemp};

/// What the names of such directories begin with. ondemand lists and opens no name with a dot.
const PREFIX: &str = ".nbdkit-making-";
/// How often a directory is made that another process takes for one left behind, in the moment
/// before it is locked.
const MAX_TRIES: u32 = 20;

/// A directory of this process's own, with nothing in it.
#[derive(Debug)]
pub(crate) struct Workplace {
    path: PathBuf,
    /// Holds the lock.
    _directory: File,
}

/// Opens a directory that is no link.
fn open(path: &Path) -> std::io::Result<File> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
    OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)
}

impl Workplace {
    /// Makes one in `parent`.
    ///
    /// # Errors
    /// The kernel's, with the directory.
    pub(crate) fn new(parent: &Path) -> Result<Workplace> {
        sweep(parent);
        for _ in 0..MAX_TRIES {
            let path = mkdtemp(&parent.join(format!("{PREFIX}XXXXXX")))
                .or_error(|| format!("mkdtemp: {}", parent.display()))?;
            let Ok(directory) = open(&path) else { continue };
            directory.lock().or_error(|| format!("flock: {}", path.display()))?;
            let there = directory.metadata().or_error(|| format!("stat: {}", path.display()))?;
            if there.nlink() > 0 {
                return Ok(Workplace { path, _directory: directory });
            }
        }
        Err(Error::msg(format!("mkdtemp: {}: directories vanish there", parent.display())))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Workplace {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.path) {
            nbdkit_api::error!("could not remove {}: {error}", self.path.display());
        }
    }
}

/// Removes from `parent` what processes have left behind that were killed. Only directories of this
/// user are touched: anybody may make some in /var/tmp.
pub(crate) fn sweep(parent: &Path) {
    let entries = std::fs::read_dir(parent).into_iter().flatten().flatten();
    for entry in entries {
        if !entry.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes()) {
            continue;
        }
        let Ok(directory) = open(&entry.path()) else { continue };
        let ours = directory.metadata().is_ok_and(|it| it.uid() == geteuid().as_raw());
        if ours && directory.try_lock().is_ok() {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}
