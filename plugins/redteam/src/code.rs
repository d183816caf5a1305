//! Attacks that would have this process run code of the attacker's.

#![forbid(unsafe_code)]

use std::fs::File;
use std::os::unix::fs::FileExt;

use nix::libc;

use crate::{raw, system};

const PAGE: libc::c_long = 4096;

/// Maps memory that may be executed.
pub(crate) fn map() -> nix::Result<String> {
    memory(libc::PROT_READ | libc::PROT_EXEC).map(|_| "ok".to_owned())
}

/// Has memory executable that was written to.
pub(crate) fn make() -> nix::Result<String> {
    let start = memory(libc::PROT_READ | libc::PROT_WRITE)?;
    let protection = libc::PROT_READ | libc::PROT_EXEC;
    raw::call(libc::SYS_mprotect, &[start, PAGE, protection.into()]).map(|_| "ok".to_owned())
}

fn memory(protection: libc::c_int) -> nix::Result<libc::c_long> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    raw::call(libc::SYS_mmap, &[0, PAGE, protection.into(), flags.into(), -1, 0])
}

/// Writes over code of its own, which the kernel permits here whatever the mapping says; with what
/// stands there.
pub(crate) fn write() -> nix::Result<String> {
    let (code, mut byte) = (write as fn() -> nix::Result<String> as usize as u64, [0]);
    File::options()
        .read(true)
        .write(true)
        .open("/proc/self/mem")
        .and_then(|memory| {
            memory.read_exact_at(&mut byte, code)?;
            memory.write_all_at(&byte, code)
        })
        .map(|()| "ok".to_owned())
        .map_err(|error| system::errno(&error))
}
