//! Process titles: what ps(1) shows as the command of template, workers, broker and spawner.
//!
//! The kernel shows the memory where it has put the arguments. [`adopt`] makes it show a variable
//! of this module instead, which is on a page that a worker writes anyway, so that a title costs a
//! worker no page. A kernel without CONFIG_CHECKPOINT_RESTORE cannot do that; for it [`room`] makes
//! the first argument long enough to be overwritten in place. In both cases [`set`] only stores to
//! memory, without a system call.

#![expect(unsafe_code, reason = "the arguments are moved, or overwritten in place")]

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::OnceLock;
use std::sync::atomic::AtomicU8;

use nix::libc;

/// The longest title, bytes.
pub const MAX_TITLE: usize = 255;

/// The longest name in a title, bytes. Longer names are truncated, with `...`.
const MAX_NAME: usize = 96;

/// The first byte of the first argument of a process that systemd is not to kill with the others: a
/// server of the root disk. systemd looks at each process by itself. systemd, "Storage Daemons for
/// the Root File System".
pub const ROOT_STORAGE_DAEMON: u8 = b'@';

/// The memory that the kernel shows as the arguments of this process.
#[derive(Debug, Clone, Copy)]
struct Area {
    address: usize,
    length: usize,
    /// Whether the title begins with [`ROOT_STORAGE_DAEMON`].
    spared: bool,
}

static AREA: OnceLock<Area> = OnceLock::new();

thread_local! {
    /// The title, in the first thread's copy. Thread-local, because the kernel does not show memory
    /// that is mapped from a file, as other static variables are.
    static TITLE: [AtomicU8; MAX_TITLE + 1] = const { [const { AtomicU8::new(0) }; MAX_TITLE + 1] };
}

/// The first argument for a program that will set titles: `title`, and room for longer ones.
/// `spared`: the listener's own first argument begins with [`ROOT_STORAGE_DAEMON`].
pub fn room(title: &str, spared: bool) -> OsString {
    let mut bytes = text(title, spared);
    bytes.resize(MAX_TITLE, b' ');
    OsString::from_vec(bytes)
}

/// Finds the arguments of this process and shows the title that [`room`] was given. To be called
/// once, when the program has read its arguments, by its only thread. Without /proc the title
/// cannot be changed.
pub fn adopt() {
    let Some(first) = std::env::args_os().next() else { return };
    let first = first.as_bytes().trim_ascii_end();
    let (spared, title) = match first.strip_prefix(&[ROOT_STORAGE_DAEMON]) {
        Some(title) => (true, title),
        None => (false, first),
    };
    let Some(title) = title.strip_prefix(b"nbdkit: ") else { return };
    let title = String::from_utf8_lossy(title).into_owned();
    let Ok(stat) = std::fs::read_to_string("/proc/self/stat") else { return };
    let Some(memory) = Memory::of(&stat) else { return };
    let text = text(&title, spared);
    let own = TITLE.with(|title| {
        let address = title.as_ptr().cast::<AtomicU8>().expose_provenance();
        Area { address, length: title.len(), spared }
    });
    write(own, &text, own.length);
    let area = if memory.with_arguments_in(own).tell_kernel() {
        own
    } else {
        let Some((address, length)) = memory.arguments() else { return };
        let area = Area { address, length, spared };
        write(area, &text, length);
        area
    };
    let _ = AREA.set(area);
}

/// The kernel's record of this process's memory, as PR_SET_MM_MAP takes it. struct prctl_mm_map,
/// linux/prctl.h.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Memory {
    start_code: u64,
    end_code: u64,
    start_data: u64,
    end_data: u64,
    start_brk: u64,
    brk: u64,
    start_stack: u64,
    arg_start: u64,
    arg_end: u64,
    env_start: u64,
    env_end: u64,
    /// Null: unchanged.
    auxv: u64,
    auxv_size: u32,
    /// -1: unchanged.
    exe_fd: u32,
}

impl Memory {
    /// From /proc/self/stat. proc_pid_stat(5); the fields are numbered as there.
    fn of(stat: &str) -> Option<Memory> {
        // The name, in parentheses, may contain anything; the third field follows the last one.
        let (_, fields) = stat.rsplit_once(") ")?;
        let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        let start_brk = field(47)?;
        Some(Memory {
            start_code: field(26)?,
            end_code: field(27)?,
            start_data: field(45)?,
            end_data: field(46)?,
            start_brk,
            brk: start_brk,
            start_stack: field(28)?,
            arg_start: field(48)?,
            arg_end: field(49)?,
            env_start: field(50)?,
            env_end: field(51)?,
            auxv: 0,
            auxv_size: 0,
            exe_fd: u32::MAX,
        })
    }

