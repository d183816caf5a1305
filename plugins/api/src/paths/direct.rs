//! What may be opened for a client: a regular file or a block device, without waiting for anybody.
//! One rule, for the broker and for processes that open by themselves.

#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};

use crate::error::{Errno, Error, Result};

/// An open regular file or block device.
#[derive(Debug)]
pub struct Found {
    /// The file.
    pub file: File,
    /// It is open for writing too.
    pub writable: bool,
    /// Which of the two it is.
    pub is_block_device: bool,
}

/// Why there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The kernel's reason.
    Os(Errno),
    /// It is neither of the two.
    WrongType,
}

impl Failure {
    /// The error of opening what is shown as `name`.
    pub fn into_error(self, name: &Path) -> Error {
        match self {
            Failure::Os(errno) => Error::os(format!("open: {}", name.display()), errno),
            Failure::WrongType => wrong_type(name),
        }
    }
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Failure {
        Failure::Os(errno)
    }
}

/// The error of what cannot be served.
pub fn wrong_type(name: &Path) -> Error {
    Error::msg(format!("file is not regular or block device: {}", name.display()))
}

/// The only types of file that can be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    /// A regular file.
    Regular,
    /// A block device.
    BlockDevice,
}

/// Which of them a file is.
pub fn type_of(stat: &FileStat) -> Option<Type> {
    match SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT {
        SFlag::S_IFREG => Some(Type::Regular),
        SFlag::S_IFBLK => Some(Type::BlockDevice),
        _ => None,
    }
}

/// Refuses what is not the name of a direct child.
///
/// # Errors
/// ENOENT, ENAMETOOLONG.
pub fn check_name(name: &OsStr) -> Result<(), Failure> {
    /// NAME_MAX, pathname(7).
    const MAX_NAME: usize = 255;
    let bytes = name.as_bytes();
    if bytes.is_empty() || bytes.contains(&b'/') || bytes.contains(&0) {
        return Err(Failure::Os(Errno::ENOENT));
    }
    if matches!(bytes, b"." | b"..") {
        return Err(Failure::WrongType);
    }
    if bytes.len() > MAX_NAME {
        return Err(Failure::Os(Errno::ENAMETOOLONG));
    }
    Ok(())
}

/// The directory at `path` beneath `dir`, for listing it.
///
/// # Errors
/// ENOTDIR; the kernel's.
pub fn directory(dir: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, Failure> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    Ok(openat(dir, path, flags, Mode::empty())?)
}

/// How a file is opened.
#[derive(Debug, Clone, Copy)]
pub struct How {
    /// For writing too, if that is permitted.
    pub write: bool,
    /// It may be a symbolic link.
    pub links: bool,
    /// With O_DIRECT.
    pub direct: bool,
}

/// Opens `path` beneath `dir`.
///
/// # Errors
/// It is of another type; ELOOP for a link; EINVAL if the file system has no O_DIRECT; the
/// kernel's.
pub fn file(dir: BorrowedFd<'_>, path: &Path, how: How) -> Result<Found, Failure> {
    let How { write, links, direct } = how;
    let (look, no_link) = if links {
        (AtFlags::empty(), OFlag::empty())
    } else {
        (AtFlags::AT_SYMLINK_NOFOLLOW, OFlag::O_NOFOLLOW)
    };
    let stat = fstatat(dir, path, look)?;
    if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFLNK {
        return Err(Failure::Os(Errno::ELOOP));
    }
    let expected = type_of(&stat).ok_or(Failure::WrongType)?;
    // Opening has effects of its own on pipes and terminals, so the type was looked at first;
    // should the file have become a pipe in between, O_NONBLOCK prevents waiting for its other end.
    let mut flags = OFlag::O_CLOEXEC | OFlag::O_NOCTTY | no_link;
    if expected == Type::Regular {
        flags |= OFlag::O_NONBLOCK;
    }
    flags.set(OFlag::O_DIRECT, direct);
    let mut writable = write;
    let mut result = Err(Errno::EROFS);
    if write {
        result = openat(dir, path, flags | OFlag::O_RDWR, Mode::empty());
    }
    if matches!(result, Err(Errno::EACCES | Errno::EPERM | Errno::EROFS | Errno::ETXTBSY)) {
        writable = false;
        result = openat(dir, path, flags | OFlag::O_RDONLY, Mode::empty());
    }
    let fd = result?;
    if type_of(&fstat(&fd)?) != Some(expected) {
        return Err(Failure::WrongType);
    }
    let is_block_device = expected == Type::BlockDevice;
    Ok(Found { file: File::from(fd), writable, is_block_device })
}
