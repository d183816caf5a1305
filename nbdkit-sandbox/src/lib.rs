//! How a process of this project is confined, for all programs: each mechanism once, with a check
//! that it is in force.
//!
//! - [`seccomp`]: the system calls that may be made; [`lists`]: what every program refuses
//! - [`landlock`]: the paths that may be opened, the ports that may be connected to
//! - [`capabilities`] and [`credentials`]: what root gives up
//! - [`threads`]: all of that for threads that run already, and the check of every thread in /proc
//! - [`process`]: fork, what a fork inherits, and what others may do to a process
//! - [`signals`]: signals that must neither end a process nor be ignored by what it executes
//!
//! What a program may do is its own policy, and is data of that program.

#![deny(unsafe_code)]

pub mod capabilities;
pub mod credentials;
pub mod landlock;
pub mod lists;
pub mod process;
pub mod seccomp;
pub mod signals;
pub mod threads;

use std::fmt;

use nbdkit_common::strerror;
use nix::errno::Errno;

/// Why a layer is not in force. One line: the layer or the system call, and the cause.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error(String);

/// With [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    fn new(text: impl Into<String>) -> Error {
        Error(text.into())
    }

    /// The error of a system call or layer, for `map_err`.
    fn of<E: fmt::Display>(layer: &str) -> impl Fn(E) -> Error {
        move |cause| Error(format!("{layer}: {cause}"))
    }

    /// The error of a system call, for `map_err`.
    fn os(call: &str) -> impl Fn(Errno) -> Error {
        move |errno| Error(format!("{call}: {}", strerror(errno)))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}