    fn with_arguments_in(self, area: Area) -> Memory {
        let (start, length) = (area.address as u64, area.length as u64);
        Memory { arg_start: start, arg_end: start + length, ..self }
    }

    /// Address and length of the arguments, if a title fits.
    fn arguments(&self) -> Option<(usize, usize)> {
        let length = usize::try_from(self.arg_end.checked_sub(self.arg_start)?).ok()?;
        let start = usize::try_from(self.arg_start).ok()?;
        (start != 0 && length > MAX_TITLE).then_some((start, length))
    }

    /// Sets the record. Returns whether the kernel has taken it. PR_SET_MM_MAP, PR_SET_MM(2const).
    fn tell_kernel(mut self) -> bool {
        // SAFETY: sbrk(0) changes nothing. The kernel reads one structure, of the size that is
        // passed. All values but the arguments' come from the kernel, and no code here reads the
        // arguments by the kernel's record. The end of the heap is read last: between that and the
        // call nothing allocates, and no other thread runs (`adopt` is called by the only thread).
        unsafe {
            self.brk = libc::sbrk(0) as u64;
            libc::prctl(
                libc::PR_SET_MM,
                libc::c_ulong::from(libc::PR_SET_MM_MAP as u32),
                &raw const self,
                size_of::<Memory>(),
                0,
            ) == 0
        }
    }
}

/// Shows `title`, after the server's name. Does nothing in a process that has not [adopted](adopt)
/// its arguments.
pub fn set(title: &str) {
    if let Some(area) = AREA.get() {
        // The bytes behind the last title are zero already.
        write(*area, &text(title, area.spared), MAX_TITLE);
    }
}

/// `name` as a part of a title: printable ASCII without blanks, of bounded length. A client may
/// have chosen it.
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

/// Writes `title`, at most [`MAX_TITLE`] bytes, and zeroes behind it until there are zeroes, at
/// most up to `reach`.
fn write(area: Area, title: &[u8], reach: usize) {
    let start = std::ptr::with_exposed_provenance_mut::<u8>(area.address);
    let reach = reach.min(area.length);
    // SAFETY: `area` is either the first thread's TITLE, which is there as long as the process,
    // atomic, and accessed nowhere else; or where the kernel has put the arguments of this process,
    // in memory that stays mapped and writable: the bottom of the first thread's stack. Nothing in
    // Rust refers to that: std copies arguments when it is asked for them, and what a C library has
    // kept (program_invocation_name) reads a string that ends before the area does. Both are longer
    // than MAX_TITLE (`Memory::arguments`), so that a zero remains behind the title. No other
    // thread reads or writes them: our programs ask for arguments only before there are others, and
    // a process changes its title on one thread.
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
    fn memory_is_found_behind_any_name() {
        let fields = (3..48).map(|n| n.to_string()).collect::<Vec<_>>().join(" ");
        let memory = |start: usize, end: usize| {
            Memory::of(&format!("1 (a) b) {fields} {start} {end} 50 51\n")).unwrap()
        };
        assert_eq!(memory(1000, 1300).arguments(), Some((1000, 300)));
        assert_eq!(memory(1000, 1100).arguments(), None, "too short for a title");
        assert_eq!(memory(0, 0).arguments(), None, "not shown");
        assert_eq!(memory(1300, 1000).arguments(), None);
        let it = memory(48, 49);
        assert_eq!([it.start_code, it.end_code, it.start_stack], [26, 27, 28]);
        assert_eq!([it.start_data, it.end_data, it.start_brk], [45, 46, 47]);
        assert_eq!([it.arg_start, it.arg_end, it.env_start, it.env_end], [48, 49, 50, 51]);
        assert!(Memory::of("1 (a").is_none() && Memory::of("1 (a) S 1 2").is_none());
    }

    /// In place, as where PR_SET_MM_MAP is not supported.
    #[test]
    fn a_shorter_title_leaves_nothing_of_a_longer_one() {
        let memory = vec![b'x'; 300].leak();
        let address = memory.as_mut_ptr().expose_provenance();
        let area = Area { address, length: 300, spared: false };
        let shown = || String::from_utf8(memory_at(area).to_vec()).unwrap();
        write(area, b"nbdkit: a long one", area.length);
        write(area, b"nbdkit: b", MAX_TITLE);
        assert_eq!(shown().trim_end_matches('\0'), "nbdkit: b");
        write(area, &[b'y'; MAX_TITLE], MAX_TITLE);
        assert_eq!(shown().trim_end_matches('\0').len(), MAX_TITLE);
    }

    fn memory_at(area: Area) -> &'static [u8] {
        let start = std::ptr::with_exposed_provenance::<u8>(area.address);
        // SAFETY: the test above has leaked this memory, of this length, and no thread writes it.
        unsafe { std::slice::from_raw_parts(start, area.length) }
    }
}
