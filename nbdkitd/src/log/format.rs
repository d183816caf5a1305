//! The format of log lines. Pure. The text of a line may come from a client by way of a worker:
//! characters that could move a terminal's cursor, forge a second line or reverse the text are
//! escaped.

#![forbid(unsafe_code)]

use std::fmt::Write as _;

use nbdkit_ipc::messages::{Level, Peer};

use crate::connections::client_name;

/// The source of a line, and whom it is about.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Speaker<'a> {
    /// Plugin or filter; `None` for the server itself.
    pub(crate) layer: Option<&'a str>,
    /// Number of the connection; 0 for none.
    pub(crate) connection: u64,
    /// The client, if the line is about one.
    pub(crate) client: Option<Subject<'a>>,
}

/// The client that a line is about, as far as it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Subject<'a> {
    /// Its address and credentials.
    pub(crate) peer: &'a Peer,
    /// The export that it has chosen: its own word.
    pub(crate) export: Option<&'a str>,
    /// The subject of its certificate: its worker's word.
    pub(crate) tls_dn: Option<&'a str>,
    /// Why its connection has ended, in the line that reports that.
    pub(crate) reason: Option<&'a str>,
    /// Whether the text of the line names it.
    pub(crate) is_named: bool,
}

/// A line, beside its text.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry<'a> {
    pub(super) level: Level,
    pub(super) speaker: Speaker<'a>,
    /// The filters and the plugin.
    pub(super) stack: &'a str,
}

/// Longest name of a layer that is printed, bytes.
const MAX_LAYER: usize = 64;

/// A line for standard error, with its newline: `nbdkit: file[1]: error: open: disk.img: ...`. This
/// is nbdkit's format.
///
/// `bold` makes the layer's name stand out on a terminal.
pub(crate) fn line(
    prefix: &str,
    speaker: Speaker<'_>,
    level: Level,
    text: &str,
    bold: bool,
) -> String {
    let mut line = format!("{prefix}: ");
    let name = name(speaker);
    if !name.is_empty() {
        let (on, off) = if bold { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
        // Writing to a String does not fail.
        let _ = write!(line, "{on}{name}{off}: ");
    }
    finish(&mut line, level, text);
    line
}

/// A line for a file, with its newline and without the time: as [`line`], and with the client.
pub(super) fn file_line(prefix: &str, speaker: Speaker<'_>, level: Level, text: &str) -> String {
    let mut line = format!("{prefix}: ");
    introduce(&mut line, speaker);
    finish(&mut line, level, text);
    line
}

/// A line for the system log, which adds time, program, process and priority itself.
pub(super) fn syslog_line(speaker: Speaker<'_>, text: &str) -> String {
    let mut line = String::new();
    introduce(&mut line, speaker);
    escape(&mut line, text);
    line
}

/// The layer and the client, before the text: what a worker has written cannot look like it.
fn introduce(line: &mut String, speaker: Speaker<'_>) {
    let name = name(speaker);
    if !name.is_empty() {
        let _ = write!(line, "{name}: ");
    }
    if let Some(client) = speaker.client.filter(|client| !client.is_named) {
        let _ = write!(line, "{}: ", client_name(client.peer));
    }
}

fn finish(line: &mut String, level: Level, text: &str) {
    line.push_str(match level {
        Level::Error => "error: ",
        Level::Warning => "warning: ",
        Level::Notice => "notice: ",
        Level::Debug => "debug: ",
    });
    escape(line, text);
    line.push('\n');
}

/// `LAYER[CONNECTION]`, or less. A name holds only what the names of plugins and filters may hold.
fn name(speaker: Speaker<'_>) -> String {
    let mut name: String =
        speaker
            .layer
            .unwrap_or_default()
            .bytes()
            .take(MAX_LAYER)
            .map(|byte| {
                if byte.is_ascii_alphanumeric() || b"-_.".contains(&byte) {
                    byte.into()
                } else {
                    '?'
                }
            })
            .collect();
    if speaker.connection != 0 {
        let _ = write!(name, "[{}]", speaker.connection);
    }
    name
}

/// Appends `text` with control characters, and characters that change the direction of text, as C
/// escapes.
pub(crate) fn escape(line: &mut String, text: &str) {
    for character in text.chars() {
        if let Some(letter) = c_escape(character) {
            line.extend(['\\', letter]);
            continue;
        }
        match character {
            '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                escape_bytes(line, character);
            }
            _ if character.is_control() => escape_bytes(line, character),
            _ => line.push(character),
        }
    }
}

