//! Opening, in service, the paths that a stack has declared
//! ([`Needs::declare`](crate::Needs::declare)): whatever they lead to at that time.
//!
//! A confined process opens no path itself: it asks the stack's broker ([`serve_through`]). Before
//! the sandbox closes, and where there is no broker (stacks that run programs or code that declares
//! nothing, `--sandbox=compat`, `off`), a path is opened here. What may be opened is decided in one
//! place for both: [`direct`].

#![forbid(unsafe_code)]

pub mod direct;
mod kept;
pub mod parking;

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use nix::fcntl::AT_FDCWD;

use crate::error::{Errno, Error, Result};
use direct::How;
pub use direct::{Failure, Found};
pub use kept::{Kept, Lent, MOST_KEPT};
use parking::FileId;

/// A path that connections open.
#[derive(Debug, Clone)]
pub struct Declared {
    /// Absolute.
    pub path: PathBuf,
    /// Whether it may be opened for writing.
    pub writable: bool,
    /// It is a directory, of which direct children are opened; else it is itself opened.
    pub children: bool,
    /// Whether children may be symbolic links.
    pub links: bool,
    /// A directory that was open before the start: names are looked up there, wherever it has gone
    /// since.
    pub directory: Option<Arc<OwnedFd>>,
    /// What is opened is read and written without the page cache: O_DIRECT, open(2).
    pub direct: bool,
}

impl Declared {
    /// A file.
    pub fn file(path: impl Into<PathBuf>) -> Declared {
        Declared {
            path: path.into(),
            writable: true,
            children: false,
            links: true,
            directory: None,
            direct: false,
        }
    }

    /// A directory. `links`: whether symbolic links in it are followed.
    pub fn directory(path: impl Into<PathBuf>, links: bool) -> Declared {
        Declared { children: true, links, ..Declared::file(path) }
    }

    /// A directory that is open; `path` is for messages and for sandboxes that know paths only.
    pub fn open_directory(fd: OwnedFd, path: impl Into<PathBuf>, links: bool) -> Declared {
        Declared { directory: Some(Arc::new(fd)), ..Declared::directory(path, links) }
    }

    /// The same, opened for reading only.
    #[must_use]
    pub fn read_only(mut self, readonly: bool) -> Declared {
        self.writable &= !readonly;
        self
    }

    /// The same, opened with O_DIRECT.
    #[must_use]
    pub fn direct(self) -> Declared {
        Declared { direct: true, ..self }
    }

    /// Where to look up, and what: the path itself, or the child called `name`.
    fn place(&self, name: Option<&OsStr>) -> Result<(BorrowedFd<'_>, PathBuf), Failure> {
        if name.is_some() != self.children {
            return Err(Failure::Os(Errno::EACCES));
        }
        name.map_or(Ok(()), direct::check_name)?;
        Ok(match (name, &self.directory) {
            (None, _) => (AT_FDCWD, self.path.clone()),
            (Some(name), None) => (AT_FDCWD, self.path.join(name)),
            (Some(name), Some(directory)) => (directory.as_fd(), PathBuf::from(name)),
        })
    }
}

/// Two that lead to the same, opened alike.
impl PartialEq for Declared {
    fn eq(&self, other: &Declared) -> bool {
        let same = match (&self.directory, &other.directory) {
            (Some(one), Some(another)) => Arc::ptr_eq(one, another),
            (None, None) => true,
            _ => false,
        };
        same && self.path == other.path
            && self.children == other.children
            && self.direct == other.direct
    }
}

impl Eq for Declared {}

/// Opens what `declared` leads to now, or its child called `name`, for the process that answers:
/// the broker, and this process where there is none. With `write`, for writing too if that is
/// permitted.
///
/// # Errors
/// It is of another type; EACCES if it is not declared so; the kernel's.
pub fn find(declared: &Declared, name: Option<&OsStr>, write: bool) -> Result<Found, Failure> {
    let (dir, path) = declared.place(name)?;
    let links = name.is_none() || declared.links;
    let how = How { write: write && declared.writable, links, direct: declared.direct };
    direct::file(dir, &path, how)
}

/// A descriptor for listing the directory that `declared` leads to now, as [`find`].
///
/// # Errors
/// ENOTDIR; EACCES if it is not declared to be one; the kernel's.
pub fn find_directory(declared: &Declared) -> Result<OwnedFd, Failure> {
    if !declared.children {
        return Err(Failure::Os(Errno::EACCES));
    }
    match &declared.directory {
        Some(directory) => direct::directory(directory.as_fd(), Path::new(".")),
        None => direct::directory(AT_FDCWD, &declared.path),
    }
}

