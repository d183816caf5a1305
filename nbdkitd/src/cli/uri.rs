//! The NBD URI of this server, quoting for the shell, and the texts made of them: `--print-uri`,
//! `--run`.
//!
//! Used by the listener once it knows its socket and whether TLS is on. Paths and names are the
//! caller's bytes: they go through a shell in `--run`, so everything outside a small set is quoted.
//! NBD URI specification; nbdkit(1), "NBD URIs and endpoints"; nbdkit-captive(1).

#![forbid(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use super::command_line::{ServiceMode, TcpPort, Tls, TlsMode};

/// Where clients can reach the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Endpoint<'a> {
    /// A Unix socket, absolute.
    Unix(&'a Path),
    /// TCP on this machine; the port only if `-p` was given.
    Tcp(Option<&'a TcpPort>),
    /// AF_VSOCK, the local CID; the port only if `-p` was given.
    Vsock(Option<u32>),
}

impl ServiceMode {
    /// What the URI is made of; `None` with `-s` and socket activation, which have no URI.
    ///
    /// `private_socket` is the path that was made up for [`UnixPrivate`](Self::UnixPrivate), and is
    /// not looked at otherwise.
    pub(crate) fn endpoint<'a>(&'a self, private_socket: &'a Path) -> Option<Endpoint<'a>> {
        match self {
            Self::SocketActivation { .. } | Self::Stdin => None,
            Self::Unix(path) => Some(Endpoint::Unix(path)),
            Self::UnixPrivate => Some(Endpoint::Unix(private_socket)),
            Self::Vsock { port } => Some(Endpoint::Vsock(*port)),
            Self::Tcp { port, .. } => Some(Endpoint::Tcp(port.as_ref())),
        }
    }
}

/// The URI. Pure ASCII, without blanks.
///
/// `tls_mode` is the mode after looking for certificates; only [`TlsMode::Require`]
/// changes the scheme and adds the certificates or keys in `tls`.
pub(crate) fn uri(endpoint: Endpoint<'_>, export: &OsStr, tls_mode: TlsMode, tls: &Tls) -> String {
    let require = tls_mode == TlsMode::Require;
    let mut uri = String::from(if require { "nbds" } else { "nbd" });
    let mut separator = '?';
    let mut query = |uri: &mut String, key: &str, value: &OsStr| {
        uri.push(separator);
        uri.push_str(key);
        uri.push('=');
        percent_encode(uri, value);
        separator = '&';
    };
    match endpoint {
        Endpoint::Unix(_) => uri.push_str("+unix://"),
        Endpoint::Tcp(port) => {
            uri.push_str("://localhost");
            if let Some(port) = port {
                uri.push(':');
                percent_encode(&mut uri, &port.text());
            }
        }
        Endpoint::Vsock(port) => {
            // 1 is VMADDR_CID_LOCAL: this machine.
            uri.push_str("+vsock://1");
            if let Some(port) = port {
                uri.push(':');
                uri.push_str(&port.to_string());
            }
        }
    }
    if !export.is_empty() {
        uri.push('/');
        percent_encode(&mut uri, export);
    }
    if let Endpoint::Unix(path) = endpoint {
        query(&mut uri, "socket", path.as_os_str());
    }
    if require {
        if let Some(certificates) = &tls.certificates {
            query(&mut uri, "tls-certificates", certificates);
        } else if let Some(psk) = &tls.psk {
            query(&mut uri, "tls-psk-file", psk);
        }
    }
    uri
}

/// The text of `--print-uri`, four lines, for standard output.
pub(crate) fn print_uri(uri: &str) -> String {
    let quoted = shell_quote(uri.as_ref());
    let quoted = quoted.to_string_lossy();
    format!(
        "{uri}\nShell-quoted URI: {quoted}\nCommand to query the NBD endpoint:\n  nbdinfo {quoted}\n"
    )
}

/// What `--run` hands to `sh -c`: an assignment on each line, then the command.
///
/// `uri` is empty when there is none. The variables are not exported; the command does that if it
/// wants to. `tls` is not assigned when TLS is off.
pub(crate) fn run_script(
    command: &OsStr,
    endpoint: Option<Endpoint<'_>>,
    export: &OsStr,
    tls_mode: TlsMode,
    tls: &Tls,
) -> OsString {
    let uri = endpoint.map(|endpoint| uri(endpoint, export, tls_mode, tls)).unwrap_or_default();
    let (port, socket) = match endpoint {
        None => (OsString::new(), OsStr::new("")),
        Some(Endpoint::Unix(path)) => (OsString::new(), path.as_os_str()),
        Some(Endpoint::Tcp(port)) => (port.map(TcpPort::text).unwrap_or_default(), OsStr::new("")),
        Some(Endpoint::Vsock(port)) => {
            (port.map(|port| port.to_string()).unwrap_or_default().into(), OsStr::new(""))
        }
    };
    let mut script = OsString::new();
    let mut assign = |name: &str, value: &OsStr| {
        script.push(name);
        script.push("=");
        script.push(shell_quote(value));
        script.push("\n");
        if name == "uri" {
            script.push("nbd=\"$uri\"\n");
        }
    };
    assign("uri", uri.as_ref());
    assign("exportname", export);
    assign("port", &port);
    assign("unixsocket", socket);
    match tls_mode {
        TlsMode::Off => {}
        TlsMode::On => assign("tls", OsStr::new("1")),
        TlsMode::Require => assign("tls", OsStr::new("2")),
    }
    assign("tls_certificates", tls.certificates.as_deref().unwrap_or_default());
    assign("tls_psk", tls.psk.as_deref().unwrap_or_default());
    script.push(command);
    script
}

/// Quotes a word for a POSIX shell: as it is if it is not empty and plain, in double quotes
/// otherwise.
pub(crate) fn shell_quote(word: &OsStr) -> OsString {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b".-_=,:/".contains(byte);
    let bytes = word.as_bytes();
    if !bytes.is_empty() && bytes.iter().all(plain) {
        return word.to_owned();
    }
    let mut quoted = vec![b'"'];
    for byte in bytes {
        if b"$`\\\"".contains(byte) {
            quoted.push(b'\\');
        }
        quoted.push(*byte);
    }
    quoted.push(b'"');
    OsString::from_vec(quoted)
}

/// Appends `text`, everything but ASCII letters, digits and `.-_~/` as `%XX`.
fn percent_encode(uri: &mut String, text: &OsStr) {
    for byte in text.as_bytes() {
        if byte.is_ascii_alphanumeric() || b".-_~/".contains(byte) {
            uri.push(char::from(*byte));
        } else {
            // Writing to a String does not fail.
            let _ = write!(uri, "%{byte:02X}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tls(certificates: Option<&str>, psk: Option<&str>) -> Tls {
        Tls {
            certificates: certificates.map(Into::into),
            psk: psk.map(Into::into),
            ..Tls::default()
        }
    }

    fn of(endpoint: Endpoint<'_>, export: &str, mode: TlsMode) -> String {
        uri(endpoint, export.as_ref(), mode, &Tls::default())
    }

    #[test]
    fn uris_are_those_of_nbdkit() {
        let socket = Endpoint::Unix(Path::new("/tmp/socket"));
        let number = TcpPort::Number(10995);
        let name = TcpPort::Service("nbd".into());
        for (endpoint, export, mode, expected) in [
            (socket, "", TlsMode::Off, "nbd+unix://?socket=/tmp/socket"),
            (socket, "", TlsMode::On, "nbd+unix://?socket=/tmp/socket"),
            (socket, "a", TlsMode::Require, "nbds+unix:///a?socket=/tmp/socket"),
            (Endpoint::Tcp(None), "", TlsMode::Off, "nbd://localhost"),
            (Endpoint::Tcp(Some(&number)), "x/y", TlsMode::Off, "nbd://localhost:10995/x/y"),
            (Endpoint::Tcp(Some(&name)), "", TlsMode::Require, "nbds://localhost:nbd"),
            (Endpoint::Vsock(None), "", TlsMode::Off, "nbd+vsock://1"),
            (Endpoint::Vsock(Some(3333)), "e", TlsMode::Require, "nbds+vsock://1:3333/e"),
        ] {
            assert_eq!(of(endpoint, export, mode), expected);
        }
    }

    #[test]
    fn export_and_socket_are_percent_encoded() {
        assert_eq!(
            of(
                Endpoint::Unix(Path::new("/tmp/we ~ird$.sock")),
                "a b\"c$d`e\\f'g!h\ni&é~%",
                TlsMode::Off
            ),
            "nbd+unix:///a%20b%22c%24d%60e%5Cf%27g%21h%0Ai%26%C3%A9~%25?socket=/tmp/we%20~ird%24.sock"
        );
        assert_eq!(
            of(Endpoint::Tcp(None), "a_b.c-d:e@f,g=h+i/j", TlsMode::Off),
            "nbd://localhost/a_b.c-d%3Ae%40f%2Cg%3Dh%2Bi/j"
        );
        let raw = OsStr::from_bytes(b"\xff");
        assert_eq!(
            uri(Endpoint::Tcp(None), raw, TlsMode::Off, &Tls::default()),
            "nbd://localhost/%FF"
        );
    }

    #[test]
    fn credentials_are_named_only_when_tls_is_required() {
        let socket = Endpoint::Unix(Path::new("/s"));
        let tcp = Endpoint::Tcp(None);
        let both = tls(Some("/c"), Some("/k"));
        let psk = tls(None, Some("k p"));
        let none = OsStr::new("");
        assert_eq!(
            uri(socket, none, TlsMode::Require, &both),
            "nbds+unix://?socket=/s&tls-certificates=/c"
        );
        assert_eq!(
            uri(socket, none, TlsMode::Require, &psk),
            "nbds+unix://?socket=/s&tls-psk-file=k%20p"
        );
        assert_eq!(uri(tcp, none, TlsMode::Require, &psk), "nbds://localhost?tls-psk-file=k%20p");
        assert_eq!(uri(tcp, none, TlsMode::On, &both), "nbd://localhost");
    }

    #[test]
    fn plain_strings_are_not_quoted_and_others_are_escaped() {
        for (word, quoted) in [
            ("nbd://localhost:10809/x", "nbd://localhost:10809/x"),
            ("", "\"\""),
            ("nbd+unix://?socket=/s", "\"nbd+unix://?socket=/s\""),
            ("a$b`c\\d\"e'f!g\nh", "\"a\\$b\\`c\\\\d\\\"e'f!g\nh\""),
            ("~", "\"~\""),
        ] {
            assert_eq!(shell_quote(word.as_ref()), quoted);
        }
    }

    #[test]
    fn a_shell_reads_back_what_was_quoted() {
        for word in ["a b\"c$d`e\\f'g!h\ni&é~%", "$(exit 3)", "\\", "*", "-n"] {
            let mut script = OsString::from("printf '%s' ");
            script.push(shell_quote(word.as_ref()));
            let output = std::process::Command::new("sh").arg("-c").arg(&script).output().unwrap();
            assert_eq!(output.stdout, word.as_bytes());
        }
    }

    #[test]
    fn print_uri_is_four_lines() {
        assert_eq!(
            print_uri("nbd+unix://?socket=/tmp/socket"),
            "nbd+unix://?socket=/tmp/socket\n\
             Shell-quoted URI: \"nbd+unix://?socket=/tmp/socket\"\n\
             Command to query the NBD endpoint:\n\
             \x20 nbdinfo \"nbd+unix://?socket=/tmp/socket\"\n"
        );
        assert!(print_uri("nbd://localhost").ends_with("  nbdinfo nbd://localhost\n"));
    }

    #[test]
    fn run_assigns_in_order_and_leaves_tls_out_when_it_is_off() {
        let script = run_script(
            "echo hi".as_ref(),
            Some(Endpoint::Unix(Path::new("/s"))),
            "e x".as_ref(),
            TlsMode::Off,
            &Tls::default(),
        );
        assert_eq!(
            script,
            "uri=\"nbd+unix:///e%20x?socket=/s\"\nnbd=\"$uri\"\nexportname=\"e x\"\nport=\"\"\nunixsocket=/s\n\
             tls_certificates=\"\"\ntls_psk=\"\"\necho hi"
        );
        let number = TcpPort::Number(99);
        let script = run_script(
            "x".as_ref(),
            Some(Endpoint::Tcp(Some(&number))),
            "".as_ref(),
            TlsMode::Require,
            &tls(Some("c"), Some("k")),
        );
        assert_eq!(
            script,
            "uri=\"nbds://localhost:99?tls-certificates=c\"\nnbd=\"$uri\"\nexportname=\"\"\nport=99\nunixsocket=\"\"\n\
             tls=2\ntls_certificates=c\ntls_psk=k\nx"
        );
    }
}
