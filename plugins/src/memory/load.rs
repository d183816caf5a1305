//! `load=`: what a disk in memory holds at first.

#![forbid(unsafe_code)]

use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use nbdkit_api::paths::{self, Declared, Opened};
use nbdkit_api::shared::seek_extents;
use nbdkit_api::{Error, ExtentKind, Extents, Result, ResultExt};

use crate::allocator::{self, Allocator};
use crate::file::disk::file_size;

/// Bytes that are read at a time, and whose holes are looked for at a time.
const PIECE: u64 = 1 << 20;
const STRETCH: u64 = 1 << 30;

/// The file, open.
pub(super) struct Source {
    opened: Opened,
    /// Bytes.
    pub(super) size: u64,
}

impl Source {
    /// # Errors
    /// It is no regular file or block device; the kernel's.
    pub(super) fn open(path: &PathBuf) -> Result<Source> {
        let opened = paths::open(&Declared::file(path), None, true)?;
        let size = file_size(&opened.file, opened.is_block_device)
            .or_error(|| format!("size: {}", opened.name))?;
        Ok(Source { opened, size })
    }

    /// Copies what is neither hole nor zeroes.
    ///
    /// # Errors
    /// The file is larger than the disk of `size` bytes; its data do not fit into memory; EIO.
    pub(super) fn copy(&self, disk: &dyn Allocator, size: u64) -> Result<()> {
        let name = &self.opened.name;
        if self.size > size {
            return Err(Error::msg(format!(
                "load={name}: the file has {} bytes, and the disk {size}",
                self.size
            )));
        }
        let memory = allocator::machine_memory()?;
        let mut buf = vec![0; PIECE as usize];
        for start in (0..self.size).step_by(STRETCH as usize) {
            for (from, to) in self.data(start, STRETCH.min(self.size - start))? {
                let mut at = from;
                while at < to {
                    let piece = &mut buf[..PIECE.min(to - at) as usize];
                    self.opened
                        .file
                        .read_exact_at(piece, at)
                        .or_error(|| format!("read: {name}"))?;
                    allocator::write_used(disk, piece, at)
                        .map_err(|why| why.context(format!("load={name}")))?;
                    at += piece.len() as u64;
                    // A file in memory that does not fit is not an error but a visit of the OOM
                    // killer.
                    if disk.used()? > memory {
                        return Err(Error::msg(format!(
                            "load={name}: there is more data than this machine's memory ({memory} \
                             bytes)"
                        )));
                    }
                }
            }
        }
        Ok(())
    }

    /// Where there are data in a part of the file, from and to; all of it where the file system
    /// does not tell.
    fn data(&self, offset: u64, count: u64) -> Result<Vec<(u64, u64)>> {
        let mut extents = Extents::new(offset, offset + count);
        if seek_extents(self.opened.file.as_fd(), count, offset, false, &mut extents).is_err()
            || extents.covered_to() < offset + count
        {
            return Ok(vec![(offset, offset + count)]);
        }
        let data = extents.iter().filter(|extent| extent.kind == ExtentKind::DATA);
        Ok(data.map(|extent| (extent.offset, extent.end())).collect())
    }
}
