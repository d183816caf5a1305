//! The file of `--log`. The listener opens it at start-up; the spawner opens it anew when it was
//! renamed, since a confined listener can open no file for writing. nbdkit(1), "LOG".

#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::libc;

/// Opens the file for appending, and creates it if it is not there.
///
/// # Errors
/// Those of open(2). ENXIO: a FIFO that nobody has open for reading.
pub fn open(path: &Path) -> io::Result<File> {
    // A log may name clients and files: only its owner may read it.
    let mut options = File::options();
    options.append(true).create(true).mode(0o600);
    // A FIFO without a reader is an error, and one with a slow reader does not stop the server.
    options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    options.open(path)
}
