//! `allocator=NAME,max=SIZE`: a limit on the memory that a disk takes, below its size.
//!
//! What is taken is counted by whoever keeps it, the kernel above all, so a process that is killed leaves nothing wrong. Writes
//! are checked and done one at a time, under a lock that all workers share.

use std::os::fd::BorrowedFd;

use nbdkit_api::shared::SharedMutex;
use nbdkit_api::{Errno, Error, Extents, Isolation, Result};

use super::Allocator;

/// See the module's text.
#[derive(Debug)]
pub(super) struct Limited {
    inner: Box<dyn Allocator>,
    /// Bytes.
    max: u64,
    writing: SharedMutex<0>,
}

impl Limited {
    /// # Errors
    /// ENOMEM, EMFILE.
    pub(super) fn new(inner: Box<dyn Allocator>, max: u64) -> Result<Limited> {
        Ok(Limited { inner, max, writing: SharedMutex::new([])? })
    }

    fn full(&self) -> Error {
        let max = self.max;
        Error::new(Errno::ENOSPC, format!("allocator: no room: max={max} is reached"))
    }
}

impl Allocator for Limited {
    fn set_size(&mut self, size: u64) -> Result<()> {
        if self.inner.takes_all() && size > self.max {
            let max = self.max;
            return Err(Error::new(
                Errno::ENOSPC,
                format!("allocator: a disk of {size} bytes is larger than max={max}"),
            ));
        }
        self.inner.set_size(size)
    }

    fn read(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.inner.read(buf, offset)
    }

    fn write(&self, buf: &[u8], offset: u64) -> Result<()> {
        if self.inner.takes_all() {
            return self.inner.write(buf, offset);
        }
        let _locked = self.writing.lock();
        let left = self.max.saturating_sub(self.inner.taken()?);
        // Nearly always true, and quicker to find out.
        if self.inner.takes_at_most(buf.len() as u64) > left
            && self.inner.takes(buf, offset)? > left
        {
            return Err(self.full());
        }
        self.inner.write(buf, offset)
    }

    // What is compressed changes its size, so nobody may write meanwhile.
    fn zero(&self, count: u64, offset: u64) -> Result<()> {
        if self.inner.takes_all() {
            return self.inner.zero(count, offset);
        }
        let _locked = self.writing.lock();
        self.inner.zero(count, offset)
    }

    fn extents(&self, count: u64, offset: u64, one: bool, extents: &mut Extents) -> Result<()> {
        self.inner.extents(count, offset, one, extents)
    }

    fn as_file(&self) -> Option<BorrowedFd<'_>> {
        self.inner.as_file()
    }

    fn preferred_block_size(&self) -> u32 {
        self.inner.preferred_block_size()
    }

    fn isolation(&self) -> Isolation {
        self.inner.isolation()
    }

    fn taken(&self) -> Result<u64> {
        self.inner.taken()
    }

    fn takes_all(&self) -> bool {
        self.inner.takes_all()
    }

    fn takes_at_most(&self, count: u64) -> u64 {
        self.inner.takes_at_most(count)
    }

    fn takes(&self, buf: &[u8], offset: u64) -> Result<u64> {
        self.inner.takes(buf, offset)
    }

    fn may_wait(&self) -> bool {
        !self.inner.takes_all()
    }
}
