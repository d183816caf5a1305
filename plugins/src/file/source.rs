//! What is served, and opening it for a client: the only place that looks at export names.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nbdkit_api::exports::MAX_EXPORTS;
use nbdkit_api::paths::direct::{Type, type_of, wrong_type};
use nbdkit_api::paths::{self, Declared, Lent, Opened};
use nbdkit_api::{Errno, Error, Needs, Result, ResultExt, inherited};
use nix::dir::{Dir, Type as EntryType};
use nix::fcntl::{AT_FDCWD, AtFlags, FcntlArg, OFlag, fcntl, open};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};

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
    File(Declared),
    Directory(Declared),
    /// An open file, and whether it is writable and a block device.
    Descriptor(File, String, bool, bool),
}

fn is_directory(stat: &FileStat) -> bool {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR
}

impl Source {
    /// Checks what is to be served. `links`: whether symbolic links in a directory are followed.
    ///
    /// # Errors
    /// It is not there or of a type that cannot be served.
    pub(super) fn new(what: &What, links: bool) -> Result<Source> {
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
                Ok(Source::File(Declared::file(path)))
            }
            What::Directory(path) => {
                let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
                match open(path, flags, Mode::empty()) {
                    // It is looked up again whenever a client comes.
                    Ok(_) => Ok(Source::Directory(Declared::directory(path, links))),
                    Err(Errno::ENOTDIR) => {
                        Err(Error::msg(format!("expecting a directory: {}", path.display())))
                    }
                    Err(errno) => Err(Error::os(format!("open: {}", path.display()), errno)),
                }
            }
            What::Fd(number) => Source::descriptor(*number),
            What::DirFd(number) => {
                let fd = inherited::duplicate(*number).or_error(|| format!("dirfd={number}"))?;
                let stat = fstat(&fd).or_error(|| format!("fstat: dirfd={number}"))?;
                if !is_directory(&stat) {
                    return Err(Error::msg(format!("dirfd is not a directory: dirfd={number}")));
                }
                let link = PathBuf::from(format!("/proc/self/fd/{}", raw(&fd)));
                // The sandbox opens paths; a directory that has none any more is still found by the
                // link.
                let path = std::fs::read_link(&link).ok().filter(|path| path.is_dir());
                let path = path.unwrap_or(link);
                Ok(Source::Directory(Declared::open_directory(fd, path, links)))
            }
        }
    }

    fn descriptor(number: i32) -> Result<Source> {
        let name = format!("fd={number}");
        let fd = inherited::duplicate(number).or_error(|| name.clone())?;
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
        let is_block_device = found == Type::BlockDevice;
        Ok(Source::Descriptor(File::from(fd), name, writable, is_block_device))
    }

    /// What workers open; `direct`: also by [`open_direct`](Self::open_direct).
    pub(super) fn needs(&self, readonly: bool, direct: bool) -> Needs {
        match self {
            Source::Descriptor(..) => Needs::nothing(),
            Source::File(declared) | Source::Directory(declared) => {
                let declared = declared.clone().read_only(readonly);
                let needs = Needs::nothing().declare(declared.clone());
                if direct { needs.declare(declared.direct()) } else { needs }
            }
        }
    }

    /// The names of the files that can be served from a directory, in the directory's order;
    /// `None` if this is no directory. Names that are not UTF-8 cannot be sent in NBD.
    ///
    /// # Errors
    /// It cannot be read.
    pub(super) fn names(&self) -> Option<Result<Vec<String>>> {
        let Source::Directory(declared) = self else { return None };
        Some(names(declared))
    }

    /// Opens the file that `export` stands for, for writing unless `readonly` or if
    /// that is not permitted.
    ///
    /// # Errors
    /// ENOENT for a name that cannot be in the directory; the kernel's.
    pub(super) fn open(&self, export: &str, readonly: bool) -> Result<Opened> {
        match self {
            Source::File(declared) => paths::open(declared, None, readonly),
            Source::Directory(declared) => {
                check_name(export)?;
                paths::open(declared, Some(OsStr::new(export)), readonly)
            }
            Source::Descriptor(file, name, writable, is_block_device) => Ok(Opened {
                file: file.try_clone().or_error(|| format!("dup: {name}"))?.into(),
                name: name.clone(),
                writable: *writable,
                is_block_device: *is_block_device,
            }),
        }
    }

    /// What was just `opened` by [`open`](Self::open), once more with O_DIRECT. Not if it is a
    /// descriptor: another's open file description stays as it is.
    ///
    /// That takes two descriptions, for O_DIRECT is a flag of one, and parts of blocks need the
    /// page cache. A confined process cannot open a descriptor anew, so the broker is asked for
    /// this one; the other is one that the template has kept, unless it is of a directory's file or
    /// of a block device.
    ///
    /// # Errors
    /// EINVAL if that is not possible; ESTALE if the path leads to another file by now; those of
    /// [`open`](Self::open).
    pub(super) fn open_direct(&self, export: &str, opened: &Opened) -> Result<Lent> {
        let readonly = !opened.writable;
        let direct = match self {
            Source::File(declared) => paths::open(&declared.clone().direct(), None, readonly),
            Source::Directory(declared) => {
                check_name(export)?;
                paths::open(&declared.clone().direct(), Some(OsStr::new(export)), readonly)
            }
            Source::Descriptor(_, name, ..) => {
                Err(Error::new(Errno::EINVAL, format!("{name} cannot be opened with O_DIRECT")))
            }
        };
        let direct = direct.map_err(|why| match why.errno() {
            Errno::EINVAL => why.context("no O_DIRECT, only through the page cache"),
            _ => why,
        })?;
        let identity = |file: &File| {
            let stat = fstat(file).or_error(|| format!("fstat: {}", opened.name))?;
            Ok::<_, Error>((stat.st_dev, stat.st_ino))
        };
        if identity(&direct.file)? != identity(&opened.file)? || direct.writable != opened.writable
        {
            let why = format!("{} was replaced while it was opened", opened.name);
            return Err(Error::new(Errno::ESTALE, why));
        }
        Ok(direct.file)
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

/// See [`Source::names`]; `declared` is a directory.
///
/// # Errors
/// It cannot be read.
pub(crate) fn names(declared: &Declared) -> Result<Vec<String>> {
    let failed = |errno| Error::os(format!("opendir: {}", declared.path.display()), errno);
    let directory = paths::list(declared)?;
    let dir = directory.try_clone().or_error(|| format!("dup: {}", declared.path.display()))?;
    Ok(Dir::from_fd(dir)
        .map_err(failed)?
        .into_iter()
        .map_while(std::result::Result::ok)
        .map(|entry| {
            (OsStr::from_bytes(entry.file_name().to_bytes()).to_owned(), entry.file_type())
        })
        .filter(|(name, kind)| is_served(declared, &directory, name, *kind))
        .filter_map(|(name, _)| name.into_string().ok())
        .take(MAX_EXPORTS)
        .collect())
}

/// Whether an entry of a directory leads to something that can be served.
fn is_served(
    declared: &Declared,
    directory: &OwnedFd,
    name: &OsString,
    kind: Option<EntryType>,
) -> bool {
    match kind {
        Some(EntryType::File | EntryType::BlockDevice) => return true,
        Some(EntryType::Symlink) if declared.links => {}
        // Not every file system tells.
        None => {}
        Some(_) => return false,
    }
    let flags = if declared.links { AtFlags::empty() } else { AtFlags::AT_SYMLINK_NOFOLLOW };
    match fstatat(directory, Path::new(name), flags) {
        Ok(stat) => type_of(&stat).is_some(),
        // Root without -u may be kept from looking, but not from opening.
        Err(Errno::EACCES) => paths::open(declared, Some(name), true).is_ok(),
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_dir::TestDir;

    fn served(dir: &TestDir) -> Source {
        Source::new(&What::Directory(dir.path().to_owned()), true).unwrap()
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
        std::fs::write(dir.join(OsStr::from_bytes(b"\xff")), "").unwrap();
        let source = served(&dir);
        let mut names = source.names().unwrap().unwrap();
        names.sort_unstable();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(source.needs(false, false).declared, [Declared::directory(dir.path(), true)]);
        let unlinked = Source::new(&What::Directory(dir.path().to_owned()), false).unwrap();
        assert_eq!(unlinked.names().unwrap().unwrap(), ["b"]);
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
        let path = dir.join(OsStr::from_bytes(b"disk\xff.img"));
        std::fs::write(&path, "data").unwrap();
        let source = Source::new(&What::File(path.clone()), true).unwrap();
        assert_eq!(source.open("whatever", false).unwrap().file.metadata().unwrap().len(), 4);
        let needs = [source.needs(false, false), source.needs(true, false)];
        assert!(needs.iter().all(|needs| needs.declared[0].path == path));
        assert_eq!(needs.map(|needs| needs.writes()), [true, false]);
    }

    #[test]
    fn a_descriptor_open_for_reading_only_is_not_writable() {
        let dir = TestDir::new();
        std::fs::write(dir.join("a"), "a").unwrap();
        let file = File::open(dir.join("a")).unwrap();
        let number = std::os::fd::AsRawFd::as_raw_fd(&file);
        let source = Source::new(&What::Fd(number), true).unwrap();
        assert!(!source.open("", false).unwrap().writable);
        assert!(Source::new(&What::DirFd(number), true).is_err());
        assert!(Source::new(&What::Fd(99_999), true).is_err());
    }

    #[test]
    fn a_file_that_was_replaced_is_not_opened_once_more() {
        let dir = TestDir::new();
        std::fs::write(dir.join("a"), "a").unwrap();
        let source = Source::new(&What::File(dir.join("a")), true).unwrap();
        assert_eq!(source.needs(false, true).declared.len(), 2);
        let opened = source.open("", false).unwrap();
        std::fs::write(dir.join("b"), "b").unwrap();
        std::fs::rename(dir.join("b"), dir.join("a")).unwrap();
        let errno = source.open_direct("", &opened).unwrap_err().errno();
        // EINVAL: this file system has no O_DIRECT.
        assert!(matches!(errno, Errno::ESTALE | Errno::EINVAL), "{errno}");
    }

    #[test]
    fn a_directory_descriptor_serves_its_files() {
        let dir = TestDir::new();
        std::fs::write(dir.join("a"), "a").unwrap();
        let fd = File::open(dir.path()).unwrap();
        let source = Source::new(&What::DirFd(std::os::fd::AsRawFd::as_raw_fd(&fd)), true).unwrap();
        assert_eq!(source.names().unwrap().unwrap(), ["a"]);
        assert!(source.open("a", false).unwrap().writable);
        assert_eq!(source.needs(false, false).declared[0].path, dir.path());
    }
}
