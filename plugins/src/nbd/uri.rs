//! URIs of NBD servers: `uri=`. doc/uri.md of the NBD project, and nbd_connect_uri(3) for what
//! libnbd adds to it: vsock, and where the credentials of TLS are.
//!
//! Runs in the template; a URI comes from the command line.

#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use nbdkit_api::{Error, Result, log};

/// The port that IANA has assigned to NBD.
pub(super) const PORT: u16 = 10809;

/// Where a URI leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// Host, without brackets, and port.
    Tcp(String, u16),
    /// The path of a socket, as it is in the URI.
    Unix(OsString),
    /// Context identifier and port.
    Vsock(u32, u32),
}

/// What a URI says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Uri {
    pub(super) place: Place,
    /// The path without its first `/`.
    pub(super) export: String,
    /// The scheme demands TLS.
    pub(super) tls: bool,
    /// `tls-certificates`
    pub(super) certificates: Option<OsString>,
    /// `tls-psk-file`
    pub(super) psk: Option<OsString>,
    /// `tls-hostname`
    pub(super) hostname: Option<String>,
    /// `tls-username`, or else the part in front of `@`.
    pub(super) username: Option<String>,
    /// `tls-verify-peer`
    pub(super) verify: Option<bool>,
}

/// How the server is reached, by the scheme.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transport {
    Tcp,
    Unix,
    Vsock,
}

fn scheme(name: &str) -> Option<(Transport, bool)> {
    Some(match name.to_ascii_lowercase().as_str() {
        "nbd" => (Transport::Tcp, false),
        "nbds" => (Transport::Tcp, true),
        "nbd+unix" => (Transport::Unix, false),
        "nbds+unix" => (Transport::Unix, true),
        "nbd+vsock" => (Transport::Vsock, false),
        "nbds+vsock" => (Transport::Vsock, true),
        _ => return None,
    })
}

/// Reads a URI.
///
/// # Errors
/// One line: it is not one, or not one of NBD.
pub(super) fn parse(text: &str) -> Result<Uri> {
    let malformed = || Error::msg(format!("unable to parse URI: {}", text.escape_default()));
    let (name, rest) = text.split_once(':').ok_or_else(malformed)?;
    let Some((transport, tls)) = scheme(name) else {
        return Err(Error::msg(format!("unknown NBD URI scheme: {}", name.escape_default())));
    };
    let rest = rest.strip_prefix("//").ok_or_else(malformed)?;
    let rest = rest.split_once('#').map_or(rest, |(before, _)| before);
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let (user, host) = match authority.rsplit_once('@') {
        Some((user, host)) => (Some(text_of(user)?), host),
        None => (None, authority),
    };
    let mut uri = Uri {
        place: Place::Unix(OsString::new()),
        export: text_of(path.strip_prefix('/').unwrap_or(path))?,
        tls,
        certificates: None,
        psk: None,
        hostname: None,
        username: user.filter(|user| !user.is_empty()),
        verify: None,
    };
    let socket = uri.take_query(query)?;
    uri.place = match transport {
        Transport::Unix => Place::Unix(socket.filter(|it| !it.is_empty()).ok_or_else(no_socket)?),
        // The socket parameter means that another scheme was meant.
        _ if socket.is_some() => return Err(no_socket()),
        Transport::Tcp => tcp(host)?,
        Transport::Vsock => vsock(host)?,
    };
    Ok(uri)
}

fn no_socket() -> Error {
    Error::msg(
        "cannot parse socket parameter from NBD URI \
         (did you mean to use \"nbd+unix:///?socket=...\"?)",
    )
}

