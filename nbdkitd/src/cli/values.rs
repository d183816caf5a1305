//! Option arguments that stand for one of a few things: ports, debug flags, log destinations,
//! modes.
//!
//! Used by the listener while it parses its command line. Every function refuses what it does not
//! know, with nbdkit's text where nbdkit has the option. nbdkit(1), "Global options".

#![forbid(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use super::command_line::{
    CrlExpiry, DebugFlag, Isolation, LogDestination, Sandbox, TcpPort, TlsMode, TlsVersion,
};
use super::error::Fault;
use super::numbers::{parse_bool, parse_integer};

/// The longest `--busy-poll`: beyond it, to sleep costs nothing in comparison.
const MAX_BUSY_POLL: Duration = Duration::from_millis(1);

/// `-p` for TCP: a number or the name of a service.
///
/// nbdkit gives the text to the resolver, which takes a number modulo 65536 and an empty text for
/// 0, and so listens on a port that nobody meant. We refuse both.
pub(crate) fn parse_tcp_port(argument: OsString) -> Result<TcpPort, Fault> {
    let digits = argument.as_bytes().trim_ascii_start();
    if digits.is_empty() {
        return Err(Fault::error("port: empty string where we expected a number"));
    }
    if !digits.iter().all(u8::is_ascii_digit) {
        return Ok(TcpPort::Service(argument));
    }
    str::from_utf8(digits)
        .ok()
        .and_then(|digits| digits.parse().ok())
        .map(TcpPort::Number)
        .ok_or_else(|| {
            let given = argument.to_string_lossy();
            Fault::error(format!("port: {given} is out of range: TCP ports end at 65535"))
        })
}

/// `-D NAME.FLAG=N`: the name ends at the first dot, the flag at the first equals sign.
pub(crate) fn parse_debug_flag(argument: &OsStr) -> Result<DebugFlag, Fault> {
    const FORMAT: &str = "-D (Debug Flag) must have the format NAME.FLAG=N";
    let (name, flag, value) = argument
        .to_str()
        .and_then(|argument| argument.split_once('='))
        .and_then(|(left, value)| left.split_once('.').map(|(name, flag)| (name, flag, value)))
        .filter(|(name, flag, value)| !name.is_empty() && !flag.is_empty() && !value.is_empty())
        .ok_or_else(|| Fault::plain(FORMAT))?;
    let value = parse_integer("flag", value.as_ref()).map_err(|fault| fault.followed_by(FORMAT))?;
    Ok(DebugFlag { name: name.to_owned(), flag: flag.to_owned(), value })
}

/// `--log`: a name, or an absolute path.
pub(crate) fn parse_log(argument: &OsStr) -> Result<LogDestination, Fault> {
    match argument.as_bytes() {
        b"default" => Ok(LogDestination::Default),
        b"stderr" => Ok(LogDestination::Stderr),
        b"syslog" => Ok(LogDestination::Syslog),
        b"journal" => Ok(LogDestination::Journal),
        b"null" => Ok(LogDestination::Null),
        [b'/', ..] => Ok(LogDestination::File(argument.into())),
        _ => Err(Fault::plain(
            "--log must be \"stderr\", \"syslog\", \"journal\", \"null\", or an absolute path",
        )),
    }
}

/// `--tls`: a boolean or `require`, in any case.
pub(crate) fn parse_tls(argument: &OsStr) -> Result<TlsMode, Fault> {
    if argument.eq_ignore_ascii_case("require") {
        return Ok(TlsMode::Require);
    }
    parse_bool(argument).map(|on| if on { TlsMode::On } else { TlsMode::Off })
}

/// `--tls-crl-expiry`.
pub(crate) fn parse_crl_expiry(argument: &OsStr) -> Result<CrlExpiry, Fault> {
    match argument.as_bytes() {
        b"warn" => Ok(CrlExpiry::Warn),
        b"enforce" => Ok(CrlExpiry::Enforce),
        _ => Err(Fault::plain("--tls-crl-expiry must be \"warn\" or \"enforce\"")),
    }
}

/// `--tls-min-version`.
pub(crate) fn parse_tls_version(argument: &OsStr) -> Result<TlsVersion, Fault> {
    match argument.as_bytes() {
        b"1.2" => Ok(TlsVersion::V1_2),
        b"1.3" => Ok(TlsVersion::V1_3),
        _ => Err(Fault::plain("--tls-min-version must be \"1.2\" or \"1.3\"")),
    }
}

/// `--isolation`.
pub(crate) fn parse_isolation(argument: &OsStr) -> Result<Isolation, Fault> {
    match argument.as_bytes() {
        b"connection" => Ok(Isolation::Connection),
        b"shared" => Ok(Isolation::Shared),
        _ => Err(Fault::plain("--isolation must be \"connection\" or \"shared\"")),
    }
}

/// `--busy-poll`: microseconds, at most [`MAX_BUSY_POLL`].
pub(crate) fn parse_busy_poll(argument: &OsStr) -> Result<Duration, Fault> {
    let poll = Duration::from_micros(parse_integer::<u32>("busy-poll", argument)?.into());
    if poll > MAX_BUSY_POLL {
        return Err(Fault::plain("--busy-poll must be from 0 to 1000 microseconds"));
    }
    Ok(poll)
}

/// Whole seconds, 0 or more.
pub(crate) fn parse_seconds(option: &str, argument: &OsStr) -> Result<Duration, Fault> {
    Ok(Duration::from_secs(parse_integer::<u32>(option, argument)?.into()))
}

/// `--sandbox`.
pub(crate) fn parse_sandbox(argument: &OsStr) -> Result<Sandbox, Fault> {
    match argument.as_bytes() {
        b"strict" => Ok(Sandbox::Strict),
        b"programs" => Ok(Sandbox::Programs),
        b"compat" => Ok(Sandbox::Compat),
        b"off" => Ok(Sandbox::Off),
        _ => Err(Fault::plain("--sandbox must be \"strict\", \"programs\", \"compat\" or \"off\"")),
    }
}

/// Text that ends up in messages, so it must be printable.
pub(crate) fn parse_text(option: &str, argument: &OsStr) -> Result<String, Fault> {
    match argument.to_str() {
        Some(text) if !text.contains(char::is_control) => Ok(text.to_owned()),
        _ => Err(Fault::plain(format!("{option} must be printable UTF-8 text"))),
    }
}
