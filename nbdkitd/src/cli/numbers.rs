//! Numbers in options, parsed by [`numbers`], with errors of the command line.

#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::time::Duration;

use nbdkit_common::numbers;

use super::error::Fault;

/// See [`numbers::integer`].
pub(crate) fn parse_integer<T: numbers::Bounded>(what: &str, text: &OsStr) -> Result<T, Fault> {
    numbers::integer(what, text).map_err(Fault::error)
}

/// See [`numbers::boolean`].
pub(crate) fn parse_bool(text: &OsStr) -> Result<bool, Fault> {
    numbers::boolean(text).map_err(Fault::error)
}

/// See [`numbers::delay`].
pub(crate) fn parse_delay(what: &str, text: &OsStr) -> Result<Duration, Fault> {
    numbers::delay(what, text).map_err(Fault::error)
}
