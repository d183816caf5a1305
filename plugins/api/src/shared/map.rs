//! Atomic words in memory that all processes map.
//!
//! The one place that maps memory. Soundness rests on two things: a mapping is made here,
//! page-aligned and of a length known to this module, and lives as long as the value that holds it;
//! and what it is seen as, atomics, is valid whatever bytes another process puts there.

#![expect(unsafe_code, reason = "maps memory and hands out references into it")]

use std::num::NonZeroUsize;
use std::ops::Deref;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use nix::libc::off_t;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

use crate::error::{Errno, Error, Result, ResultExt};
use crate::shared::SharedFile;

/// An array of atomic words shared with every process forked from now on. All zero at first; pages
/// that nobody touched cost nothing.
#[derive(Debug)]
pub struct SharedWords {
    start: NonNull<AtomicU64>,
    words: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread, and is only ever seen as atomics.
unsafe impl Send for SharedWords {}
// SAFETY: a shared reference gives atomics only, which any number of threads may access, as other
// processes do.
unsafe impl Sync for SharedWords {}

impl SharedWords {
    /// `words` fresh words.
    ///
    /// # Errors
    /// ENOMEM.
    pub fn new(words: usize) -> Result<SharedWords> {
        let length = length(words)?;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches nothing of
        // ours.
        let start = unsafe {
            mmap_anonymous(
                None,
                length,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_SHARED | MapFlags::MAP_NORESERVE,
            )
        };
        Ok(SharedWords { start: start.or_error(|| "mmap")?.cast(), words })
    }

    /// `words` words that stand in `file` from byte `offset`, a multiple of the page size. The
    /// file is grown to hold them. Processes that map the same place share it, whenever they do.
    ///
    /// A memfd can never be shrunk from then on: touching a page beyond its end would be SIGBUS in
    /// all processes that map it.
    ///
    /// # Errors
    /// ENOMEM, ENOSPC, EINVAL for an unaligned offset.
    pub fn in_file(file: &SharedFile, offset: u64, words: usize) -> Result<SharedWords> {
        let length = length(words)?;
        let end = offset
            .checked_add(length.get() as u64)
            .ok_or_else(|| Error::os("mmap", Errno::EOVERFLOW))?;
        file.never_shrink()?;
        if file.size()? < end {
            // Another process may have made it longer than that by now, and it stays so.
            file.set_len(end)
                .or_else(|error| if file.size()? < end { Err(error) } else { Ok(()) })?;
        }
        let at = off_t::try_from(offset).map_err(|_| Error::os("mmap", Errno::EOVERFLOW))?;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing of ours. The
        // file is at least as long as the mapping, and `never_shrink` keeps it so.
        let start = unsafe {
            mmap(
                None,
                length,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_SHARED | MapFlags::MAP_NORESERVE,
                file.as_fd(),
                at,
            )
        };
        Ok(SharedWords { start: start.or_error(|| "mmap")?.cast(), words })
    }
}

fn length(words: usize) -> Result<NonZeroUsize> {
    words
        .checked_mul(size_of::<u64>())
        .and_then(NonZeroUsize::new)
        .ok_or_else(|| Error::os("mmap", Errno::ENOMEM))
}

impl Deref for SharedWords {
    type Target = [AtomicU64];

    fn deref(&self) -> &[AtomicU64] {
        // SAFETY: `start` was mapped in `new` or `in_file` for `words` words, page-aligned, and is
        // unmapped only in `drop`; every bit pattern is a valid AtomicU64.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.words) }
    }
}

impl Drop for SharedWords {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping made in `new` or `in_file`; no reference outlives `self`.
        let _ = unsafe { munmap(self.start.cast(), self.words * size_of::<u64>()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    #[test]
    fn two_mappings_of_one_place_are_the_same_words() {
        let file = SharedFile::in_memory("test", 0).unwrap();
        let a = SharedWords::in_file(&file, 4096, 1000).unwrap();
        let b = SharedWords::in_file(&file, 4096, 1000).unwrap();
        a[999].store(42, Ordering::SeqCst);
        assert_eq!(b[999].load(Ordering::SeqCst), 42);
        assert_eq!(file.size().unwrap(), 4096 + 8000);
        assert!(
            file.set_len(0).is_err(),
            "a hostile worker must not be able to pull the pages away"
        );
    }

    #[test]
    fn an_empty_array_is_refused() {
        assert!(SharedWords::new(0).is_err());
        assert!(SharedWords::new(usize::MAX).is_err());
    }
}
