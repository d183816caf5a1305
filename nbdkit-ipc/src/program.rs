//! Starts a program of this project, with one end of a new channel left open and its number as the
//! argument.

#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::unistd::Pid;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Channel, title};

/// A program to start.
#[derive(Debug, Clone)]
pub struct Program {
    /// Its path.
    pub path: PathBuf,
    /// Its title until it sets another: see [`title`].
    pub title: String,
    /// Whether systemd is not to kill it: see [`title::ROOT_STORAGE_DAEMON`].
    pub spared: bool,
    /// Its working directory, if not the caller's.
    pub directory: Option<PathBuf>,
    /// Its standard error, if not the caller's.
    pub stderr: Option<Arc<OwnedFd>>,
}

impl Program {
    /// Starts it without the variables `without`. Returns its process id and this end of the
    /// channel.
    ///
    /// # Errors
    /// Those of socketpair(2), fork(2) and execve(2).
    pub fn start<S, R>(&self, without: &[&str]) -> io::Result<(Pid, Channel<S, R>)>
    where
        S: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
    {
        let (ours, theirs) = Channel::<S, R>::pair()?;
        let theirs: OwnedFd = theirs.into_fd();
        // This one descriptor crosses exec; nothing else is started before it is closed below.
        fcntl(&theirs, FcntlArg::F_SETFD(FdFlag::empty()))?;
        let mut command = Command::new(&self.path);
        command.arg0(title::room(&self.title, self.spared)).arg(theirs.as_raw_fd().to_string());
        for name in without {
            command.env_remove(name);
        }
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        }
        if let Some(stderr) = &self.stderr {
            command.stderr(stderr.try_clone()?);
        }
        let child = command.spawn()?;
        Ok((Pid::from_raw(child.id().cast_signed()), ours))
    }
}

/// The program `name`, beside the running one or in `libexecdir`. Never found by `PATH`.
pub fn beside_or_in(name: impl AsRef<OsStr>, libexecdir: &Path) -> PathBuf {
    let name = name.as_ref();
    let beside = this_program().and_then(|path| Some(path.parent()?.join(name)));
    match beside {
        Some(path) if path.exists() => path,
        _ => libexecdir.join(name),
    }
}

/// The path of this program. Without /proc, its first argument, if that is a path.
fn this_program() -> Option<PathBuf> {
    let called = || std::env::args_os().next().map(PathBuf::from);
    let is_path = |path: &PathBuf| path.parent() != Some(Path::new(""));
    std::env::current_exe().ok().or_else(|| called().filter(is_path))
}
