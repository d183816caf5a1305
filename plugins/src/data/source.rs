//! `<FILE` and `<(SCRIPT)`: bytes from outside the text.
//!
//! Runs in the template as the invoking user, before privileges are dropped, and trusts what
//! that user named; only amounts are bounded.

use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::{Command, Stdio};

use nbdkit_api::{Errno, Error, Result, ResultExt, programs};
use nix::unistd::{Whence, lseek64};

/// Most bytes that are taken from a device, a pipe or a script. Regular files stay where they are.
const MAX_STREAM: u64 = 1 << 30;

/// What `<FILE` may name.
pub(super) enum Source {
    /// Read when and where needed.
    Regular(File),
    /// Read once, from the beginning.
    Stream(Vec<u8>),
}

/// An open regular file.
#[derive(Debug)]
pub(super) struct File {
    file: std::fs::File,
    name: OsString,
    size: u64,
    allocated: u64,
}

impl File {
    /// Length in bytes when it was opened.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Bytes of storage that it took then.
    pub(super) fn allocated(&self) -> u64 {
        self.allocated
    }

    /// Fills `buf` from `offset`.
    pub(super) fn read(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.file
            .read_exact_at(buf, offset)
            .or_error(|| format!("data: read: {}", self.name.display()))
    }

    /// The next offset with data, or `from` itself where the file system cannot tell.
    pub(super) fn next_data(&self, from: u64) -> Option<u64> {
        let at = i64::try_from(from).ok()?;
        match lseek64(self.file.as_fd(), at, Whence::SeekData) {
            Ok(found) => u64::try_from(found).ok(),
            Err(Errno::ENXIO) => None,
            Err(_) => Some(from),
        }
    }
}

/// Opens `name`. What is not a regular file is read at once, no further than the first `want`
/// bytes, which is all that is read.
///
/// # Errors
/// It cannot be opened or read, or yields more than the bound and `want` is no help.
pub(super) fn open(name: &OsStr, want: Option<u64>) -> Result<Source> {
    let mut file =
        std::fs::File::open(name).or_error(|| format!("data: open: {}", name.display()))?;
    let metadata = file.metadata().or_error(|| format!("data: stat: {}", name.display()))?;
    if metadata.is_file() {
        let allocated = metadata.blocks().saturating_mul(512);
        let (name, size) = (name.to_owned(), metadata.len());
        // Files of /proc and /sys have no length, so they are read like devices.
        if size > 0 {
            return Ok(Source::Regular(File { file, name, size, allocated }));
        }
    }
    read(&mut file, want, &format!("<{}", name.display())).map(Source::Stream)
}

/// Runs `script` by /bin/sh and returns the first `want` bytes of its output, or all of it.
///
/// # Errors
/// It cannot be run, its output is too long, or it fails although it was not cut short.
pub(super) fn run(script: &OsStr, want: Option<u64>) -> Result<Vec<u8>> {
    let mut command = Command::new("/bin/sh");
    command.arg("-c").arg(script).stdout(Stdio::piped());
    let mut program = programs::start(&mut command).or_error(|| "data: <(SCRIPT): /bin/sh")?;
    let output = match program.child.stdout.take() {
        // The pipe is closed here, which ends a script that goes on printing.
        Some(mut pipe) => read(&mut pipe, want, "<(SCRIPT)"),
        None => Ok(Vec::new()),
    };
    let status = program.wait().or_error(|| "data: <(SCRIPT): wait")?;
    let output = output?;
    if want.is_none() && !status.success() {
        return Err(Error::msg(format!("data: <(SCRIPT): external command failed: {status}")));
    }
    Ok(output)
}

fn read(source: &mut impl Read, want: Option<u64>, what: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let limit = want.unwrap_or(MAX_STREAM + 1).min(MAX_STREAM + 1);
    source.take(limit).read_to_end(&mut bytes).or_error(|| format!("data: read: {what}"))?;
    if bytes.len() as u64 > MAX_STREAM {
        return Err(Error::msg(format!(
            "data: {what} yields more than {MAX_STREAM} bytes: take a slice of it with [:N]"
        )));
    }
    Ok(bytes)
}
