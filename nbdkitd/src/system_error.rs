//! A system call of start-up that failed, and what it was called on.

#![forbid(unsafe_code)]

use std::fmt;
use std::io;

use nix::errno::Errno;

use crate::errno_text;

/// A system call that failed: `CALL: OBJECT: strerror`.
#[derive(Debug)]
pub(crate) struct SystemError {
    call: &'static str,
    object: Option<String>,
    cause: io::Error,
}

/// The number of an error of the system; that of none for others.
pub(crate) fn number(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or_default())
}

impl SystemError {
    /// `call` failed, and no object is worth naming. For `map_err`.
    pub(crate) fn in_call<E: Into<io::Error>>(call: &'static str) -> impl Fn(E) -> SystemError {
        move |cause| SystemError { call, object: None, cause: cause.into() }
    }

    /// `call` failed on `object`: a path, a name, an address. For `map_err`.
    pub(crate) fn on<E: Into<io::Error>>(
        call: &'static str,
        object: impl fmt::Display,
    ) -> impl FnOnce(E) -> SystemError {
        move |cause| SystemError { call, object: Some(object.to_string()), cause: cause.into() }
    }
}

impl fmt::Display for SystemError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.call)?;
        if let Some(object) = &self.object {
            write!(f, "{object}: ")?;
        }
        f.write_str(&errno_text(&self.cause))
    }
}

impl std::error::Error for SystemError {}