/// The letter of C's escape for a control character, if it has one.
fn c_escape(character: char) -> Option<char> {
    let known =
        ['\u{7}', '\u{8}', '\t', '\n', '\u{b}', '\u{c}', '\r'].iter().zip("abtnvfr".chars());
    known.into_iter().find(|(control, _)| **control == character).map(|(_, letter)| letter)
}

fn escape_bytes(line: &mut String, character: char) {
    for byte in character.encode_utf8(&mut [0; 4]).bytes() {
        let _ = write!(line, "\\x{byte:02x}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nbdkit_ipc::messages::PeerAddress;

    fn speaker(layer: &str, connection: u64) -> Speaker<'_> {
        Speaker { layer: (!layer.is_empty()).then_some(layer), connection, client: None }
    }

    #[test]
    fn lines_are_those_of_nbdkit() {
        for (layer, connection, level, expected) in [
            ("file", 1, Level::Error, "nbdkit: file[1]: error: x\n"),
            ("null", 12, Level::Debug, "nbdkit: null[12]: debug: x\n"),
            ("null", 0, Level::Debug, "nbdkit: null: debug: x\n"),
            ("", 0, Level::Error, "nbdkit: error: x\n"),
            ("", 0, Level::Warning, "nbdkit: warning: x\n"),
            ("", 0, Level::Notice, "nbdkit: notice: x\n"),
        ] {
            assert_eq!(line("nbdkit", speaker(layer, connection), level, "x", false), expected);
        }
        let named = line("nbdkit[web]", speaker("", 0), Level::Error, "x", false);
        assert_eq!(named, "nbdkit[web]: error: x\n");
    }

    #[test]
    fn a_log_names_the_client_once_and_before_the_text_and_a_terminal_does_not() {
        let peer = Peer { address: PeerAddress::Unix, credentials: Some((7, 8, 9)), ..peer() };
        let client = Subject {
            peer: &peer,
            export: Some("disk"),
            tls_dn: None,
            reason: None,
            is_named: false,
        };
        let of = |client| Speaker { client: Some(client), ..speaker("file", 1) };
        let from_worker = of(client);
        assert_eq!(
            file_line("nbdkit", from_worker, Level::Error, "x (client pid 1 uid 0)"),
            "nbdkit: file[1]: client pid 7 uid 8: error: x (client pid 1 uid 0)\n"
        );
        assert_eq!(syslog_line(from_worker, "x"), "file[1]: client pid 7 uid 8: x");
        assert_eq!(
            line("nbdkit", from_worker, Level::Error, "x", false),
            "nbdkit: file[1]: error: x\n"
        );
        let from_listener = of(Subject { is_named: true, ..client });
        assert_eq!(syslog_line(from_listener, "x (client ...)"), "file[1]: x (client ...)");
        assert_eq!(
            file_line("nbdkit", Speaker::default(), Level::Warning, "x"),
            "nbdkit: warning: x\n"
        );
    }

    fn peer() -> Peer {
        Peer::default()
    }

    #[test]
    fn the_layer_is_bold_on_a_terminal() {
        assert_eq!(
            line("nbdkit", speaker("cow", 2), Level::Debug, "x", true),
            "nbdkit: \x1b[1mcow[2]\x1b[0m: debug: x\n"
        );
    }

    #[test]
    fn control_characters_are_escaped_and_others_are_not() {
        for (text, expected) in [
            ("a\nnbdkit: error: forged", "a\\nnbdkit: error: forged"),
            ("\x1b[2J\r\t\0\x7f", "\\x1b[2J\\r\\t\\x00\\x7f"),
            ("\x07\x08\x0b\x0c", "\\a\\b\\v\\f"),
            ("\u{9b}31m", "\\xc2\\x9b31m"),
            ("\u{202e}txt", "\\xe2\\x80\\xaetxt"),
            ("grün \\ \"ok\"", "grün \\ \"ok\""),
        ] {
            let mut line = String::new();
            escape(&mut line, text);
            assert_eq!(line, expected);
        }
    }

    #[test]
    fn layer_names_cannot_forge_anything() {
        let forged = line("nbdkit", speaker("x: error: \x1b[1m\n", 0), Level::Debug, "", false);
        assert_eq!(forged, "nbdkit: x??error????1m?: debug: \n");
        let long = "n".repeat(1000);
        assert_eq!(syslog_line(speaker(&long, 0), "t").len(), MAX_LAYER + 3);
    }
}
