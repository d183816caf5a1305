//! The private directory of `-U -`. The listener creates it at start-up; the spawner removes it at
//! the end, since a confined listener can remove nothing. nbdkit(1), `-U -`.

#![forbid(unsafe_code)]

use std::fs::{remove_dir, remove_file};
use std::path::Path;

/// The name of the listening socket in it.
pub const SOCKET: &str = "socket";

/// Removes the socket and the directory, if there is nothing else in it. What cannot be removed
/// stays, as with nbdkit.
pub fn remove(directory: &Path) {
    let _ = remove_file(directory.join(SOCKET));
    let _ = remove_dir(directory);
}
