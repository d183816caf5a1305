//! Workers that have the template's page tables of code.
//!
//! fork(2) copies no page tables of a mapping that could be filled again from its file: a worker
//! would have a page fault for each stretch of code that it runs, two dozen of them before its
//! client has the handshake behind it. A mapping of which the process has a page of its own is
//! copied. So the template gets one of each: a byte of it is written as it is. Not by mprotect(2),
//! which would make code writable for a moment, and which SELinux and systemd's
//! MemoryDenyWriteExecute refuse, but by /proc/self/mem.
//!
//! Where that is refused too, a client costs 40 to 90 microseconds more, and nothing else is
//! different.

#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Shorter mappings cost more in each fork than they save, bytes: the dynamic linker, libgcc.
const FROM: u64 = 256 << 10;

/// Has forks of this process get the page tables of its code.
///
/// # Errors
/// Those of /proc/self/mem: EACCES once the process has changed its user.
pub(crate) fn copy_at_fork() -> io::Result<()> {
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let memory = File::options().read(true).write(true).open("/proc/self/mem")?;
    for start in maps.lines().filter_map(code) {
        let mut byte = [0];
        memory.read_exact_at(&mut byte, start)?;
        memory.write_all_at(&byte, start)?;
    }
    Ok(())
}

/// Where the mapping of a line of /proc/self/maps begins, if it is one of a file's code. proc(5).
fn code(line: &str) -> Option<u64> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let (permissions, inode) = (fields.next()?, fields.nth(2)?);
    let number = |text| u64::from_str_radix(text, 16).ok();
    let (start, end) = (number(start)?, number(end)?);
    (permissions == "r-xp" && inode != "0" && end.saturating_sub(start) >= FROM).then_some(start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_of_files_is_found() {
        let long = "558debd2a000-558dec299000 r-xp 002aa000 fe:00 53192  /usr/sbin/nbdkit worker";
        assert_eq!(code(long), Some(0x558d_ebd2_a000));
        for other in [
            "558debd2a000-558dec299000 r--p 002aa000 fe:00 53192  /usr/sbin/nbdkit",
            "558debd2a000-558dec299000 rwxp 002aa000 fe:00 53192  /usr/sbin/nbdkit",
            "558debd2a000-558dec299000 r-xs 002aa000 fe:00 53192  /usr/sbin/nbdkit",
            "558debd2a000-558debd2b000 r-xp 002aa000 fe:00 53192  /usr/lib/short.so",
            "7ffd1a5f2000-7ffd1a5f4000 r-xp 00000000 00:00 0      [vdso]",
            "ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0  [vsyscall]",
            "",
            "nonsense",
        ] {
            assert_eq!(code(other), None, "{other}");
        }
    }

    /// The process has a page of its own of each such mapping then.
    #[test]
    fn a_page_of_each_is_copied() {
        copy_at_fork().unwrap();
        let (mut mapping, mut found) = (None, 0);
        for line in std::fs::read_to_string("/proc/self/smaps").unwrap().lines() {
            if let Some(start) = code(line) {
                mapping = Some(start);
            } else if let Some(size) = line.strip_prefix("Anonymous:")
                && mapping.take().is_some()
            {
                assert_ne!(size.trim(), "0 kB");
                found += 1;
            }
        }
        assert!(found > 0);
    }
}
