//! The error of a callback: an errno for the client and a line for the log.
//!
//! Plays the part of `nbdkit_error` plus `nbdkit_set_error` in nbdkit-plugin(3): the message goes
//! to the server's log (once, by the [`Backend`](crate::Backend) of the layer that made it) and,
//! where the protocol has room for it, to the client; the errno is translated to an NBD error.

use std::fmt;
use std::io;

pub use nbdkit_common::strerror;

pub use nix::errno::Errno;

/// Shorthand for results of callbacks.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a callback failed.
///
/// An empty message means that the failure needs no line in the log: a filter that refuses
/// a request on purpose, or a layer that has already logged the reason.
#[derive(Debug, Clone)]
pub struct Error {
    errno: Errno,
    message: String,
    logged: bool,
}

impl Error {
    /// An error with a message for the log and `errno` for the client.
    pub fn new(errno: Errno, message: impl Into<String>) -> Error {
        Error { errno, message: message.into(), logged: false }
    }

    /// An error of the configuration phase, where only the message matters (the errno is EINVAL).
    pub fn msg(message: impl Into<String>) -> Error {
        Error::new(Errno::EINVAL, message)
    }

    /// A failure that is reported to the client and not logged.
    pub fn silent(errno: Errno) -> Error {
        Error { errno, message: String::new(), logged: true }
    }

    /// `operation: cause`, with the errno of a failed system call.
    pub fn os(operation: impl fmt::Display, errno: Errno) -> Error {
        Error::new(errno, format!("{operation}: {}", strerror(errno)))
    }

    /// `operation: cause`, with the errno of a failed standard library call (EIO if it had none).
    pub fn io(operation: impl fmt::Display, error: &io::Error) -> Error {
        match error.raw_os_error() {
            Some(code) => Error::os(operation, Errno::from_raw(code)),
            None => Error::new(Errno::EIO, format!("{operation}: {error}")),
        }
    }

    /// The error of a plugin whose `config` does not know `key`.
    pub fn unknown_parameter(key: &str) -> Error {
        Error::msg(format!("unknown parameter '{}'", key.escape_default()))
    }

    /// The errno for the client, before translation to an NBD error.
    pub fn errno(&self) -> Errno {
        self.errno
    }

    /// The same error with another errno for the client.
    #[must_use]
    pub fn with_errno(mut self, errno: Errno) -> Error {
        self.errno = errno;
        self
    }

    /// The line for the log, without prefix; empty for none.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Puts `context: ` in front of the message.
    #[must_use]
    pub fn context(mut self, context: impl fmt::Display) -> Error {
        self.message = if self.message.is_empty() {
            context.to_string()
        } else {
            format!("{context}: {}", self.message)
        };
        self.logged = false;
        self
    }

    /// Marks the message as logged and tells whether this was the first time.
    pub fn take_for_log(&mut self) -> bool {
        !std::mem::replace(&mut self.logged, true) && !self.message.is_empty()
    }

    /// True for the two errors by which `zero` asks for the fallback to `pwrite`.
    pub fn is_unsupported(&self) -> bool {
        // ENOTSUP is the same number on Linux.
        self.errno == Errno::EOPNOTSUPP
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.message.is_empty() {
            f.write_str(&strerror(self.errno))
        } else {
            f.write_str(&self.message)
        }
    }
}

impl std::error::Error for Error {}

/// Adds the operation and its object to errors of system calls.
pub trait ResultExt<T> {
    /// Turns the error into `operation: cause`; the closure runs only on failure.
    ///
    /// # Errors
    /// The one given, with its errno kept.
    fn or_error<D: fmt::Display>(self, operation: impl FnOnce() -> D) -> Result<T>;
}

impl<T> ResultExt<T> for nix::Result<T> {
    fn or_error<D: fmt::Display>(self, operation: impl FnOnce() -> D) -> Result<T> {
        self.map_err(|errno| Error::os(operation(), errno))
    }
}

impl<T> ResultExt<T> for io::Result<T> {
    fn or_error<D: fmt::Display>(self, operation: impl FnOnce() -> D) -> Result<T> {
        self.map_err(|error| Error::io(operation(), &error))
    }
}

/// Logs an error unless that has been done, in the name of the current speaker.
pub(crate) fn log_once(mut error: Error) -> Error {
    if error.take_for_log() {
        crate::log::error(error.message());
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_offered_to_the_log_once() {
        let mut error = Error::os("open: disk.img", Errno::EACCES);
        assert_eq!(error.message(), "open: disk.img: Permission denied");
        assert!(error.take_for_log());
        assert!(!error.take_for_log());
        assert!(error.context("file").take_for_log());
    }

    #[test]
    fn a_silent_error_is_never_logged() {
        assert!(!Error::silent(Errno::EIO).take_for_log());
    }
}
