//! The value of a `key=value` parameter: bytes from the command line, which a path may need
//! as they are and which everything else wants as text.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Error, Result, ResultExt};
use crate::parse;

/// A parameter's value. The parsing methods give nbdkit's messages.
#[derive(Debug, Clone, Copy)]
pub struct Value<'a>(&'a OsStr);

impl<'a> Value<'a> {
    /// Wraps the bytes that stood behind the `=`.
    pub fn new(value: &'a (impl AsRef<OsStr> + ?Sized)) -> Value<'a> {
        Value(value.as_ref())
    }

    /// As it is.
    pub fn as_os_str(self) -> &'a OsStr {
        self.0
    }

    /// As a path, not yet made absolute.
    pub fn as_path(self) -> &'a Path {
        Path::new(self.0)
    }

    /// As bytes.
    pub fn as_bytes(self) -> &'a [u8] {
        self.0.as_bytes()
    }

    /// As text.
    ///
    /// # Errors
    /// The value is not UTF-8.
    pub fn str(self) -> Result<&'a str> {
        self.0
            .to_str()
            .ok_or_else(|| Error::msg(format!("parameter value is not UTF-8: {:?}", self.0)))
    }

    /// A size in bytes, see [`parse::size`].
    ///
    /// # Errors
    /// Not a size.
    pub fn size(self) -> Result<u64> {
        parse::size(self.str()?)
    }

    /// A boolean, see [`parse::boolean`].
    ///
    /// # Errors
    /// Not a boolean.
    pub fn boolean(self) -> Result<bool> {
        parse::boolean(self.str()?)
    }

    /// An integer, see [`parse::integer`]; `what` names the parameter.
    ///
    /// # Errors
    /// Not an integer of that type.
    pub fn integer<T: parse::Bounded>(self, what: &str) -> Result<T> {
        parse::integer(what, self.str()?)
    }

    /// A delay, see [`parse::delay`].
    ///
    /// # Errors
    /// Not a delay.
    pub fn delay(self, what: &str) -> Result<Duration> {
        parse::delay(what, self.str()?)
    }

    /// A probability, see [`parse::probability`]; may exceed 1.
    ///
    /// # Errors
    /// Not a probability.
    pub fn probability(self, what: &str) -> Result<f64> {
        parse::probability(what, self.str()?)
    }

    /// A password in any of its forms, see [`parse::password`].
    ///
    /// # Errors
    /// It cannot be read.
    pub fn password(self) -> Result<String> {
        parse::password(self.str()?)
    }

    /// The path with the working directory put in front if it is relative
    /// (`nbdkit_absolute_path`); nothing need exist there.
    ///
    /// # Errors
    /// The value is empty or the working directory is gone.
    pub fn absolute_path(self) -> Result<PathBuf> {
        std::path::absolute(self.0)
            .or_error(|| format!("absolute path: {}", self.as_path().display()))
    }

    /// The path with links resolved (`nbdkit_realpath`).
    ///
    /// # Errors
    /// It does not exist or may not be searched.
    pub fn realpath(self) -> Result<PathBuf> {
        std::fs::canonicalize(self.0).or_error(|| format!("realpath: {}", self.as_path().display()))
    }

    /// An owned copy.
    pub fn to_os_string(self) -> OsString {
        self.0.to_owned()
    }
}
