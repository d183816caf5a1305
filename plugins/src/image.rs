//! Disk images that a program makes when the server starts, in an unnamed file that all clients
//! read: linuxdisk and iso. And running such programs, for these and for disks that are made when
//! a client comes.
//!
//! The programs and what they read are the user's. Nothing has a name in the temporary directory.

#![forbid(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use nbdkit_api::paths::Opened;
use nbdkit_api::shared::SharedFile;
use nbdkit_api::{
    BlockSize, Blocking, Cache, Client, Connection, Errno, Error, Extents, FileRange, Flags,
    Result, ResultExt, client,
};

use crate::file::disk::{Disk, Hints};
use crate::sh::run::{Sink, attend};

/// Where administrators' programs are, which not every user's `$PATH` names.
const SYSTEM: &str = "/usr/local/sbin:/usr/sbin:/sbin";
/// What is kept of a program's standard output, bytes. It is for people.
const MAX_OUTPUT: usize = 64 << 10;

/// The directories where programs are looked for: `$PATH`, then the administrators'.
fn search_path() -> OsString {
    let mut path =
        std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
    path.push(":");
    path.push(SYSTEM);
    path
}

/// Where the program `name` is, if it is anywhere. A name with a slash is a path.
pub(crate) fn find_program(name: &OsStr) -> Option<PathBuf> {
    let executable = |path: &Path| {
        path.is_file() && nix::unistd::access(path, nix::unistd::AccessFlags::X_OK).is_ok()
    };
    if name.as_encoded_bytes().contains(&b'/') {
        return Some(PathBuf::from(name)).filter(|path| executable(path));
    }
    std::env::split_paths(&search_path()).map(|dir| dir.join(name)).find(|path| executable(path))
}

/// How a program ended that ran.
pub(crate) struct Ended {
    status: ExitStatus,
    /// What it said, on standard error and on standard output if that was not put elsewhere, in
    /// one line.
    pub(crate) words: String,
}

impl Ended {
    pub(crate) fn success(&self) -> bool {
        self.status.success()
    }

    /// That `what` failed, in one line with what it said.
    pub(crate) fn error(&self, what: &str) -> Error {
        let how =
            match (self.status.code(), std::os::unix::process::ExitStatusExt::signal(&self.status))
            {
                (Some(code), _) => format!("{what}: command failed with exit code {code}"),
                (None, signal) => {
                    format!("{what}: command was killed by signal {}", signal.unwrap_or_default())
                }
            };
        Error::new(
            Errno::EIO,
            if self.words.is_empty() { how } else { format!("{how}: {}", self.words) },
        )
    }
}

/// Runs `command`, with standard input and output where the caller has put them, in a search path
/// that has administrators' programs. `package` is the Debian package of a program that is missing,
/// `client` who waits for it: when it has gone the program is killed.
///
/// # Errors
/// It could not be run, or the client has gone.
pub(crate) fn run(command: &mut Command, package: &str, client: Option<&Client>) -> Result<Ended> {
    nbdkit_api::debug!("{command:?}");
    let name = command.get_program().to_owned();
    command.env("PATH", search_path());
    let mut sink = Sink::Buffer(Vec::new(), MAX_OUTPUT);
    let unwanted = || client::check_present(client).is_err();
    let finished =
        attend(command, &[], &mut sink, &unwanted).map_err(|error| match error.kind() {
            ErrorKind::NotFound => missing(&name, package),
            _ => Error::io(format!("cannot run {}", name.display()), &error),
        })?;
    let output = match &sink {
        Sink::Buffer(output, _) => output.as_slice(),
        Sink::Place(_) => &[],
    };
    let words = [one_line(output), one_line(&finished.stderr)];
    let words: Vec<&str> = words.iter().map(String::as_str).filter(|it| !it.is_empty()).collect();
    Ok(Ended { status: finished.status, words: words.join(" ") })
}

/// That a program is not installed.
pub(crate) fn missing(name: &OsStr, package: &str) -> Error {
    let name = name.display();
    Error::new(
        Errno::ENOENT,
        format!("{name} is not installed (Debian has it in the package {package})"),
    )
}

/// Longest text of a program in a message, characters.
const MAX_WORDS: usize = 1000;

/// Text for a message of one line: lines are joined, control characters are dropped, and so is what
/// is too long.
fn one_line(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let joined = lines.collect::<Vec<_>>().join("; ");
    joined.chars().filter(|character| !character.is_control()).take(MAX_WORDS).collect()
}

