//! Process titles: what ps(1) shows as the command of a process that another one of ours has started, written over its
//! own arguments.
//!
//! The kernel shows the memory in which it put the arguments; it cannot be moved without privileges. So [`room`] makes the
//! first argument long enough, [`adopt`] finds it, and [`set`] writes there: stores to memory, no system call, one page
//! that a fork then has for itself.

#![expect(unsafe_code, reason = "the arguments are overwritten in place")]

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::OnceLock;

/// The longest title, bytes.
pub const MAX_TITLE: usize = 255;

/// The longest part of a title that names something, bytes; what is longer is cut, which `...` shows.
const MAX_NAME: usize = 96;

/// What begins the first argument of a program that systemd is not to end with the others: a server of the root disk. It
/// looks at every process by itself. systemd, "Storage Daemons for the Root File System".
pub const ROOT_STORAGE_DAEMON: u8 = b'@';

/// Where the arguments of this process are.
#[derive(Debug, Clone, Copy)]
struct Area {
    address: usize,
    length: usize,
    /// Whether the title begins with [`ROOT_STORAGE_DAEMON`].
    spared: bool,
}

static AREA: OnceLock<Area> = OnceLock::new();

/// The first argument for a program that will show titles: `title`, and room for others. `spared`: the listener's own
/// first argument begins with [`ROOT_STORAGE_DAEMON`].
pub fn room(title: &str, spared: bool) -> OsString {
    let mut bytes = text(title, spared);
    bytes.resize(MAX_TITLE, b' ');
    OsString::from_vec(bytes)
}

/// Finds the arguments of this process and leaves of them what [`room`] was given. To be called once, when the program has
/// read its arguments. Without /proc the process keeps them.
pub fn adopt() {
    let Some(first) = std::env::args_os().next() else { return };
    let first = first.as_bytes().trim_ascii_end();
    let (spared, title) = match first.strip_prefix(&[ROOT_STORAGE_DAEMON]) {
        Some(title) => (true, title),
        None => (false, first),
    };
    let Some(title) = title.strip_prefix(b"nbdkit: ") else { return };
    let title = String::from_utf8_lossy(title).into_owned();
    if let Ok(stat) = std::fs::read_to_string("/proc/self/stat")
        && let Some((address, length)) = arguments(&stat)
    {
        let area = *AREA.get_or_init(|| Area { address, length, spared });
        write(area, &text(&title, spared), length);
    }
}

/// Shows `title`, after the server's name. Does nothing in a process that has not [adopted](adopt) its arguments.
pub fn set(title: &str) {
    if let Some(area) = AREA.get() {
        // What follows the last title is zero already.
        write(*area, &text(title, area.spared), MAX_TITLE);
    }
}

/// `name` as a part of a title: printable ASCII without blanks, bounded. A client may have chosen it.
pub fn name(name: impl AsRef<OsStr>) -> String {
    let mut text = String::new();
    for byte in name.as_ref().as_bytes() {
        let escaped = match byte {
            b'\\' => "\\\\".to_owned(),
            b'!'..=b'~' => char::from(*byte).to_string(),
            other => format!("\\x{other:02x}"),
        };
        if text.len() + escaped.len() > MAX_NAME {
            text.push_str("...");
            break;
        }
        text.push_str(&escaped);
    }
    text
}

fn text(title: &str, spared: bool) -> Vec<u8> {
    let mut bytes = if spared { vec![ROOT_STORAGE_DAEMON] } else { Vec::new() };
    bytes.extend_from_slice(b"nbdkit: ");
    bytes.extend_from_slice(title.as_bytes());
    bytes.truncate(MAX_TITLE);
    bytes
}

/// Address and length of the arguments. proc_pid_stat(5), arg_start and arg_end, fields 48 and 49.
fn arguments(stat: &str) -> Option<(usize, usize)> {
    // The name, in parentheses, may contain anything; the third field follows the last one.
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split_ascii_whitespace().skip(48 - 3);
    let start: usize = fields.next()?.parse().ok()?;
    let end: usize = fields.next()?.parse().ok()?;
    let length = end.checked_sub(start)?;
    (start != 0 && length > MAX_TITLE).then_some((start, length))
}

/// Writes `title`, at most [`MAX_TITLE`] bytes, and zeroes behind it until there are zeroes, at most up to `reach`.
fn write(area: Area, title: &[u8], reach: usize) {
    let start = std::ptr::with_exposed_provenance_mut::<u8>(area.address);
    let reach = reach.min(area.length);
    // SAFETY: the kernel has put the arguments of this process at `area`, in memory that stays mapped and writable: the
    // bottom of the first thread's stack; `arguments` made sure that it is longer than MAX_TITLE, and thereby that a zero
    // remains behind the title. Nothing in Rust refers to it: std copies arguments when it is asked for them, and what a C
    // library has kept (program_invocation_name) reads a string that ends before the area does. No other thread reads
    // it: our programs ask for arguments only before there are others.
    unsafe {
        start.copy_from_nonoverlapping(title.as_ptr(), title.len());
        let mut behind = title.len();
        while behind < reach && (reach == area.length || *start.add(behind) != 0) {
            *start.add(behind) = 0;
            behind += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_printable_and_bounded() {
        for (given, shown) in [
            (&b"disk"[..], "disk"),
            (b"", ""),
            (b"a b", "a\\x20b"),
            (b"\\x20", "\\\\x20"),
            ("\u{e9}\u{202e}".as_bytes(), "\\xc3\\xa9\\xe2\\x80\\xae"),
            (b"\x1b[2J\0\n\xff", "\\x1b[2J\\x00\\x0a\\xff"),
        ] {
            assert_eq!(name(OsStr::from_bytes(given)), shown);
        }
        assert_eq!(name("x".repeat(MAX_NAME)), "x".repeat(MAX_NAME));
        assert_eq!(name("x".repeat(4096)), "x".repeat(MAX_NAME) + "...");
        assert_eq!(name("\n".repeat(4096)), "\\x0a".repeat(MAX_NAME / 4) + "...");
    }

    #[test]
    fn room_is_made_with_blanks_and_a_sign_is_kept() {
        let room = |title, spared| room(title, spared).into_string().unwrap();
        assert_eq!(room("template file", false).trim_end(), "nbdkit: template file");
        assert_eq!(room("spawner", true).trim_end(), "@nbdkit: spawner");
        assert_eq!(room("spawner", true).len(), MAX_TITLE);
        assert_eq!(room(&"x".repeat(1000), false).len(), MAX_TITLE);
    }

    #[test]
    fn arguments_are_found_behind_any_name() {
        let fields = (3..48).map(|n| n.to_string()).collect::<Vec<_>>().join(" ");
        let stat = |start: usize, end: usize| format!("1 (a) b) {fields} {start} {end} 7 8\n");
        assert_eq!(arguments(&stat(1000, 1300)), Some((1000, 300)));
        assert_eq!(arguments(&stat(1000, 1100)), None, "too short for a title");
        assert_eq!(arguments(&stat(0, 0)), None, "not shown");
        assert_eq!(arguments(&stat(1300, 1000)), None);
        assert_eq!(arguments("1 (a"), None);
    }
}
