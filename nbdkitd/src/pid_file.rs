//! The pid file: one line. An old one is overwritten, and it stays when the server ends. nbdkit(1),
//! `-P`.
//!
//! It is written by the user who started the server, often root, in a directory that others may
//! write to. So symbolic links are followed only if root or this user has created them, and only a
//! regular file is written to, by root only its own without other hard links: a FIFO would block
//! the start, and another user's link would make root overwrite a file that its creator cannot
//! write.

#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Component, Path};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat, renameat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};
use nix::unistd::{UnlinkatFlags, geteuid, unlinkat};

use crate::made::MadeFile;

/// As many links as the kernel follows. path_resolution(7).
const MOST_LINKS: u32 = 40;

/// Writes the pid file. It appears with its content, since scripts wait for it to appear, unless
/// its directory takes no new files. Returns the file, unless something was there before.
///
/// # Errors
/// ELOOP: another user's symbolic link. EINVAL: no regular file. Else those of openat(2) and
/// write(2).
pub(crate) fn write(path: &Path) -> io::Result<Option<MadeFile>> {
    let line = format!("{}\n", std::process::id());
    let (directory, name) = resolve(path)?;
    let found = match fstatat(&directory, &*name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(found) => Some(found),
        Err(Errno::ENOENT) => None,
        Err(errno) => return Err(errno.into()),
    };
    if found.as_ref().is_some_and(|found| !is_regular(found)) {
        return Err(io::Error::other("not a regular file"));
    }
    let mut beside = name.clone();
    beside.push(format!(".{}", std::process::id()));
    let new = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
    let mode = Mode::from_bits_truncate(0o644);
    match openat(&directory, &*beside, new, mode) {
        Ok(fd) => {
            let renamed = File::from(fd)
                .write_all(line.as_bytes())
                .and_then(|()| Ok(renameat(&directory, &*beside, &directory, &*name)?));
            if let Err(error) = renamed {
                let _ = unlinkat(&directory, &*beside, UnlinkatFlags::NoRemoveDir);
                return Err(error);
            }
            Ok(MadeFile::at(path))
        }
        Err(errno) if found.is_none() => Err(errno.into()),
        Err(_) => overwrite(&directory, &name, &line).map(|()| None),
    }
}

/// Overwrites a file in a directory that takes no new ones.
fn overwrite(directory: &OwnedFd, name: &OsStr, line: &str) -> io::Result<()> {
    // Nor a FIFO that was created since.
    let flags = OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let fd = openat(directory, name, flags | OFlag::O_CLOEXEC, Mode::empty())?;
    let found = fstat(&fd)?;
    if !is_regular(&found) {
        return Err(io::Error::other("not a regular file"));
    }
    if geteuid().is_root() && (found.st_nlink > 1 || found.st_uid != 0) {
        return Err(io::Error::other("another user's file, or one with another name"));
    }
    let mut file = File::from(fd);
    file.set_len(0)?;
    file.write_all(line.as_bytes())
}

fn is_regular(found: &FileStat) -> bool {
    SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT == SFlag::S_IFREG
}

/// The directory of a path, and the last name, which is no symbolic link.
fn resolve(path: &Path) -> nix::Result<(OwnedFd, OsString)> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let open = |start: &str| nix::fcntl::open(start, flags, Mode::empty());
    let mut directory = open(if path.is_absolute() { "/" } else { "." })?;
    let mut names = names(path);
    let mut links = 0;
    while let Some(name) = names.pop_front() {
        let found = match fstatat(&directory, &*name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Err(Errno::ENOENT) if names.is_empty() => return Ok((directory, name)),
            found => found?,
        };
        if SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT == SFlag::S_IFLNK {
            links += 1;
            if links > MOST_LINKS || ![0, geteuid().as_raw()].contains(&found.st_uid) {
                return Err(Errno::ELOOP);
            }
            let target = readlinkat(&directory, &*name)?;
            let target = Path::new(&target);
            if target.is_absolute() {
                directory = open("/")?;
            }
            let rest = std::mem::replace(&mut names, self::names(target));
            names.extend(rest);
        } else if names.is_empty() {
            return Ok((directory, name));
        } else {
            directory = openat(&directory, &*name, flags, Mode::empty())?;
        }
    }
    // The path ends in a directory.
    Err(Errno::EISDIR)
}