impl Uri {
    /// Takes the parameters behind `?`; the value of `socket`.
    fn take_query(&mut self, query: &str) -> Result<Option<OsString>> {
        let mut socket = None;
        for pair in query.split(['&', ';']).filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            match text_of(key)?.as_str() {
                "socket" => socket = Some(OsString::from_vec(decoded(value)?)),
                "tls-certificates" => {
                    self.certificates = Some(OsString::from_vec(decoded(value)?));
                }
                "tls-psk-file" => self.psk = Some(OsString::from_vec(decoded(value)?)),
                "tls-hostname" => self.hostname = Some(text_of(value)?),
                "tls-username" => self.username = Some(text_of(value)?),
                "tls-verify-peer" => {
                    let verify = nbdkit_api::parse::boolean(&text_of(value)?);
                    // One line, whatever the value is.
                    self.verify = Some(verify.map_err(|_| {
                        let value = value.escape_default();
                        Error::msg(format!("could not decipher boolean ({value})"))
                    })?);
                }
                // What follows from the other parameters.
                "tls-type" if matches!(value, "x509" | "psk") => {}
                "tls-type" => {
                    return Err(Error::msg(format!(
                        "NBD URI: tls-type={}: only x509 and psk are supported",
                        value.escape_default()
                    )));
                }
                key if key.starts_with("x-") => {}
                key => log::warning(&format!(
                    "NBD URI: unknown parameter is ignored: {}",
                    key.escape_default()
                )),
            }
        }
        Ok(socket)
    }
}

/// `host`, `host:port` or `[address]:port`; no host stands for this machine.
fn tcp(authority: &str) -> Result<Place> {
    let bad = || Error::msg(format!("NBD URI: malformed host: {}", authority.escape_default()));
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']').ok_or_else(bad)?;
            (host, if port.is_empty() { "" } else { port.strip_prefix(':').ok_or_else(bad)? })
        }
        None => authority.rsplit_once(':').unwrap_or((authority, "")),
    };
    if host.contains(':') != authority.starts_with('[') {
        return Err(bad());
    }
    let host = text_of(host)?;
    let host = if host.is_empty() { "localhost".to_owned() } else { host };
    let port = if port.is_empty() { Some(PORT) } else { number(port).filter(|port| *port != 0) };
    let port = port
        .ok_or_else(|| Error::msg(format!("NBD URI: bad port: {}", authority.escape_default())))?;
    Ok(Place::Tcp(host, port))
}

/// `cid` or `cid:port`
fn vsock(authority: &str) -> Result<Place> {
    let (cid, port) = authority.split_once(':').unwrap_or((authority, ""));
    let port = if port.is_empty() { Some(u32::from(PORT)) } else { number(port) };
    match (number(cid), port) {
        (Some(cid), Some(port)) => Ok(Place::Vsock(cid, port)),
        _ => Err(Error::msg(format!(
            "NBD URI: malformed vsock address: {}",
            authority.escape_default()
        ))),
    }
}

/// Decimal digits, and nothing else.
fn number<N: std::str::FromStr>(text: &str) -> Option<N> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

/// A part of a URI with `%XX` decoded. RFC 3986, 2.1.
fn decoded(text: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let digits = rest.split_first_chunk::<2>();
        let value = digits.and_then(|(digits, after)| {
            rest = after;
            let digit = |at: usize| char::from(digits[at]).to_digit(16);
            u8::try_from(digit(0)? * 16 + digit(1)?).ok()
        });
        bytes.push(value.ok_or_else(|| {
            Error::msg(format!("NBD URI: malformed %-encoding: {}", text.escape_default()))
        })?);
    }
    Ok(bytes)
}

