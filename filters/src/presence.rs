//! Which clients are there: places that connections take, and that the kernel frees when the
//! process that serves a connection dies, however it dies.
//!
//! Each place is one byte of a shared file and taken by a POSIX record lock (fcntl(2), F_SETLK):
//! such locks belong to a process, are not inherited over fork and end with it. So a worker killed
//! in mid-flight leaks nothing, and one that its client has taken over can at most keep places
//! while it lives. Several connections may be served by one process, whose own locks never
//! conflict; these are distinguished by a list in ordinary memory.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nbdkit_api::shared::{SharedFile, SharedWords};
use nbdkit_api::{Errno, Result, ResultExt};
use nix::fcntl::{FcntlArg, fcntl};

/// Places for clients. Made in the template, in `get_ready`.
#[derive(Debug)]
pub(crate) struct Places {
    file: SharedFile,
    /// Where to look first for a free place: a hint, so it does not matter who wrote it.
    hint: SharedWords,
    /// How many there are.
    limit: u64,
    /// Those that this process holds.
    own: Mutex<BTreeSet<u64>>,
}

/// A place, until it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    places: Arc<Places>,
    number: u64,
}

impl Places {
    /// `limit` places, at most `i64::MAX`.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn new(name: &str, limit: u64) -> Result<Arc<Places>> {
        Ok(Arc::new(Places {
            file: SharedFile::in_memory(name, 0)?,
            hint: SharedWords::new(1)?,
            limit: limit.clamp(1, i64::MAX as u64),
            own: Mutex::default(),
        }))
    }

    fn own(&self) -> MutexGuard<'_, BTreeSet<u64>> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a free place; `None` if there is none.
    ///
    /// # Errors
    /// ENOLCK.
    pub(crate) fn take(self: &Arc<Places>) -> Result<Option<Place>> {
        let mut own = self.own();
        let start = self.hint[0].fetch_add(1, Ordering::Relaxed) % self.limit;
        // Every place passed over is held by a client, so this ends soon even if the limit is
        // large.
        for number in (start..self.limit).chain(0..start) {
            if !own.contains(&number) && self.lock(number, libc::F_WRLCK)? {
                own.insert(number);
                return Ok(Some(Place { places: Arc::clone(self), number }));
            }
        }
        Ok(None)
    }

    /// Whether there is a free place; it may be gone by the time it is wanted.
    ///
    /// # Errors
    /// EIO.
    pub(crate) fn vacant(&self) -> Result<bool> {
        let own = self.own();
        let start = self.hint[0].load(Ordering::Relaxed) % self.limit;
        for number in (start..self.limit).chain(0..start) {
            if !own.contains(&number) && !self.locked_elsewhere(number, 1)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether any client, of this process or another, holds a place.
    ///
    /// # Errors
    /// EIO.
    pub(crate) fn occupied(&self) -> Result<bool> {
        Ok(!self.own().is_empty() || self.locked_elsewhere(0, 0)?)
    }

    /// Whether a client of another process has taken this place.
    ///
    /// # Errors
    /// EIO.
    pub(crate) fn is_taken_elsewhere(&self, number: u64) -> Result<bool> {
        self.locked_elsewhere(number, 1)
    }

    fn locked_elsewhere(&self, start: u64, length: i64) -> Result<bool> {
        let mut range = record(libc::F_WRLCK, start, length);
        fcntl(self.file.as_fd(), FcntlArg::F_GETLK(&mut range)).or_error(|| "fcntl F_GETLK")?;
        Ok(i32::from(range.l_type) != libc::F_UNLCK)
    }

    /// Locks or unlocks one place; false if another process holds it.
    fn lock(&self, number: u64, kind: i32) -> Result<bool> {
        match fcntl(self.file.as_fd(), FcntlArg::F_SETLK(&record(kind, number, 1))) {
            Ok(_) => Ok(true),
            Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
            Err(errno) => Err(errno).or_error(|| "fcntl F_SETLK"),
        }
    }
}

impl Place {
    /// Which one it is, below the limit.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut own = self.places.own();
        own.remove(&self.number);
        // Unlocking what is locked fails only if the kernel is out of memory for splitting a
        // record; the place then stays taken until the process ends.
        let _ = self.places.lock(self.number, libc::F_UNLCK);
    }
}

impl AsFd for Places {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// `length` bytes from `start`; length 0 means up to the end.
fn record(kind: i32, start: u64, length: i64) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start as i64,
        l_len: length,
        l_pid: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;
    use std::process::{Command, Stdio};

    #[test]
    fn there_are_as_many_places_as_the_limit_says() {
        let places = Places::new("test", 2).unwrap();
        assert!(!places.occupied().unwrap());
        let first = places.take().unwrap().unwrap();
        let second = places.take().unwrap().unwrap();
        assert_ne!(first.number, second.number);
        assert!(places.take().unwrap().is_none());
        assert!(!places.vacant().unwrap());
        drop(first);
        assert!(places.vacant().unwrap());
        let third = places.take().unwrap().unwrap();
        assert!(places.take().unwrap().is_none());
        drop((second, third));
        assert!(!places.occupied().unwrap());
    }

    /// Needs a process of its own for the lock, which only another program can be here.
    #[test]
    fn a_killed_process_gives_its_place_back() {
        let places = Places::new("test", 1).unwrap();
        let path = format!("/proc/{}/fd/{}", std::process::id(), places.file.as_fd().as_raw_fd());
        let script = "import fcntl,sys,time\n\
            f=open(sys.argv[1],'r+b')\n\
            fcntl.lockf(f,fcntl.LOCK_EX|fcntl.LOCK_NB,1,0)\n\
            print('locked',flush=True)\n\
            time.sleep(60)\n";
        let child =
            Command::new("python3").args(["-c", script, &path]).stdout(Stdio::piped()).spawn();
        let Ok(mut child) = child else {
            eprintln!("skipped: no python3 to hold a lock from another process");
            return;
        };
        let mut line = String::new();
        let mut out = std::io::BufReader::new(child.stdout.take().unwrap());
        std::io::BufRead::read_line(&mut out, &mut line).unwrap();
        assert_eq!(line, "locked\n");
        assert!(places.occupied().unwrap());
        assert!(places.take().unwrap().is_none());
        assert!(!places.vacant().unwrap());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!places.occupied().unwrap());
        assert!(places.take().unwrap().is_some());
    }
}
