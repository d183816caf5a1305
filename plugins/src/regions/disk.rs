//! One client's use of a disk that is put together.

#![forbid(unsafe_code)]

use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use nbdkit_api::page_cache::{is_in_memory, read_now};
use nbdkit_api::{
    BlockSize, Blocking, Cache, Connection, Errno, Error, ExtentKind, Extents, FileRange, Flags,
    Result, ResultExt,
};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use super::{Content, Piece, Regions};
use crate::files::{File, Files};

/// Bytes of a sector of clients that think in sectors.
const SECTOR: u64 = 512;

/// A client's disk.
pub(crate) struct Disk {
    pub(crate) regions: Arc<Regions>,
    pub(crate) files: Files,
    /// All zero for no constraints.
    pub(crate) block_size: BlockSize,
}

impl Disk {
    /// The only piece of a request that touches one region only.
    fn only_piece(&self, offset: u64, count: u64) -> Option<Piece<'_>> {
        self.regions.pieces(offset, count).next().filter(|piece| piece.length == count)
    }

    /// The file that a request is all in, if it is open, and where.
    fn only_file(&self, offset: u64, count: u64) -> Option<(&File, u64)> {
        let piece = self.only_piece(offset, count)?;
        let Content::File(number) = piece.region.content else { return None };
        Some((self.files.open_one(number)?, piece.offset))
    }

    fn range(&self, offset: u64, count: u32) -> Option<FileRange<'_>> {
        let (file, offset) = self.only_file(offset, count.into())?;
        Some(FileRange { fd: file.opened.file.as_fd(), offset, in_memory: Some(is_in_memory) })
    }

    /// Looks whether a write leaves alone what clients cannot change.
    fn check(&self, mut buf: &[u8], offset: u64) -> Result<()> {
        for piece in self.regions.pieces(offset, buf.len() as u64) {
            let (now, rest) = buf.split_at(piece.length as usize);
            let why = match &piece.region.content {
                Content::Bytes(bytes) if bytes[piece.offset as usize..][..now.len()] != *now => {
                    "attempt to change partition table of virtual disk"
                }
                Content::Made(_) => "attempt to change what the server makes",
                Content::Zeroes if now.iter().any(|byte| *byte != 0) => {
                    "write non-zeroes to padding region"
                }
                _ => {
                    buf = rest;
                    continue;
                }
            };
            return Err(Error::new(Errno::EIO, why));
        }
        Ok(())
    }
}

impl Connection for Disk {
    fn size(&self) -> Result<u64> {
        Ok(self.regions.size())
    }

    fn block_size(&self) -> Result<BlockSize> {
        Ok(self.block_size)
    }

    fn can_write(&self) -> Result<bool> {
        Ok(!self.files.are_on_demand() && self.files.kept().all(|file| file.opened.writable))
    }

    fn can_flush(&self) -> Result<bool> {
        Ok(!self.files.are_on_demand())
    }

    fn can_extents(&self) -> Result<bool> {
        let zeroes = || self.regions.list.iter().any(|it| matches!(it.content, Content::Zeroes));
        Ok(self.files.kept().any(File::knows_holes) || zeroes())
    }

    // All workers share the kernel's page cache, and fdatasync(2) is for the file, not for the
    // descriptor.
    fn can_multi_conn(&self) -> Result<bool> {
        Ok(true)
    }

    fn can_cache(&self) -> Result<Cache> {
        Ok(Cache::Native)
    }

    fn pread(&self, mut buf: &mut [u8], offset: u64) -> Result<()> {
        for piece in self.regions.pieces(offset, buf.len() as u64) {
            // A piece is no longer than the buffer, and one of bytes no longer than they are.
            let (now, rest) = buf.split_at_mut(piece.length as usize);
            match &piece.region.content {
                Content::Bytes(bytes) => {
                    now.copy_from_slice(&bytes[piece.offset as usize..][..now.len()]);
                }
                Content::Made(make) => make.fill(now, piece.offset),
                Content::File(number) => self.files.get(*number)?.read(now, piece.offset)?,
                Content::Zeroes => now.fill(0),
            }
            buf = rest;
        }
        Ok(())
    }

