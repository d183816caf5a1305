//! `allocator=NAME,max=SIZE`: a limit on the memory that a disk uses, whatever its size.
//!
//! The inner allocator knows what is used (of a memfd the kernel counts the pages), so there is no
//! counter that a killed worker could leave wrong. A shared mutex is held from the check to the end
//! of the write.

use std::os::fd::BorrowedFd;

use nbdkit_api::shared::SharedMutex;
use nbdkit_api::{Errno, Error, Extents, Isolation, Result};

use super::Allocator;

/// An allocator with a limit on the memory that it uses.
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
        Error::new(Errno::ENOSPC, format!("allocator: no memory left: max={max} is reached"))
    }
}

impl Allocator for Limited {
    fn set_size(&mut self, size: u64) -> Result<()> {
        if self.inner.is_preallocated() && size > self.max {
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
        if self.inner.is_preallocated() {
            return self.inner.write(buf, offset);
        }
        let _locked = self.writing.lock();
        let left = self.max.saturating_sub(self.inner.used()?);
        // The first is an upper bound and needs no look at the disk.
        if self.inner.max_cost(buf.len() as u64) > left && self.inner.cost(buf, offset)? > left {
            return Err(self.full());
        }
        self.inner.write(buf, offset)
    }

    // Zeroing a part of a compressed page changes its size, so it must not come between check and
    // write.
    fn zero(&self, count: u64, offset: u64) -> Result<()> {
        if self.inner.is_preallocated() {
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

    fn used(&self) -> Result<u64> {
        self.inner.used()
    }

    fn is_preallocated(&self) -> bool {
        self.inner.is_preallocated()
    }

    fn max_cost(&self, count: u64) -> u64 {
        self.inner.max_cost(count)
    }

    fn cost(&self, buf: &[u8], offset: u64) -> Result<u64> {
        self.inner.cost(buf, offset)
    }

    fn may_wait(&self) -> bool {
        !self.inner.is_preallocated()
    }
}
