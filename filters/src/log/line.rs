//! One entry of the log, as a line of text and as variables for a script.
//! nbdkit-log-filter(1), "LOG FILE FORMAT" and "LOG SCRIPT".

use std::fmt::{Display, Write};

use jiff::Timestamp;
use nbdkit_api::{Errno, Exports, ExtentKind, Extents, Result};

/// Whether an entry stands for the call, for its return, or for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Enter,
    Leave,
    Print,
}

impl Kind {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Kind::Enter => "ENTER",
            Kind::Leave => "LEAVE",
            Kind::Print => "PRINT",
        }
    }
}

/// What happened, and when.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) time: Timestamp,
    pub(super) kind: Kind,
    pub(super) action: &'static str,
    pub(super) connection: Option<u64>,
    pub(super) id: Option<u64>,
    pub(super) fields: Vec<Field>,
}

/// `key=value` behind the action.
#[derive(Debug)]
pub(super) struct Field {
    pub(super) key: &'static str,
    /// As a script sees it.
    pub(super) value: String,
    /// As the file has it, if that differs.
    quoted: Option<String>,
    /// What a script sees instead: an array.
    pub(super) list: Option<Vec<String>>,
}

impl Entry {
    /// An entry without fields, timed now.
    pub(super) fn now(kind: Kind, action: &'static str) -> Entry {
        let time = Timestamp::now();
        Entry { time, kind, action, connection: None, id: None, fields: Vec::new() }
    }

    pub(super) fn print(action: &'static str) -> Entry {
        Entry::now(Kind::Print, action)
    }

    pub(super) fn enter(action: &'static str, id: u64) -> Entry {
        Entry::now(Kind::Enter, action).numbered(id)
    }

    pub(super) fn leave(action: &'static str, id: u64) -> Entry {
        Entry::now(Kind::Leave, action).numbered(id)
    }

    pub(super) fn numbered(mut self, id: u64) -> Entry {
        self.id = Some(id);
        self
    }

    pub(super) fn on(mut self, connection: u64) -> Entry {
        self.connection = Some(connection);
        self
    }

    pub(super) fn with(mut self, key: &'static str, value: impl Display) -> Entry {
        self.fields.push(Field { key, value: value.to_string(), quoted: None, list: None });
        self
    }

    pub(super) fn flag(self, key: &'static str, value: bool) -> Entry {
        self.with(key, u8::from(value))
    }

    pub(super) fn hex(self, key: &'static str, value: u64) -> Entry {
        self.with(key, format_args!("{value:#x}"))
    }

    /// A string from a client.
    pub(super) fn quoted(mut self, key: &'static str, value: &str) -> Entry {
        let quoted = Some(quote(value));
        self.fields.push(Field { key, value: value.to_owned(), quoted, list: None });
        self
    }

    /// A list: its text, and for scripts its items.
    pub(super) fn list(mut self, key: &'static str, (text, items): (String, Vec<String>)) -> Entry {
        self.fields.push(Field { key, value: text, quoted: None, list: Some(items) });
        self
    }

    /// How a request went.
    pub(super) fn outcome(self, result: &Result<()>) -> Entry {
        match result {
            Ok(()) => self.with("return", 0),
            Err(error) => self.with("return", -1).with("error", errno_name(error.errno())),
        }
    }

    /// The line without timestamp and newline.
    pub(super) fn text(&self) -> String {
        let mut line = String::new();
        // Writing to a String cannot fail.
        if let Some(connection) = self.connection {
            let _ = write!(line, "connection={connection} ");
        }
        if self.kind == Kind::Leave {
            line.push_str("...");
        }
        line.push_str(self.action);
        if let Some(id) = self.id {
            let _ = write!(line, " id={id}");
        }
        for field in &self.fields {
            let value = field.quoted.as_ref().unwrap_or(&field.value);
            let _ = write!(line, " {}={value}", field.key);
        }
        if self.kind == Kind::Enter {
            line.push_str(" ...");
        }
        line
    }
}

/// The names of exports as a shell list, and the items of that.
pub(super) fn export_list(exports: &Exports) -> (String, Vec<String>) {
    let names: Vec<_> = exports.iter().map(|export| quote(&export.name)).collect();
    let items = exports.iter().map(|export| export.name.clone()).collect();
    (format!("({})", names.join(" ")), items)
}

/// Offset, length and type of each extent as a shell list, and the items of that.
pub(super) fn extent_list(extents: &Extents) -> (String, Vec<String>) {
    let mut list = String::from("(");
    let mut items = Vec::new();
    for (i, extent) in extents.iter().enumerate() {
        let separator = if i == 0 { "" } else { " " };
        let kind = if extent.kind == ExtentKind::SPARSE {
            "hole,zero"
        } else if extent.kind == ExtentKind::HOLE {
            "hole"
        } else if extent.kind == ExtentKind::ZERO {
            "zero"
        } else {
            ""
        };
        // Writing to a String cannot fail.
        let _ = write!(list, "{separator}{:#x} {:#x} \"{kind}\"", extent.offset, extent.length);
        items.push(format!("{:#x}", extent.offset));
        items.push(format!("{:#x}", extent.length));
        items.push(kind.to_owned());
    }
    list.push(')');
    (list, items)
}

/// Quotes `text` for a shell. Unlike nbdkit's, the result never holds a control character: a client
/// must not be able to write lines of its own.
fn quote(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=,:/.".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    let mut quoted = String::with_capacity(text.len() + 2);
    if text.chars().any(char::is_control) {
        quoted.push_str("$'");
        for c in text.chars() {
            match c {
                '\n' => quoted.push_str("\\n"),
                '\r' => quoted.push_str("\\r"),
                '\t' => quoted.push_str("\\t"),
                '\\' | '\'' => quoted.extend(['\\', c]),
                c if c.is_control() => {
                    for byte in c.encode_utf8(&mut [0; 4]).bytes() {
                        let _ = write!(quoted, "\\x{byte:02x}");
                    }
                }
                c => quoted.push(c),
            }
        }
        quoted.push('\'');
    } else {
        quoted.push('"');
        for c in text.chars() {
            if "$`\\\"".contains(c) {
                quoted.push('\\');
            }
            quoted.push(c);
        }
        quoted.push('"');
    }
    quoted
}

/// The name of the NBD error that the client sees.
fn errno_name(errno: Errno) -> &'static str {
    match errno {
        Errno::EPERM | Errno::EROFS => "EPERM",
        Errno::ENOMEM => "ENOMEM",
        Errno::EINVAL => "EINVAL",
        Errno::ENOSPC | Errno::EDQUOT | Errno::EFBIG => "ENOSPC",
        Errno::EOVERFLOW => "EOVERFLOW",
        Errno::EOPNOTSUPP => "ENOTSUP",
        Errno::ESHUTDOWN => "ESHUTDOWN",
        _ => "EIO",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_quoted_for_the_shell() {
        for (text, quoted) in [
            ("", "\"\""),
            ("foo-_.:,=/b", "foo-_.:,=/b"),
            ("a b", "\"a b\""),
            ("it's", "\"it's\""),
            ("c$'d\"`\\", "\"c\\$'d\\\"\\`\\\\\""),
            ("é", "\"é\""),
            ("a\n2026-01-01 Ready", "$'a\\n2026-01-01 Ready'"),
            ("\x1b[1m'\u{85}", "$'\\x1b[1m\\'\\xc2\\x85'"),
        ] {
            assert_eq!(quote(text), quoted);
        }
    }
}
