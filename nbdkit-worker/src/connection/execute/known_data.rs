//! What is known of a file's map: a range that is all data, so that not each large read of it asks
//! for holes. On tmpfs SEEK_HOLE looks at each page up to the next hole, 3 ms for 256 MiB.
//!
//! That a hole is taken for data is never wrong, it is sent as the zeroes that it reads as.

#![forbid(unsafe_code)]

use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nbdkit_api::FileRange;
use nix::unistd::{Whence, lseek64};

/// How long a range is taken for data in which other clients may have made holes.
const LIFETIME: Duration = Duration::from_secs(1);

/// The last range that was found to be all data.
#[derive(Debug, Default)]
pub(crate) struct KnownData(Mutex<Option<Known>>);

#[derive(Debug)]
struct Known {
    file: RawFd,
    start: u64,
    end: u64,
    since: Instant,
}

impl KnownData {
    fn lock(&self) -> MutexGuard<'_, Option<Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether so many bytes of a file are all data, as far as is known or the file tells.
    pub(super) fn covers(&self, range: &FileRange<'_>, length: u64) -> bool {
        let (file, start) = (range.fd.as_raw_fd(), range.offset);
        let Some(end) = start.checked_add(length) else { return false };
        let is_known = |it: &Known| {
            it.file == file && it.start <= start && end <= it.end && it.since.elapsed() < LIFETIME
        };
        if self.lock().as_ref().is_some_and(is_known) {
            return true;
        }
        let hole = i64::try_from(start).ok().and_then(|at| {
            // The end of the file counts as a hole.
            lseek64(range.fd, at, Whence::SeekHole).ok().map(|hole| hole as u64)
        });
        let Some(hole) = hole.filter(|hole| *hole > start) else { return false };
        *self.lock() = Some(Known { file, start, end: hole, since: Instant::now() });
        end <= hole
    }

    /// This client has made a hole.
    pub(super) fn forget(&self) {
        *self.lock() = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;

    #[test]
    fn data_is_known_until_a_hole_is_made_and_a_hole_is_no_data() {
        let path = std::env::temp_dir().join(format!("nbdkit-known-{}", std::process::id()));
        let file = std::fs::File::options().read(true).write(true).create_new(true).open(&path);
        let file = file.unwrap();
        std::fs::remove_file(&path).unwrap();
        file.write_all_at(&[1; 1 << 20], 0).unwrap();
        file.set_len(3 << 20).unwrap();
        file.write_all_at(&[1; 1 << 20], 2 << 20).unwrap();
        let known = KnownData::default();
        let covers = |offset, length| {
            known.covers(&FileRange { fd: file.as_fd(), offset, in_memory: None }, length)
        };
        assert!(covers(0, 1 << 20) && covers(4096, 4096));
        assert!(!covers(0, (1 << 20) + 1) && !covers(1 << 20, 4096) && !covers(3 << 20, 1));
        assert!(covers(2 << 20, 1 << 20) && !covers(u64::MAX, 2));
        // What is known is not asked for again, and forgotten when the client makes a hole.
        assert!(covers(2 << 20, 4096));
        file.set_len(1 << 20).unwrap();
        assert!(covers(2 << 20, 4096));
        known.forget();
        assert!(!covers(2 << 20, 4096));
    }
}
