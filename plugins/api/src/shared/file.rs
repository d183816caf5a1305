//! Sparse bytes that every worker reads and writes: a memfd or an unlinked temporary file.
//! Holes are found with SEEK_HOLE, made by punching, and cost nothing.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{FallocateFlags, FcntlArg, FdFlag, OFlag, SealFlag, fallocate, fcntl, open};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::Mode;
use nix::unistd::{Whence, ftruncate, lseek64};

use crate::error::{Errno, Error, Result, ResultExt};
use crate::extents::{ExtentKind, Extents};

/// A file that several processes read and write. All methods may be called from any process and
/// thread at once.
#[derive(Debug)]
pub struct SharedFile {
    file: File,
    /// For messages.
    name: String,
}

impl SharedFile {
    /// A file in memory of `size` bytes (at most `i64::MAX`), all hole. `name` appears in /proc.
    ///
    /// # Errors
    /// The kernel's.
    pub fn in_memory(name: &str, size: u64) -> Result<SharedFile> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let fd = memfd_create(name, flags).or_error(|| format!("memfd_create: {name}"))?;
        let file = SharedFile { file: File::from(fd), name: name.to_owned() };
        file.set_len(size)?;
        Ok(file)
    }

    /// An unlinked temporary file of `size` bytes in `$TMPDIR`, or in /var/tmp if that is not set.
    ///
    /// # Errors
    /// The kernel's, with the directory.
    pub fn temporary(name: &str, size: u64) -> Result<SharedFile> {
        let fd = unlinked(&temporary_directory())?;
        let file = SharedFile { file: File::from(fd), name: name.to_owned() };
        file.set_len(size)?;
        Ok(file)
    }

    /// Changes the length in bytes; what is added is hole.
    ///
    /// # Errors
    /// EFBIG, ENOSPC, EINVAL beyond `i64::MAX`.
    pub fn set_len(&self, size: u64) -> Result<()> {
        let size = i64::try_from(size)
            .map_err(|_| Error::os(format!("ftruncate: {}", self.name), Errno::EFBIG))?;
        ftruncate(&self.file, size).or_error(|| format!("ftruncate: {}", self.name))
    }

    /// Forbids for good to make a memfd shorter; does nothing to a temporary file.
    pub(super) fn never_shrink(&self) -> Result<()> {
        match fcntl(&self.file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK)) {
            Ok(_) | Err(Errno::EINVAL) => Ok(()),
            Err(errno) => Err(Error::os(format!("fcntl F_ADD_SEALS: {}", self.name), errno)),
        }
    }

    /// Length in bytes.
    ///
    /// # Errors
    /// EIO.
    pub fn size(&self) -> Result<u64> {
        Ok(self.file.metadata().or_error(|| format!("fstat: {}", self.name))?.len())
    }

    /// Bytes of memory, swapped out or not, or of the file system that the file uses.
    ///
    /// # Errors
    /// EIO.
    pub fn used(&self) -> Result<u64> {
        // In units of 512 bytes: stat(3type), st_blocks.
        let stat = self.file.metadata().or_error(|| format!("fstat: {}", self.name))?;
        Ok(std::os::unix::fs::MetadataExt::blocks(&stat).saturating_mul(512))
    }

    /// Fills `buf` from `offset`; beyond the end there are zeroes.
    ///
    /// # Errors
    /// EIO.
    pub fn read_at(&self, mut buf: &mut [u8], mut offset: u64) -> Result<()> {
        while !buf.is_empty() {
            match self.file.read_at(buf, offset) {
                Ok(0) => {
                    buf.fill(0);
                    return Ok(());
                }
                Ok(n) => {
                    buf = &mut buf[n..];
                    offset += n as u64;
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io(format!("pread: {}", self.name), &error)),
            }
        }
        Ok(())
    }

    /// Writes `buf` at `offset`, growing the file if need be.
    ///
    /// # Errors
    /// ENOSPC, EFBIG, EIO.
    pub fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.file.write_all_at(buf, offset).or_error(|| format!("pwrite: {}", self.name))
    }

    /// Makes a hole; the length stays. Partial pages are zeroed.
    ///
    /// # Errors
    /// EOPNOTSUPP if the file system cannot.
    pub fn punch_hole(&self, offset: u64, count: u64) -> Result<()> {
        self.fallocate(
            FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE,
            offset,
            count,
        )
    }

    /// Allocates the range without changing what it reads as; the length may grow.
    ///
    /// # Errors
    /// ENOSPC, ENOMEM, EOPNOTSUPP.
    pub fn allocate(&self, offset: u64, count: u64) -> Result<()> {
        self.fallocate(FallocateFlags::empty(), offset, count)
    }

    fn fallocate(&self, flags: FallocateFlags, offset: u64, count: u64) -> Result<()> {
        if count == 0 {
            return Ok(());
        }
        let range = || Error::os(format!("fallocate: {}", self.name), Errno::EFBIG);
        let offset = i64::try_from(offset).map_err(|_| range())?;
        let count = i64::try_from(count).map_err(|_| range())?;
        loop {
            match fallocate(&self.file, flags, offset, count) {
                Err(Errno::EINTR) => {}
                result => return result.or_error(|| format!("fallocate: {}", self.name)),
            }
        }
    }

    /// Adds what the file system knows of `offset .. offset + count` to `extents`: data, or holes
    /// that read as zeroes. The range must lie within the file. With `one`, stops after the first.
    ///
    /// # Errors
    /// EIO; those of [`Extents::add`].
    pub fn extents(&self, count: u64, offset: u64, one: bool, extents: &mut Extents) -> Result<()> {
        seek_extents(self.file.as_fd(), count, offset, one, extents)
            .map_err(|error| error.context(format!("lseek: {}", self.name)))
    }

    /// Puts what was written on stable storage; nothing to do for memory.
    ///
    /// # Errors
    /// EIO, ENOSPC.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().or_error(|| format!("fdatasync: {}", self.name))
    }
}

