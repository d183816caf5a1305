//! `cache=none`: keeps what clients read and write from filling the page cache.
//!
//! Pages that were read are dropped at once. Written pages can be dropped only when they are on
//! disk, and waiting for each would make every write synchronous: so write-out is started with each
//! write, and waited for when seven younger writes stand behind it, at which time it is usually
//! done.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use super::syscall::sync_range;

/// Writes whose pages are still in the cache.
const WINDOWS: usize = 8;

/// The ranges last written by one client, oldest first.
#[derive(Debug, Default)]
pub(super) struct Windows(Mutex<VecDeque<(u64, u64)>>);

impl Windows {
    fn lock(&self) -> MutexGuard<'_, VecDeque<(u64, u64)>> {
        // The queue is consistent between any two of its calls.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that the range was written, and drops the oldest one from the cache.
    ///
    /// # Errors
    /// Those of sync_file_range(2), perhaps of an earlier write.
    pub(super) fn written(&self, fd: BorrowedFd<'_>, offset: u64, count: u64) -> nix::Result<()> {
        sync_range(fd, offset, count, false)?;
        let oldest = {
            let mut windows = self.lock();
            windows.push_back((offset, count));
            if windows.len() > WINDOWS { windows.pop_front() } else { None }
        };
        match oldest {
            Some((offset, count)) => write_out_and_drop(fd, offset, count),
            None => Ok(()),
        }
    }

    /// Drops the ranges that are left, when the client goes.
    pub(super) fn close(&self, fd: BorrowedFd<'_>) {
        for (offset, count) in self.lock().drain(..) {
            if let Err(errno) = write_out_and_drop(fd, offset, count) {
                nbdkit_api::debug!("sync_file_range: {}", nbdkit_api::strerror(errno));
            }
        }
    }
}

fn write_out_and_drop(fd: BorrowedFd<'_>, offset: u64, count: u64) -> nix::Result<()> {
    sync_range(fd, offset, count, true)?;
    drop_pages(fd, offset, count);
    Ok(())
}

/// The kernel caches files in folios of up to this many bytes and drops a folio only as a whole.
const LARGEST_FOLIO: u64 = 2 << 20;

/// Drops clean pages. Advice: it does not matter if it fails.
///
/// The folio that a small request ends in is usually still to be used by the next one, and no range
/// of a small request covers a whole folio. So the range begins a folio earlier: each is dropped by
/// the first request that reaches its end.
pub(super) fn drop_pages(fd: BorrowedFd<'_>, offset: u64, count: u64) {
    let start = offset.saturating_sub(LARGEST_FOLIO);
    let end = offset.saturating_add(count);
    let (Ok(offset), Ok(count)) = (i64::try_from(start), i64::try_from(end - start)) else {
        return;
    };
    let _ = posix_fadvise(fd, offset, count, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn no_more_ranges_are_kept_than_there_are_windows() {
        let dir = crate::test_dir::TestDir::new();
        let file = std::fs::File::create_new(dir.join("disk")).unwrap();
        file.set_len(1 << 20).unwrap();
        let windows = Windows::default();
        for i in 0..20 {
            windows.written(file.as_fd(), i * 4096, 4096).unwrap();
        }
        assert_eq!(windows.lock().front(), Some(&(12 * 4096, 4096)));
        assert_eq!(windows.lock().len(), WINDOWS);
        windows.close(file.as_fd());
        assert!(windows.lock().is_empty());
    }
}
