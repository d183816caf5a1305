//! What is served, and opening it for a client: the only place that looks at export names.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nbdkit_api::exports::MAX_EXPORTS;
use nbdkit_api::{Access, Errno, Error, Needs, Result, ResultExt};
use nix::dir::Dir;
use nix::fcntl::{AT_FDCWD, AtFlags, FcntlArg, OFlag, fcntl, open, openat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};

use super::syscall;

/// What the parameters asked for.
#[derive(Debug)]
pub(super) enum What {
    /// An absolute path.
    File(PathBuf),
    /// An absolute path.
    Directory(PathBuf),
    /// The number of an inherited descriptor.
    Fd(i32),
    /// The number of an inherited descriptor.
    DirFd(i32),
}

impl What {
    /// The parameter's name.
    pub(super) fn key(&self) -> &'static str {
        match self {
            What::File(_) => "file",
            What::Directory(_) => "dir",
            What::Fd(_) => "fd",
            What::DirFd(_) => "dirfd",
        }
    }
}

/// What is served, checked: it was there, and of the right type, when the server started.
#[derive(Debug)]
pub(super) enum Source {
    File(PathBuf),
    /// The directory and its path, for messages and for the sandbox.
    Directory(OwnedFd, PathBuf),
    Descriptor(Opened),
}

/// An open file.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) file: File,
    /// For messages.
    pub(crate) name: String,
    pub(crate) writable: bool,
    pub(crate) is_block_device: bool,
}

/// The only types of file that can be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Type {
    Regular,
    BlockDevice,
}

fn type_of(stat: &FileStat) -> Option<Type> {
    match SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT {
        SFlag::S_IFREG => Some(Type::Regular),
        SFlag::S_IFBLK => Some(Type::BlockDevice),
        _ => None,
    }
}

fn is_directory(stat: &FileStat) -> bool {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR
}

fn wrong_type(name: &Path) -> Error {
    Error::msg(format!("file is not regular or block device: {}", name.display()))
}

impl Source {
    /// Checks what is to be served.
    ///
    /// # Errors
    /// It is not there or of a type that cannot be served.
    pub(super) fn new(what: &What) -> Result<Source> {
        match what {
            What::File(path) => {
                let stat = fstatat(AT_FDCWD, path, AtFlags::empty())
                    .or_error(|| format!("stat: {}", path.display()))?;
                if is_directory(&stat) {
                    return Err(Error::msg(format!(
                        "use dir= to serve files within {}",
                        path.display()
                    )));
                }
                type_of(&stat).ok_or_else(|| wrong_type(path))?;
                Ok(Source::File(path.clone()))
            }
            What::Directory(path) => {
                let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
                match open(path, flags, Mode::empty()) {
                    Ok(fd) => Ok(Source::Directory(fd, path.clone())),
                    Err(Errno::ENOTDIR) => {
                        Err(Error::msg(format!("expecting a directory: {}", path.display())))
                    }
                    Err(errno) => Err(Error::os(format!("open: {}", path.display()), errno)),
                }
            }
            What::Fd(number) => Source::descriptor(*number),
            What::DirFd(number) => {
                let fd = syscall::duplicate(*number).or_error(|| format!("dirfd={number}"))?;
                let stat = fstat(&fd).or_error(|| format!("fstat: dirfd={number}"))?;
                if !is_directory(&stat) {
                    return Err(Error::msg(format!("dirfd is not a directory: dirfd={number}")));
                }
                let link = PathBuf::from(format!("/proc/self/fd/{}", raw(&fd)));
                // The sandbox opens paths; a directory that has none any more is still found by the link.
                let path = std::fs::read_link(&link).ok().filter(|path| path.is_dir());
                Ok(Source::Directory(fd, path.unwrap_or(link)))
            }
        }
    }

    fn descriptor(number: i32) -> Result<Source> {
        let name = format!("fd={number}");
        let fd = syscall::duplicate(number).or_error(|| name.clone())?;
        let stat = fstat(&fd).or_error(|| format!("fstat: {name}"))?;
        let found = type_of(&stat)
            .ok_or_else(|| Error::msg(format!("fd is not regular or block device: {name}")))?;
        let flags = fcntl(&fd, FcntlArg::F_GETFL).or_error(|| format!("fcntl: {name}"))?;
        let writable = match OFlag::from_bits_truncate(flags) & OFlag::O_ACCMODE {
            OFlag::O_RDONLY => false,
            OFlag::O_RDWR => true,
            _ => {
                return Err(Error::msg(format!("{name}: file descriptor is not open for reading")));
            }
        };
        Ok(Source::Descriptor(Opened {
            file: File::from(fd),
            name,
            writable,
            is_block_device: found == Type::BlockDevice,
        }))
    }

