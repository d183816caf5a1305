//! Which processes are there: each holds the record lock (fcntl(2), F_SETLK) of the byte that has
//! its process id as offset, in a file that is shared by fork. The kernel releases it when the
//! process ends, however it ends, and a process that merely has the same number does not have it.

#![forbid(unsafe_code)]

use std::os::fd::OwnedFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::error::{Result, ResultExt};

/// A record lock for each process that uses a shared object, which the kernel drops with it.
#[derive(Debug)]
pub(super) struct Presence {
    file: OwnedFd,
    /// The process that holds its lock. A fork finds its parent's here, and takes its own.
    entered: AtomicU32,
}

/// The one that all mutexes of a process and its forks share: made before the first fork.
///
/// # Errors
/// ENOMEM, EMFILE.
pub(super) fn of_mutexes() -> Result<&'static Presence> {
    static MUTEXES: OnceLock<Presence> = OnceLock::new();
    if let Some(presence) = MUTEXES.get() {
        return Ok(presence);
    }
    let presence = Presence::new()?;
    Ok(MUTEXES.get_or_init(|| presence))
}

impl Presence {
    fn new() -> Result<Presence> {
        let file = memfd_create(c"nbdkit:locks", MFdFlags::MFD_CLOEXEC)
            .or_error(|| "memfd_create: locks")?;
        Ok(Presence { file, entered: AtomicU32::new(0) })
    }

    /// Makes this process one that is there; returns its id.
    pub(super) fn enter(&self) -> u32 {
        let me = std::process::id();
        if self.entered.load(Ordering::Relaxed) != me {
            let lock = record(me, libc::F_WRLCK);
            // It fails only if another process has taken our lock, which then stands for us; and is
            // tried again.
            if fcntl(&self.file, FcntlArg::F_SETLK(&lock)).is_ok() {
                self.entered.store(me, Ordering::Relaxed);
            }
        }
        me
    }

    /// Whether the process of this number is one that is there. Not to be asked about this one.
    pub(super) fn is_here(&self, process: u32) -> bool {
        let mut lock = record(process, libc::F_WRLCK);
        let asked = fcntl(&self.file, FcntlArg::F_GETLK(&mut lock));
        asked.is_err() || libc::c_int::from(lock.l_type) != libc::F_UNLCK
    }
}

fn record(process: u32, kind: libc::c_int) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: process.into(),
        l_len: 1,
        l_pid: 0,
    }
}