/// An open regular file or block device.
#[derive(Debug)]
pub struct Opened {
    /// The file.
    pub file: Lent,
    /// For messages: the path, or the name of the directory's child.
    pub name: String,
    /// It is open for writing too.
    pub writable: bool,
    /// Which of the two it is.
    pub is_block_device: bool,
}

/// Opens what `declared` leads to now, or its child called `name`, for writing unless `readonly` or
/// if that is not permitted. `name` is hostile.
///
/// # Errors
/// It is of another type; the kernel's. Messages, which clients may see, do not tell where the
/// directory is.
pub fn open(declared: &Declared, name: Option<&OsStr>, readonly: bool) -> Result<Opened> {
    let shown = name.map_or(declared.path.as_path(), Path::new);
    let opened = |file: Lent, writable: bool, is_block_device: bool| {
        if !readonly && !writable {
            crate::debug!("open O_RDWR failed, falling back to read-only: {}", shown.display());
        }
        let writable = writable && !readonly;
        Opened { file, name: shown.display().to_string(), writable, is_block_device }
    };
    let service = SERVICE.get();
    let kept = service.map(|service| &service.kept);
    let expected = parking::expected();
    if let Some(kept) = kept {
        let lent = match expected {
            // Wherever its path leads now.
            Some(id) => kept.lend_again(id),
            None if name.is_none() => kept::lend(kept, declared),
            None => None,
        };
        if let Some((lent, writable)) = lent {
            parking::opened(&lent, Some(kept));
            return Ok(opened(lent, writable, false));
        }
    }
    let found = match service {
        Some(service) => service.broker.open(declared, name, !readonly),
        None => find(declared, name, !readonly),
    };
    let is_expected = |found: &Found| expected.is_none_or(|id| FileId::of(&found.file) == Some(id));
    let found = match (found, expected) {
        (Ok(found), _) if is_expected(&found) => Ok(found),
        (_, Some(id)) => {
            let file = kept.and_then(|kept| kept.replaced(id));
            Ok(file.ok_or_else(|| {
                Error::msg(format!("{}: was replaced while its client was idle", shown.display()))
            })?)
        }
        (found, None) => found,
    };
    let Found { file, writable, is_block_device } = found.map_err(|why| why.into_error(shown))?;
    let file = Lent::from(file);
    parking::opened(&file, kept);
    Ok(opened(file, writable, is_block_device))
}

/// A descriptor for listing the directory that `declared` leads to now.
///
/// # Errors
/// It is not a directory; the kernel's.
pub fn list(declared: &Declared) -> Result<OwnedFd> {
    let found = match SERVICE.get() {
        Some(service) => service.broker.list(declared),
        None => find_directory(declared),
    };
    found.map_err(|why| match why {
        Failure::Os(errno) => Error::os(format!("opendir: {}", declared.path.display()), errno),
        Failure::WrongType => {
            Error::msg(format!("expecting a directory: {}", declared.path.display()))
        }
    })
}

/// Who opens paths for a process that may not.
pub trait Broker: Send + Sync {
    /// As [`find`].
    ///
    /// # Errors
    /// Those of [`find`]; EIO if there is no answer.
    fn open(
        &self,
        declared: &Declared,
        name: Option<&OsStr>,
        write: bool,
    ) -> Result<Found, Failure>;

    /// As [`find_directory`].
    ///
    /// # Errors
    /// Those of [`find_directory`]; EIO if there is no answer.
    fn list(&self, declared: &Declared) -> Result<OwnedFd, Failure>;
}

struct Service {
    broker: Box<dyn Broker>,
    kept: Kept,
}

static SERVICE: OnceLock<Service> = OnceLock::new();

/// From now on this process, and its forks, take what `kept` has and ask `broker` for the rest. The
/// first call counts.
pub fn serve_through(broker: Box<dyn Broker>, kept: Kept) {
    let _ = SERVICE.set(Service { broker, kept });
}

/// What was kept, if there is a broker.
pub fn kept() -> Option<&'static Kept> {
    SERVICE.get().map(|service| &service.kept)
}

impl From<File> for Lent {
    fn from(file: File) -> Lent {
        Lent::Own(file)
    }
}

#[cfg(test)]
mod tests;