    /// The paths that workers open. Symbolic links of a directory may lead out of it; those that
    /// are there when the server starts are followed, as the sandbox cannot follow later ones.
    /// Whether clients may write is not known yet, so the sandbox grants it.
    pub(super) fn needs(&self) -> Needs {
        match self {
            Source::Descriptor(_) => Needs::nothing(),
            Source::File(path) => Needs::nothing().path(path, Access::Write),
            Source::Directory(dir, path) => {
                let targets = links(dir.as_fd(), path).unwrap_or_default();
                targets
                    .into_iter()
                    .fold(Needs::nothing().path(path, Access::Write), |needs, target| {
                        needs.path(target, Access::Write)
                    })
            }
        }
    }

    /// The names of the files that can be served from a directory, in the directory's order;
    /// `None` if this is no directory. Names that are not UTF-8 cannot be said in NBD.
    pub(super) fn names(&self) -> Option<Result<Vec<String>>> {
        let Source::Directory(dir, path) = self else { return None };
        let names = entries(dir.as_fd(), path).map(|entries| {
            entries
                .filter(|name| {
                    fstatat(dir, Path::new(name), AtFlags::empty())
                        .is_ok_and(|stat| type_of(&stat).is_some())
                })
                .filter_map(|name| name.into_string().ok())
                .take(MAX_EXPORTS)
                .collect()
        });
        Some(names)
    }

    /// Opens the file that `export` stands for, for writing unless `readonly` or if
    /// that is not permitted.
    ///
    /// # Errors
    /// ENOENT for a name that cannot be in the directory; the kernel's.
    pub(super) fn open(&self, export: &str, readonly: bool) -> Result<Opened> {
        match self {
            Source::File(path) => open_path(path, readonly),
            Source::Directory(dir, _) => {
                check_name(export)?;
                open_at(dir.as_fd(), Path::new(export), readonly)
            }
            Source::Descriptor(opened) => Ok(Opened {
                file: opened.file.try_clone().or_error(|| format!("dup: {}", opened.name))?,
                name: opened.name.clone(),
                ..*opened
            }),
        }
    }
}

fn raw(fd: &OwnedFd) -> i32 {
    std::os::fd::AsRawFd::as_raw_fd(fd)
}

/// Refuses what is not the name of a directory entry.
fn check_name(export: &str) -> Result<()> {
    if export.is_empty() {
        return Err(Error::new(
            Errno::ENOENT,
            "the default export (\"\") cannot be opened with dir=, \
             an export name must be given by the client",
        ));
    }
    if export.contains('/') {
        return Err(Error::new(Errno::ENOENT, "exportname cannot contain /"));
    }
    if matches!(export, "." | "..") {
        return Err(Error::new(
            Errno::ENOENT,
            format!("file is not regular or block device: {export}"),
        ));
    }
    Ok(())
}

/// Opens the regular file or block device at an absolute `path`, for writing unless `readonly` or
/// if that is not permitted.
///
/// # Errors
/// It is of another type; the kernel's.
pub(crate) fn open_path(path: &Path, readonly: bool) -> Result<Opened> {
    open_at(AT_FDCWD, path, readonly)
}

/// Opens `path` beneath `dir`. Messages, which clients may see, do not tell where that is.
fn open_at(dir: BorrowedFd<'_>, path: &Path, readonly: bool) -> Result<Opened> {
    let what = || format!("open: {}", path.display());
    let expected = fstatat(dir, path, AtFlags::empty()).or_error(what)?;
    let expected = type_of(&expected).ok_or_else(|| wrong_type(path))?;
    // Opening has effects of its own on pipes and terminals, so the type was looked at first; should
    // the file have become a pipe in between, O_NONBLOCK prevents waiting for its other end.
    let mut flags = OFlag::O_CLOEXEC | OFlag::O_NOCTTY;
    if expected == Type::Regular {
        flags |= OFlag::O_NONBLOCK;
    }
    let mut writable = !readonly;
    let mut result = Err(Errno::EROFS);
    if writable {
        result = openat(dir, path, flags | OFlag::O_RDWR, Mode::empty());
    }
    if matches!(result, Err(Errno::EACCES | Errno::EPERM | Errno::EROFS | Errno::ETXTBSY)) {
        if writable {
            nbdkit_api::debug!("open O_RDWR failed, falling back to read-only: {}", path.display());
            writable = false;
        }
        result = openat(dir, path, flags | OFlag::O_RDONLY, Mode::empty());
    }
    let fd = result.or_error(what)?;
    let stat = fstat(&fd).or_error(|| format!("fstat: {}", path.display()))?;
    if type_of(&stat) != Some(expected) {
        return Err(wrong_type(path));
    }
    Ok(Opened {
        file: File::from(fd),
        name: path.display().to_string(),
        writable,
        is_block_device: expected == Type::BlockDevice,
    })
}

