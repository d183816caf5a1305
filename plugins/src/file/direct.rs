//! Reads and writes without the page cache, `cache=direct`: O_DIRECT, open(2).
//!
//! A machine that swaps on this file has no page for the page cache when it needs one most. A
//! request that does not begin and end at a block goes through the page cache all the same; the
//! kernel keeps the two in step.

use std::io::{ErrorKind, Result};
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};

use nbdkit_api::paths::Lent;

/// What offsets, lengths and addresses are multiples of, bytes: no file system and no disk wants
/// more.
const BLOCK: usize = 4096;
/// The size of a buffer, bytes: the longest request of the kernel's client, unless it was told
/// otherwise. A longer request is carried out in parts.
const BUFFER: usize = 128 * 1024;
/// Most buffers that are kept, one for each request at a time.
const MOST_BUFFERS: usize = 64;

/// A file or block device that is open with O_DIRECT.
#[derive(Debug)]
pub(super) struct Direct {
    file: Lent,
    /// Larger by a block than they are used, so that there is an address to begin at.
    buffers: Mutex<Vec<Vec<u8>>>,
}

impl Direct {
    pub(super) fn new(file: Lent) -> Direct {
        Direct { file, buffers: Mutex::new(Vec::with_capacity(MOST_BUFFERS)) }
    }

    /// Whether a request may go past the page cache.
    pub(super) fn takes(count: usize, offset: u64) -> bool {
        count > 0 && count.is_multiple_of(BLOCK) && offset.is_multiple_of(BLOCK as u64)
    }

    /// Reads into `buf`.
    ///
    /// # Errors
    /// UnexpectedEof if the file ends before; the kernel's.
    pub(super) fn read(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.with_buffer(|aligned| {
            let mut at = offset;
            for part in buf.chunks_mut(BUFFER) {
                let aligned = &mut aligned[..part.len()];
                self.read_part(aligned, at)?;
                part.copy_from_slice(aligned);
                at += part.len() as u64;
            }
            Ok(())
        })
    }

    fn read_part(&self, aligned: &mut [u8], offset: u64) -> Result<()> {
        let mut done = 0;
        while done < aligned.len() {
            match self.file.read_at(&mut aligned[done..], offset + done as u64) {
                // What ends within a block is the end of the file, and no place to go on.
                Ok(read) if read == 0 || !read.is_multiple_of(BLOCK) => {
                    return Err(ErrorKind::UnexpectedEof.into());
                }
                Ok(read) => done += read,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Writes all of `buf`.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn write(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.with_buffer(|aligned| {
            let mut at = offset;
            for part in buf.chunks(BUFFER) {
                let aligned = &mut aligned[..part.len()];
                aligned.copy_from_slice(part);
                self.file.write_all_at(aligned, at)?;
                at += part.len() as u64;
            }
            Ok(())
        })
    }

    /// Calls `use_it` with a buffer of [`BUFFER`] bytes at an address that O_DIRECT takes.
    fn with_buffer<T>(&self, use_it: impl FnOnce(&mut [u8]) -> T) -> T {
        let lock = || self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = lock().pop();
        let mut buffer = kept.unwrap_or_else(|| vec![0; BUFFER + BLOCK]);
        let start = buffer.as_ptr().align_offset(BLOCK).min(BLOCK);
        let result = use_it(&mut buffer[start..start + BUFFER]);
        let mut buffers = lock();
        if buffers.len() < MOST_BUFFERS {
            buffers.push(buffer);
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_dir::TestDir;
    use std::fs::File;

    /// Open without O_DIRECT, which not every file system has, and which changes nothing here.
    fn direct(dir: &TestDir, size: usize) -> Direct {
        std::fs::write(dir.join("disk"), vec![7; size]).unwrap();
        let file = File::options().read(true).write(true).open(dir.join("disk")).unwrap();
        Direct::new(file.into())
    }

    #[test]
    fn only_whole_blocks_go_past_the_page_cache() {
        for (count, offset, takes) in [
            (4096, 0, true),
            (8192, 4096, true),
            (512, 0, false),
            (4096, 512, false),
            (0, 0, false),
        ] {
            assert_eq!(Direct::takes(count, offset), takes, "{count} at {offset}");
        }
    }

    #[test]
    fn long_requests_are_carried_out_in_parts() {
        let dir = TestDir::new();
        let disk = direct(&dir, 4 * BUFFER);
        let data: Vec<u8> = (0..2 * BUFFER + BLOCK).map(|at| (at / 1000) as u8).collect();
        disk.write(&data, BLOCK as u64).unwrap();
        let mut back = vec![0; data.len()];
        disk.read(&mut back, BLOCK as u64).unwrap();
        assert!(back == data);
        assert_eq!(disk.buffers.lock().unwrap().len(), 1);
    }

    #[test]
    fn buffers_are_at_an_address_that_o_direct_takes() {
        let dir = TestDir::new();
        let disk = direct(&dir, BLOCK);
        disk.with_buffer(|one| {
            disk.with_buffer(|another| {
                for buffer in [&one, &another] {
                    assert_eq!((buffer.as_ptr().addr() % BLOCK, buffer.len()), (0, BUFFER));
                }
            });
        });
        assert_eq!(disk.buffers.lock().unwrap().len(), 2);
    }

    #[test]
    fn the_end_of_the_file_is_noticed_within_a_block() {
        let dir = TestDir::new();
        for size in [BLOCK, BLOCK + 1, 2 * BLOCK - 1] {
            let disk = direct(&dir, size);
            let why = disk.read(&mut vec![0; 2 * BLOCK], 0).unwrap_err();
            assert_eq!(why.kind(), ErrorKind::UnexpectedEof, "{size}");
        }
    }
}
