//! Socket activation: whether sockets were passed to this process, by `LISTEN_PID` and
//! `LISTEN_FDS`.
//!
//! Used by the listener before it parses its command line. The values are whatever the environment
//! holds: a value that cannot be read, or that was meant for another process, is ignored with a
//! notice, as nbdkit does. sd_listen_fds(3), nbdkit-service(1), "Socket activation".

#![forbid(unsafe_code)]

use std::ffi::OsStr;

use super::error::Fault;
use super::numbers::parse_integer;

/// The first descriptor that a service manager passes: `SD_LISTEN_FDS_START`.
pub(crate) const FIRST_SOCKET: i32 = 3;

/// More sockets than this cannot be numbered from [`FIRST_SOCKET`] in a C `int`.
const MAX_SOCKETS: u32 = 2_147_483_643;

/// The variables of socket activation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Activation {
    /// No sockets were passed to this process.
    Absent,
    /// The variables are for another process, or cannot be parsed. That is printed to standard
    /// error; start-up goes on.
    Ignored(Fault),
    /// The number of listening sockets, at descriptors 3, 4, and so on.
    Sockets(u32),
}

/// Reads the two variables. `pid` is this process.
///
/// # Errors
/// `LISTEN_FDS` is for this process but is zero or absurd.
pub(crate) fn detect(
    listen_pid: Option<&OsStr>,
    listen_fds: Option<&OsStr>,
    pid: u32,
) -> Result<Activation, Fault> {
    let Some(listen_pid) = listen_pid else { return Ok(Activation::Absent) };
    match parse_integer::<u32>("LISTEN_PID", listen_pid) {
        Ok(intended) if intended == pid => {}
        Ok(_) => {
            return Ok(Activation::Ignored(Fault::plain("LISTEN_PID was not for us (ignored)")));
        }
        Err(fault) => return Ok(Activation::Ignored(fault)),
    }
    let Some(listen_fds) = listen_fds else { return Ok(Activation::Absent) };
    match parse_integer::<u32>("LISTEN_FDS", listen_fds) {
        Ok(count @ 1..=MAX_SOCKETS) => Ok(Activation::Sockets(count)),
        Ok(_) => {
            let given = listen_fds.to_string_lossy();
            Err(Fault::plain(format!("socket activation: LISTEN_FDS={given} out of range")))
        }
        Err(fault) => Ok(Activation::Ignored(fault)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(pid: Option<&str>, fds: Option<&str>) -> Result<Activation, Fault> {
        detect(pid.map(OsStr::new), fds.map(OsStr::new), 77)
    }

    #[test]
    fn sockets_are_counted_when_the_pid_is_ours() {
        for (pid, fds, count) in
            [("77", "1", 1), ("+77", "01", 1), (" 77", "0x2", 2), ("0x4d", "3", 3)]
        {
            assert_eq!(ask(Some(pid), Some(fds)), Ok(Activation::Sockets(count)));
        }
    }

    #[test]
    fn a_missing_variable_means_no_activation() {
        assert_eq!(ask(None, Some("1")), Ok(Activation::Absent));
        assert_eq!(ask(Some("77"), None), Ok(Activation::Absent));
        assert_eq!(ask(None, None), Ok(Activation::Absent));
    }

    #[test]
    fn values_for_others_or_unreadable_are_ignored_aloud() {
        for (pid, fds) in [
            ("1", "1"),
            ("abc", "1"),
            ("77x", "1"),
            ("", "1"),
            ("77", ""),
            ("77", "-1"),
            ("77", "1x"),
        ] {
            assert!(matches!(ask(Some(pid), Some(fds)), Ok(Activation::Ignored(_))), "{pid} {fds}");
        }
    }

    #[test]
    fn a_count_of_zero_or_past_the_descriptors_is_an_error() {
        for fds in ["0", "2147483644", "4294967295"] {
            let error = ask(Some("77"), Some(fds)).unwrap_err().named("nbdkit", "nbdkit");
            assert_eq!(
                error.to_string(),
                format!("nbdkit: socket activation: LISTEN_FDS={fds} out of range")
            );
        }
    }
}