/// The names in a directory, without `.` and `..`.
fn entries(dir: BorrowedFd<'_>, path: &Path) -> Result<impl Iterator<Item = std::ffi::OsString>> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let opened = Dir::openat(dir, ".", flags, Mode::empty())
        .or_error(|| format!("opendir: {}", path.display()))?;
    Ok(opened
        .into_iter()
        .map_while(std::result::Result::ok)
        .map(|entry| std::ffi::OsStr::from_bytes(entry.file_name().to_bytes()).to_owned())
        .filter(|name| name != "." && name != ".."))
}

/// Where the symbolic links of a directory lead, if they lead to something that can be served.
fn links(dir: BorrowedFd<'_>, path: &Path) -> Result<Vec<PathBuf>> {
    let is_link = |name: &Path| {
        fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW).is_ok_and(|stat| {
            SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFLNK
        })
    };
    let is_served = |name: &Path| {
        fstatat(dir, name, AtFlags::empty()).is_ok_and(|stat| type_of(&stat).is_some())
    };
    Ok(entries(dir, path)?
        .filter(|name| is_link(Path::new(name)) && is_served(Path::new(name)))
        .filter_map(|name| std::fs::canonicalize(path.join(name)).ok())
        .take(MAX_EXPORTS)
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_dir::TestDir;

    fn served(dir: &TestDir) -> Source {
        Source::new(&What::Directory(dir.path().to_owned())).unwrap()
    }

    #[test]
    fn only_files_that_can_be_served_are_listed() {
        let dir = TestDir::new();
        let outside = TestDir::new();
        std::fs::write(dir.join("b"), "b").unwrap();
        std::fs::write(outside.join("target"), "target").unwrap();
        std::fs::create_dir(dir.join("sub")).unwrap();
        nix::unistd::mkfifo(&dir.join("fifo"), Mode::S_IRWXU).unwrap();
        std::os::unix::fs::symlink(outside.join("target"), dir.join("a")).unwrap();
        std::os::unix::fs::symlink("nowhere", dir.join("broken")).unwrap();
        std::fs::write(dir.join(std::ffi::OsStr::from_bytes(b"\xff")), "").unwrap();
        let source = served(&dir);
        let mut names = source.names().unwrap().unwrap();
        names.sort_unstable();
        assert_eq!(names, ["a", "b"]);
        let needs: Vec<_> = source.needs().paths.into_iter().map(|(path, _)| path).collect();
        assert_eq!(needs, [dir.path().to_owned(), outside.join("target")]);
    }

    #[test]
    fn names_that_leave_the_directory_are_refused() {
        let dir = TestDir::new();
        std::fs::write(dir.join("a"), "a").unwrap();
        let source = served(&dir);
        assert!(source.open("a", false).is_ok());
        for name in ["", ".", "..", "../a", "/etc/passwd", "a/", "./a", "a\0b"] {
            assert!(source.open(name, true).is_err(), "{name:?}");
        }
    }

    #[test]
    fn a_pipe_is_refused_without_waiting_for_its_other_end() {
        let dir = TestDir::new();
        nix::unistd::mkfifo(&dir.join("fifo"), Mode::S_IRWXU).unwrap();
        let why = served(&dir).open("fifo", true).unwrap_err();
        assert!(why.message().starts_with("file is not regular or block device: "));
    }

    #[test]
    fn a_path_that_is_not_utf8_is_served() {
        let dir = TestDir::new();
        let path = dir.join(std::ffi::OsStr::from_bytes(b"disk\xff.img"));
        std::fs::write(&path, "data").unwrap();
        let source = Source::new(&What::File(path.clone())).unwrap();
        assert_eq!(source.open("whatever", false).unwrap().file.metadata().unwrap().len(), 4);
        assert_eq!(source.needs().paths, [(path, Access::Write)]);
    }

    #[test]
    fn a_descriptor_open_for_reading_only_is_not_writable() {
        let dir = TestDir::new();
        std::fs::write(dir.join("a"), "a").unwrap();
        let file = File::open(dir.join("a")).unwrap();
        let number = std::os::fd::AsRawFd::as_raw_fd(&file);
        let source = Source::new(&What::Fd(number)).unwrap();
        assert!(!source.open("", false).unwrap().writable);
        assert!(Source::new(&What::DirFd(number)).is_err());
        assert!(Source::new(&What::Fd(99_999)).is_err());
    }

    #[test]
    fn a_directory_descriptor_serves_its_files() {
        let dir = TestDir::new();
        std::fs::write(dir.join("a"), "a").unwrap();
        let fd = File::open(dir.path()).unwrap();
        let source = Source::new(&What::DirFd(std::os::fd::AsRawFd::as_raw_fd(&fd))).unwrap();
        assert_eq!(source.names().unwrap().unwrap(), ["a"]);
        assert!(source.open("a", false).unwrap().writable);
        assert_eq!(source.needs().paths[0].0, dir.path());
    }
}