/// An unnamed file that a program fills, in the temporary directory.
#[derive(Debug)]
pub(crate) struct Image {
    file: File,
    name: &'static str,
    block_size: BlockSize,
}

impl Image {
    /// An empty file. `name` is for messages, `block_size` what clients learn.
    ///
    /// # Errors
    /// It cannot be made.
    pub(crate) fn new(name: &'static str, block_size: BlockSize) -> Result<Image> {
        let file = SharedFile::temporary(name, 0)?;
        let file = file.as_fd().try_clone_to_owned().or_error(|| format!("dup: {name}"))?;
        Ok(Image { file: file.into(), name, block_size })
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// The file as a program's standard input or output.
    ///
    /// # Errors
    /// There are no descriptors.
    pub(crate) fn stdio(&self) -> Result<Stdio> {
        Ok(self.file.try_clone().or_error(|| format!("dup: {}", self.name))?.into())
    }

    /// A client that reads it.
    ///
    /// # Errors
    /// There are no descriptors.
    pub(crate) fn open(&self) -> Result<Box<dyn Connection>> {
        let opened = Opened {
            file: self.file.try_clone().or_error(|| format!("dup: {}", self.name))?.into(),
            name: self.name.to_owned(),
            writable: false,
            is_block_device: false,
        };
        let disk = Disk::new(opened, Hints::default())?;
        Ok(Box::new(Reader { disk, block_size: self.block_size }))
    }
}

/// A client of an image, who may read.
struct Reader {
    disk: Disk,
    block_size: BlockSize,
}

impl Connection for Reader {
    fn size(&self) -> Result<u64> {
        self.disk.size()
    }

    fn block_size(&self) -> Result<BlockSize> {
        Ok(self.block_size)
    }

    fn can_extents(&self) -> Result<bool> {
        self.disk.can_extents()
    }

    fn can_multi_conn(&self) -> Result<bool> {
        Ok(true)
    }

    fn can_cache(&self) -> Result<Cache> {
        self.disk.can_cache()
    }

    fn pread(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.disk.pread(buf, offset)
    }

    fn extents(&self, count: u64, offset: u64, flags: Flags, extents: &mut Extents) -> Result<()> {
        self.disk.extents(count, offset, flags, extents)
    }

    fn cache(&self, count: u64, offset: u64) -> Result<()> {
        self.disk.cache(count, offset)
    }

    fn blocking(&self) -> Blocking {
        self.disk.blocking()
    }

    fn try_pread(&self, buf: &mut [u8], offset: u64) -> Option<Result<()>> {
        self.disk.try_pread(buf, offset)
    }

    fn file_range(&self, count: u32, offset: u64) -> Option<FileRange<'_>> {
        self.disk.file_range(count, offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_program_says_becomes_one_line() {
        let ended = run(
            Command::new("/bin/sh")
                .args(["-c", "echo one; printf 'two\\n\\n\\033[2J three\\n' >&2; exit 3"])
                .stdin(Stdio::null())
                .stdout(Stdio::piped()),
            "dash",
            None,
        )
        .unwrap();
        assert!(!ended.success());
        let expected = "x: command failed with exit code 3: one two; [2J three";
        assert_eq!(ended.error("x").message(), expected);
        assert_eq!(one_line("long".repeat(1000).as_bytes()).len(), MAX_WORDS);
    }

    #[test]
    fn a_program_that_is_missing_is_named_with_its_package() {
        let why = run(&mut Command::new("no-such-program"), "some-package", None).err().unwrap();
        let expected =
            "no-such-program is not installed (Debian has it in the package some-package)";
        assert_eq!(why.message(), expected);
        assert!(find_program(OsStr::new("no-such-program")).is_none());
        assert!(find_program(OsStr::new("sh")).is_some());
        assert!(find_program(OsStr::new("/bin/sh")).is_some());
        assert!(find_program(OsStr::new("/bin")).is_none());
    }

    #[test]
    fn what_a_program_writes_is_what_clients_read() {
        let image = Image::new("test", BlockSize::default()).unwrap();
        let mut command = Command::new("/bin/echo");
        command.arg("hello").stdin(Stdio::null()).stdout(image.stdio().unwrap());
        assert!(run(&mut command, "coreutils", None).unwrap().success());
        let client = image.open().unwrap();
        assert_eq!(client.size().unwrap(), 6);
        let mut buf = [0; 6];
        client.pread(&mut buf, 0).unwrap();
        assert_eq!(&buf, b"hello\n");
        assert!(!client.can_write().unwrap());
        assert!(client.file_range(6, 0).is_some());
    }
}