impl AsFd for SharedFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// `$TMPDIR`, or /var/tmp if that is not set.
pub fn temporary_directory() -> PathBuf {
    let set = std::env::var_os("TMPDIR").filter(|dir| !dir.is_empty());
    set.map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from)
}

/// Opens a file in `dir` that has no name, so that nothing is left behind however we end.
fn unlinked(dir: &Path) -> Result<OwnedFd> {
    let flags = OFlag::O_RDWR | OFlag::O_CLOEXEC;
    match open(dir, flags | OFlag::O_TMPFILE, Mode::S_IRUSR | Mode::S_IWUSR) {
        // File systems without O_TMPFILE answer one of these.
        Err(Errno::EOPNOTSUPP | Errno::EISDIR | Errno::EINVAL) => {}
        result => return result.or_error(|| format!("open temporary file in {}", dir.display())),
    }
    let (fd, path) = nix::unistd::mkstemp(&dir.join("nbdkitXXXXXX"))
        .or_error(|| format!("mkstemp: {}", dir.display()))?;
    nix::unistd::unlink(&path).or_error(|| format!("unlink: {}", path.display()))?;
    fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).or_error(|| "fcntl")?;
    Ok(fd)
}

/// Beyond, SEEK_DATA finds nothing in a memfd, whatever there is: the end of the last page is no
/// file offset.
const SEEKABLE: u64 = i64::MAX as u64 / 4096 * 4096;

