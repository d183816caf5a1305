//! The meaning of a script's exit status and standard error.
//! nbdkit-sh-plugin(3), "Exit codes"; codes 4 to 8 are those of nbdkit 1.34.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use nbdkit_api::{Client, Errno, Error};

/// The highest exit code with a meaning of its own, for `--dump-plugin`.
pub(crate) const MAX_KNOWN_STATUS: u8 = 8;

/// How a method ended, if not by an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Done, or true.
    Success,
    /// The script does not have this method.
    Missing,
    /// False, for methods that return booleans.
    False,
}

/// Judges how `script` ended and does what it asks for: shut down, disconnect `client`.
///
/// # Errors
/// What the script reports.
pub(crate) fn judge(
    script: &str,
    status: ExitStatus,
    stderr: &[u8],
    client: Option<&Client>,
) -> Result<Verdict, Error> {
    let Some(code) = status.code() else {
        let signal = status.signal().unwrap_or_default();
        return Err(Error::new(
            Errno::EIO,
            format!("{script}: script terminated by signal {signal}"),
        ));
    };
    let disconnect = |force| {
        if let Some(client) = client {
            client.disconnect(force);
        }
    };
    match code {
        0 => Ok(Verdict::Success),
        2 => Ok(Verdict::Missing),
        3 => Ok(Verdict::False),
        4 => {
            nbdkit_api::client::shutdown();
            Ok(Verdict::Success)
        }
        5 => {
            nbdkit_api::client::shutdown();
            Err(report(script, stderr, Errno::ESHUTDOWN))
        }
        6 => {
            disconnect(true);
            // The client hears nothing any more.
            Err(Error::silent(Errno::ESHUTDOWN))
        }
        7 => {
            disconnect(false);
            Ok(Verdict::Success)
        }
        8 => {
            disconnect(false);
            Err(report(script, stderr, Errno::ESHUTDOWN))
        }
        // 1 and 16 to 255; 9 to 15 are reserved.
        _ => Err(report(script, stderr, Errno::EIO)),
    }
}

/// The errors that a script may name: those that the protocol can tell the client, and their like.
const NAMES: &[(&str, Errno)] = &[
    ("EDQUOT", Errno::EDQUOT),
    ("EFBIG", Errno::EFBIG),
    ("EINVAL", Errno::EINVAL),
    ("EIO", Errno::EIO),
    ("ENOMEM", Errno::ENOMEM),
    ("ENOSPC", Errno::ENOSPC),
    ("ENOTSUP", Errno::EOPNOTSUPP),
    ("EOPNOTSUPP", Errno::EOPNOTSUPP),
    ("EOVERFLOW", Errno::EOVERFLOW),
    ("EPERM", Errno::EPERM),
    ("EROFS", Errno::EROFS),
    ("ESHUTDOWN", Errno::ESHUTDOWN),
];

/// Makes an error of `[ERRNO] message`: the first line of what a script printed on standard error.
/// Without a known name in front it is `default`.
fn report(script: &str, stderr: &[u8], default: Errno) -> Error {
    let text = String::from_utf8_lossy(stderr);
    let text = text.trim_end_matches('\n');
    if text.is_empty() {
        return Error::new(
            default,
            format!(
                "{script}: script exited with error, but did not print an error message on stderr"
            ),
        );
    }
    let (word, rest) = match text.split_once([' ', '\t', '\n']) {
        Some((word, rest)) => (word, rest.trim_start()),
        None => (text, ""),
    };
    let named = NAMES.iter().find(|(name, _)| name.eq_ignore_ascii_case(word));
    let (errno, message) = named.map_or((default, text), |(_, errno)| (*errno, rest));
    let line = message.lines().next().unwrap_or("");
    // Without a message of the script's the line has the system's.
    if line.is_empty() && named.is_some() {
        return Error::os(script, errno);
    }
    Error::new(errno, format!("{script}: {line}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nbdkit_api::client::Peer;

    fn exit(code: i32, stderr: &str) -> Result<Verdict, Error> {
        judge("x", ExitStatus::from_raw(code << 8), stderr.as_bytes(), None)
    }

    #[test]
    fn standard_error_is_an_errno_and_a_message() {
        let none = "x: script exited with error, but did not print an error message on stderr";
        for (stderr, errno, message) in [
            ("ENOSPC", Errno::ENOSPC, "x: No space left on device"),
            ("EIO \n", Errno::EIO, "x: Input/output error"),
            ("ENOSPC\nfoo", Errno::ENOSPC, "x: foo"),
            ("ENOSPC foo\nbar\n", Errno::ENOSPC, "x: foo"),
            ("enospc\tfoo  ", Errno::ENOSPC, "x: foo  "),
            ("ENOSPCfoo", Errno::EIO, "x: ENOSPCfoo"),
            ("ENOENT foo", Errno::EIO, "x: ENOENT foo"),
            ("  ENOSPC foo", Errno::EIO, "x:   ENOSPC foo"),
            ("EPERM EIO x", Errno::EPERM, "x: EIO x"),
            ("just text\n\n", Errno::EIO, "x: just text"),
            ("", Errno::EIO, none),
            ("\n", Errno::EIO, none),
        ] {
            let error = exit(1, stderr).unwrap_err();
            assert_eq!((error.errno(), error.message()), (errno, message), "{stderr:?}");
        }
    }

    #[test]
    fn every_exit_code_means_what_the_manual_says() {
        for code in [0, 4, 7] {
            assert_eq!(exit(code, "EIO x").unwrap(), Verdict::Success);
        }
        assert_eq!(exit(2, "").unwrap(), Verdict::Missing);
        assert_eq!(exit(3, "").unwrap(), Verdict::False);
        for code in [1, 9, 15, 16, 127, 255] {
            assert_eq!(exit(code, "x").unwrap_err().errno(), Errno::EIO);
        }
        for code in [5, 6, 8] {
            assert_eq!(exit(code, "").unwrap_err().errno(), Errno::ESHUTDOWN);
        }
        assert_eq!(exit(8, "EIO x").unwrap_err().errno(), Errno::EIO);
    }

    #[test]
    fn codes_6_to_8_disconnect_the_client() {
        for (code, cut) in [(6, true), (7, false), (8, false)] {
            let client = Client::new(1, Peer::default(), None, Box::new(|| {}));
            let _ = judge("x", ExitStatus::from_raw(code << 8), b"", Some(&client));
            assert!(client.is_disconnecting(), "{code}");
            assert_eq!(client.is_cut(), cut, "{code}");
        }
    }

    #[test]
    fn death_by_signal_is_an_error() {
        let error = judge("x", ExitStatus::from_raw(9), b"", None).unwrap_err();
        assert_eq!(error.errno(), Errno::EIO);
    }
}
