//! Whether a client has written what it has not flushed.
//!
//! A file whose writing fails later reports that to the next fsync(2) of whoever has it open now:
//! such a client keeps it open.

#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicBool, Ordering};

use nbdkit_api::{Flags, Result};

/// Writes of a connection since its last flush.
#[derive(Debug, Default)]
pub(crate) struct Unflushed(AtomicBool);

impl Unflushed {
    /// A request that changes the disk was carried out with these flags, well or not.
    #[inline]
    pub(crate) fn written(&self, flags: Flags) {
        // Read first: the pool's threads need not take each other's cache line for each write.
        if !flags.contains(Flags::FUA) && !self.0.load(Ordering::Relaxed) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    /// Carries out a flush: of what was written before it begins, if it succeeds.
    ///
    /// # Errors
    /// Those of `flush`.
    pub(crate) fn flush(&self, flush: impl FnOnce() -> Result<()>) -> Result<()> {
        let written = self.0.swap(false, Ordering::Relaxed);
        let result = flush();
        if result.is_err() && written {
            self.0.store(true, Ordering::Relaxed);
        }
        result
    }

    /// Whether there are any.
    pub(crate) fn any(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nbdkit_api::{Errno, Error};

    #[test]
    fn a_flush_is_of_what_was_written_before_it_and_only_if_it_succeeds() {
        let writes = Unflushed::default();
        writes.written(Flags::FUA);
        assert!(!writes.any());
        writes.written(Flags::empty());
        assert!(writes.any());
        assert!(writes.flush(|| Err(Error::silent(Errno::EIO))).is_err());
        assert!(writes.any());
        writes.flush(|| Ok(())).unwrap();
        assert!(!writes.any());
        writes.written(Flags::empty());
        let meanwhile = || {
            writes.written(Flags::empty());
            Ok(())
        };
        writes.flush(meanwhile).unwrap();
        assert!(writes.any());
    }
}