fn text_of(text: &str) -> Result<String> {
    let bad = || Error::msg(format!("NBD URI: not UTF-8 without NUL: {}", text.escape_default()));
    let decoded = String::from_utf8(decoded(text)?).map_err(|_| bad())?;
    if decoded.contains('\0') { Err(bad()) } else { Ok(decoded) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(host: &str, port: u16) -> Place {
        Place::Tcp(host.to_owned(), port)
    }

    /// The table of doc/uri.md, and what it has no row for.
    #[test]
    fn exports_and_places_are_those_of_the_specification() {
        for (text, place, export, tls) in [
            ("nbd://example.com/disk", tcp("example.com", 10809), "disk", false),
            ("nbd+unix:///disk?socket=sock", Place::Unix("sock".into()), "disk", false),
            ("nbd://example.com/", tcp("example.com", 10809), "", false),
            ("nbd://example.com", tcp("example.com", 10809), "", false),
            ("nbd://example.com//disk", tcp("example.com", 10809), "/disk", false),
            ("nbd://example.com/hello%20world", tcp("example.com", 10809), "hello world", false),
            ("NBDS://h:1", tcp("h", 1), "", true),
            ("nbd://[::1]:65535/x", tcp("::1", 65535), "x", false),
            ("nbds://[fe80::1%25eth0]", tcp("fe80::1%eth0", 10809), "", true),
            ("nbd:///x", tcp("localhost", 10809), "x", false),
            ("nbd://h:/x#part", tcp("h", 10809), "x", false),
            ("nbds+unix:///?socket=/a%20b%ff", unix(b"/a b\xff"), "", true),
            ("nbd+unix://ignored/x?x-y=1&socket=/s", Place::Unix("/s".into()), "x", false),
            ("nbd+vsock://2/x", Place::Vsock(2, 10809), "x", false),
            ("nbds+vsock://4294967295:4294967294", Place::Vsock(u32::MAX, u32::MAX - 1), "", true),
        ] {
            let uri = parse(text).unwrap();
            assert_eq!((uri.place, uri.export.as_str(), uri.tls), (place, export, tls), "{text}");
        }
    }

    fn unix(path: &[u8]) -> Place {
        Place::Unix(OsString::from_vec(path.to_vec()))
    }

    #[test]
    fn credentials_of_tls_are_parameters() {
        let uri = parse(
            "nbds+unix://eve@/x?socket=/s&tls-certificates=%2Fpki&tls-psk-file=/keys\
             &tls-hostname=host.example&tls-verify-peer=0&tls-type=x509",
        )
        .unwrap();
        assert_eq!(uri.certificates, Some("/pki".into()));
        assert_eq!(uri.psk, Some("/keys".into()));
        assert_eq!(uri.hostname.as_deref(), Some("host.example"));
        assert_eq!(uri.username.as_deref(), Some("eve"));
        assert_eq!(uri.verify, Some(false));
        let uri = parse("nbds://eve@h?tls-username=bob").unwrap();
        assert_eq!(uri.username.as_deref(), Some("bob"));
    }

    #[test]
    fn what_is_no_uri_of_nbd_gets_one_line() {
        for (text, message) in [
            ("disk.img", "unable to parse URI: disk.img"),
            ("nbd:unix:/s", "unable to parse URI: nbd:unix:/s"),
            ("http://x", "unknown NBD URI scheme: http"),
            ("nbd\n://x", "unknown NBD URI scheme: nbd\\n"),
            ("nbd+unix:///", "cannot parse socket parameter from NBD URI"),
            ("nbd+unix:///?socket=", "cannot parse socket parameter from NBD URI"),
            ("nbd:///?socket=/s", "cannot parse socket parameter from NBD URI"),
            ("nbd://h:0", "NBD URI: bad port: h:0"),
            ("nbd://h:65536", "NBD URI: bad port: h:65536"),
            ("nbd://h:+1", "NBD URI: bad port: h:+1"),
            ("nbd://::1", "NBD URI: malformed host: ::1"),
            ("nbd://[::1", "NBD URI: malformed host: [::1"),
            ("nbd://[::1]1", "NBD URI: malformed host: [::1]1"),
            ("nbd+vsock://x", "NBD URI: malformed vsock address: x"),
            ("nbd+vsock:///2", "NBD URI: malformed vsock address: "),
            ("nbd://h/%4", "NBD URI: malformed %-encoding: %4"),
            ("nbd://h/%zz", "NBD URI: malformed %-encoding: %zz"),
            ("nbd://h/%00", "NBD URI: not UTF-8 without NUL: %00"),
            ("nbd://h/%ff", "NBD URI: not UTF-8 without NUL: %ff"),
            ("nbds://h?tls-type=anon", "NBD URI: tls-type=anon: only x509 and psk are supported"),
            ("nbd://h:1\n2", "NBD URI: bad port: h:1\\n2"),
            ("nbd://h?tls-verify-peer=x", "could not decipher boolean (x)"),
            ("nbd://h?tls-verify-peer=%0a", "could not decipher boolean (%0a)"),
        ] {
            let why = parse(text).unwrap_err();
            assert!(why.message().starts_with(message), "{text}: {}", why.message());
            assert!(!why.message().contains('\n'), "{text}");
        }
    }
}