    fn pwrite(&self, mut buf: &[u8], offset: u64, _flags: Flags) -> Result<()> {
        self.check(buf, offset)?;
        for piece in self.regions.pieces(offset, buf.len() as u64) {
            let (now, rest) = buf.split_at(piece.length as usize);
            if let Content::File(number) = piece.region.content {
                let file = self.files.get(number)?;
                let written = file.opened.file.write_all_at(now, piece.offset);
                written.or_error(|| file.what("pwrite", piece.offset, piece.length))?;
            }
            buf = rest;
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        for File { opened, .. } in self.files.kept() {
            opened.file.sync_data().or_error(|| format!("fdatasync: {}", opened.name))?;
        }
        Ok(())
    }

    fn extents(&self, count: u64, offset: u64, flags: Flags, extents: &mut Extents) -> Result<()> {
        let one = flags.contains(Flags::REQ_ONE);
        for Piece { region, offset, length } in self.regions.pieces(offset, count) {
            let start = region.start;
            let kind = match region.content {
                Content::Bytes(_) | Content::Made(_) => ExtentKind::DATA,
                // The rest of a sector: some clients take none for less than a sector.
                Content::Zeroes if region.length < SECTOR => ExtentKind::DATA,
                Content::Zeroes => ExtentKind::SPARSE,
                // Nothing is opened in order to look for holes.
                Content::File(number) => {
                    if let Some(file) = self.files.open_one(number) {
                        file.add_extents(length, offset, one, start + offset, extents)?;
                        if one {
                            break;
                        }
                        continue;
                    }
                    ExtentKind::DATA
                }
            };
            extents.add(start + offset, length, kind)?;
            if one {
                break;
            }
        }
        Ok(())
    }

    fn cache(&self, count: u64, offset: u64) -> Result<()> {
        for piece in self.regions.pieces(offset, count) {
            let Content::File(number) = piece.region.content else { continue };
            let file = self.files.get(number)?;
            let failed = || file.what("posix_fadvise", piece.offset, piece.length);
            let (Ok(at), Ok(length)) = (i64::try_from(piece.offset), i64::try_from(piece.length))
            else {
                return Err(Error::os(failed(), Errno::EINVAL));
            };
            let advice = PosixFadviseAdvice::POSIX_FADV_WILLNEED;
            posix_fadvise(&*file.opened.file, at, length, advice).or_error(failed)?;
        }
        Ok(())
    }

    fn blocking(&self) -> Blocking {
        Blocking::Short
    }

    fn try_pread(&self, buf: &mut [u8], offset: u64) -> Option<Result<()>> {
        let piece = self.only_piece(offset, buf.len() as u64)?;
        if !matches!(piece.region.content, Content::File(_)) {
            return Some(self.pread(buf, offset));
        }
        let (file, offset) = self.only_file(offset, buf.len() as u64)?;
        let read = read_now(file.opened.file.as_fd(), buf, offset).ok()?;
        (read == buf.len()).then_some(Ok(()))
    }

    fn file_range(&self, count: u32, offset: u64) -> Option<FileRange<'_>> {
        self.range(offset, count)
    }

    fn write_range(&self, count: u32, offset: u64) -> Option<FileRange<'_>> {
        self.range(offset, count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_dir::TestDir;
    use nbdkit_api::paths::{self, Declared};

    #[test]
    fn a_disk_of_files_on_demand_is_read_only_and_moves_what_is_open() {
        let dir = TestDir::new();
        std::fs::write(dir.join("a"), [7; 4]).unwrap();
        let mut regions = Regions::default();
        (0..2).for_each(|number| regions.push_file(number, 4).unwrap());
        let path = dir.join("a");
        let files =
            Files::on_demand(2, move |_| paths::open(&Declared::file(path.clone()), None, true));
        let disk = Disk { regions: Arc::new(regions), files, block_size: BlockSize::default() };
        assert!(!disk.can_write().unwrap() && disk.file_range(4, 0).is_none());
        let mut buf = [0; 8];
        disk.pread(&mut buf, 0).unwrap();
        assert_eq!(buf, [7; 8]);
        assert!(disk.file_range(4, 0).is_some());
    }
}
