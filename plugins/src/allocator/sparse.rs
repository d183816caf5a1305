//! `allocator=sparse`: a memfd. The kernel keeps the pages that were written, finds holes and
//! gives punched pages back; the workers share it because they inherit its descriptor.

use std::os::fd::{AsFd, BorrowedFd};

use nbdkit_api::shared::SharedFile;
use nbdkit_api::{Extents, Isolation, Result};

use super::Allocator;

/// Preferred block size, bytes: the page size of nbdkit's sparse array.
const PREFERRED: u32 = 32 << 10;

/// See the module's text.
#[derive(Debug)]
pub(super) struct Sparse {
    file: SharedFile,
}

impl Sparse {
    pub(super) fn new(name: &str) -> Result<Sparse> {
        Ok(Sparse { file: SharedFile::in_memory(name, 0)? })
    }
}

impl Allocator for Sparse {
    fn set_size(&mut self, size: u64) -> Result<()> {
        self.file.set_len(size)
    }

    fn read(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.file.read_at(buf, offset)
    }

    fn write(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.file.write_at(buf, offset)
    }

    fn zero(&self, count: u64, offset: u64) -> Result<()> {
        self.file.punch_hole(offset, count)
    }

    fn extents(&self, count: u64, offset: u64, one: bool, extents: &mut Extents) -> Result<()> {
        self.file.extents(count, offset, one, extents)
    }

    fn as_file(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }

    fn preferred_block_size(&self) -> u32 {
        PREFERRED
    }

    fn isolation(&self) -> Isolation {
        Isolation::Connection
    }
}