fn names(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, lchown, symlink};

    struct Directory(std::path::PathBuf);

    impl Directory {
        fn new(name: &str) -> Directory {
            let name = format!("nbdkitd-{name}-{}", std::process::id());
            let path = std::env::temp_dir().join(name);
            std::fs::create_dir(&path).unwrap();
            Directory(path)
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            std::fs::remove_dir_all(&self.0).unwrap();
        }
    }

    fn ours() -> String {
        format!("{}\n", std::process::id())
    }

    #[test]
    fn a_new_file_an_old_one_and_what_ones_own_links_lead_to_are_written() {
        let directory = Directory::new("pid-file");
        let (pid, link) = (directory.0.join("pid"), directory.0.join("link"));
        for _ in 0..2 {
            assert!(write(&pid).unwrap().is_some());
            assert_eq!(std::fs::read_to_string(&pid).unwrap(), ours());
            std::fs::write(&pid, "old\n").unwrap();
        }
        symlink(&directory.0, directory.0.join("again")).unwrap();
        symlink("./again/again/pid", &link).unwrap();
        write(&link).unwrap();
        assert_eq!(std::fs::read_to_string(&pid).unwrap(), ours());
        assert!(link.is_symlink());
        assert_eq!(std::fs::read_dir(&directory.0).unwrap().count(), 3);
        symlink("loop", directory.0.join("loop")).unwrap();
        let error = write(&directory.0.join("loop")).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ELOOP));
        let error = write(&directory.0.join("no/pid")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_fifo_is_neither_waited_for_nor_replaced() {
        let directory = Directory::new("pid-fifo");
        let path = directory.0.join("pid");
        nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap();
        assert_eq!(write(&path).unwrap_err().to_string(), "not a regular file");
        assert!(write(&directory.0).is_err());
        let made = OFlag::O_PATH | OFlag::O_CLOEXEC;
        let parent = nix::fcntl::open(&directory.0, made, Mode::empty()).unwrap();
        assert!(overwrite(&parent, OsStr::new("pid"), "x").is_err());
    }

    #[test]
    fn links_of_others_lead_nowhere() {
        if !geteuid().is_root() {
            return eprintln!("SKIPPED: takes root");
        }
        let directory = Directory::new("pid-link");
        std::fs::set_permissions(&directory.0, std::fs::Permissions::from_mode(0o777)).unwrap();
        let precious = directory.0.join("precious");
        std::fs::write(&precious, "precious").unwrap();
        std::fs::create_dir(directory.0.join("precious.d")).unwrap();
        let (link, way) = (directory.0.join("pid"), directory.0.join("way"));
        symlink(&precious, &link).unwrap();
        symlink("precious.d", &way).unwrap();
        for link in [&link, &way] {
            lchown(link, Some(65534), Some(65534)).unwrap();
        }
        for path in [&link, &way.join("pid")] {
            assert_eq!(write(path).unwrap_err().raw_os_error(), Some(libc::ELOOP));
        }
        assert_eq!(std::fs::read_to_string(&precious).unwrap(), "precious");
        assert_eq!(std::fs::read_dir(directory.0.join("precious.d")).unwrap().count(), 0);
        // Where no new file can be made, a hard link is not written to.
        std::fs::hard_link(&precious, directory.0.join("hard")).unwrap();
        let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
        let parent = nix::fcntl::open(&directory.0, flags, Mode::empty()).unwrap();
        assert!(overwrite(&parent, OsStr::new("hard"), "x").is_err());
        assert_eq!(std::fs::read_to_string(&precious).unwrap(), "precious");
    }
}