/// Describes `offset .. offset + count` of any file by SEEK_DATA and SEEK_HOLE.
/// Moves the descriptor's file position, which nothing else may depend on.
///
/// # Errors
/// Those of lseek(2) (EINVAL or EOPNOTSUPP where seeking for holes is unknown), of
/// [`Extents::add`].
pub fn seek_extents(
    fd: BorrowedFd<'_>,
    count: u64,
    offset: u64,
    one: bool,
    extents: &mut Extents,
) -> Result<()> {
    let seek = |at: u64, whence| {
        let at = i64::try_from(at).map_err(|_| Errno::EINVAL)?;
        lseek64(fd, at, whence).map(|found| found as u64)
    };
    let end = offset.saturating_add(count);
    let mut at = offset;
    while at < end {
        let data = match seek(at, Whence::SeekData) {
            Ok(data) => data,
            Err(Errno::ENXIO) => {
                // Nothing but hole up to the end of the file. What lies beyond, if it shrank under
                // us, is no hole: reading it must fail.
                let size = lseek64(fd, 0, Whence::SeekEnd).or_error(|| "lseek SEEK_END")? as u64;
                if size < end {
                    if size > at {
                        extents.add(at, size - at, ExtentKind::SPARSE)?;
                    }
                    let beyond = at.max(size);
                    extents.add(beyond, end - beyond, ExtentKind::DATA)?;
                    break;
                }
                if end > SEEKABLE {
                    extents.add(at, SEEKABLE.saturating_sub(at), ExtentKind::SPARSE)?;
                    at = at.max(SEEKABLE);
                    extents.add(at, end - at, ExtentKind::DATA)?;
                    break;
                }
                end
            }
            Err(errno) => return Err(Error::os("lseek SEEK_DATA", errno)),
        };
        if data > at {
            extents.add(at, data.min(end.max(data)) - at, ExtentKind::SPARSE)?;
            at = data;
            if one || at >= end {
                break;
            }
        }
        let hole = seek(at, Whence::SeekHole).or_error(|| "lseek SEEK_HOLE")?;
        if hole <= at {
            // The file shrank under us, or changed between the two calls.
            extents.add(at, end - at, ExtentKind::DATA)?;
            break;
        }
        extents.add(at, hole - at, ExtentKind::DATA)?;
        at = hole;
        if one {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_beyond_the_end_of_a_file_is_no_hole() {
        let file = SharedFile::in_memory("test", 1 << 20).unwrap();
        let kinds = |offset: u64| {
            let mut extents = Extents::new(offset, 2 << 20);
            seek_extents(file.as_fd(), (2 << 20) - offset, offset, false, &mut extents).unwrap();
            extents.iter().map(|e| (e.offset, e.kind)).collect::<Vec<_>>()
        };
        assert_eq!(kinds(0), [(0, ExtentKind::SPARSE), (1 << 20, ExtentKind::DATA)]);
        assert_eq!(kinds(3 << 19), [(3 << 19, ExtentKind::DATA)]);
    }

    #[test]
    fn holes_are_found_and_read_as_zeroes() {
        let file = SharedFile::in_memory("test", 1 << 30).unwrap();
        file.write_at(&[7; 100], 1 << 20).unwrap();
        let mut extents = Extents::new(0, 1 << 30);
        file.extents(1 << 30, 0, false, &mut extents).unwrap();
        let kinds: Vec<_> = extents.iter().map(|e| (e.offset, e.kind)).collect();
        assert_eq!(kinds[0], (0, ExtentKind::SPARSE));
        assert_eq!(kinds[1], (1 << 20, ExtentKind::DATA));
        assert_eq!(kinds[2].1, ExtentKind::SPARSE);
        assert_eq!(extents.covered_to(), 1 << 30);
        file.punch_hole(1 << 20, 4096).unwrap();
        let mut buf = [1; 200];
        file.read_at(&mut buf, 1 << 20).unwrap();
        assert_eq!(buf, [0; 200]);
    }

    #[test]
    fn the_largest_disk_fits() {
        let file = SharedFile::in_memory("test", i64::MAX as u64).unwrap();
        let at = i64::MAX as u64 - 4096;
        file.write_at(b"end", at - 3).unwrap();
        let mut buf = [0; 3];
        file.read_at(&mut buf, at - 3).unwrap();
        assert_eq!(&buf, b"end");
    }
}
