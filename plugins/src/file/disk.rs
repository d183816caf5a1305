//! One client's open file or block device.

use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

use nbdkit_api::paths::{Lent, Opened};
use nbdkit_api::shared::seek_extents;
use nbdkit_api::{
    BlockSize, Blocking, Cache, Connection, Errno, Error, Extents, FileRange, Flags, Fua, Result,
    ResultExt, page_cache,
};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::sys::stat::fstat;
use nix::unistd::{Whence, lseek64};

use super::cache::{Windows, drop_pages};
use super::direct::Direct;
use super::ioctl;
use super::ladder::{Failure, Ladder};

/// How the page cache is to be used.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Hints {
    /// `cache=none`.
    pub(super) spare_cache: bool,
    /// `fadvise=`.
    pub(super) advice: PosixFadviseAdvice,
}

impl Default for Hints {
    fn default() -> Hints {
        Hints { spare_cache: false, advice: PosixFadviseAdvice::POSIX_FADV_NORMAL }
    }
}

/// One open file or block device.
#[derive(Debug)]
pub(crate) struct Disk {
    file: Lent,
    name: String,
    writable: bool,
    is_block_device: bool,
    ladder: Ladder,
    /// With `cache=none`.
    windows: Option<Windows>,
    /// With `cache=direct`.
    direct: Option<Direct>,
    /// Reading without waiting is not known to be unsupported.
    read_now: AtomicBool,
}

impl Disk {
    /// Takes over a file that was just opened.
    ///
    /// # Errors
    /// The kernel does not take the advice, or the device does not tell its sector size.
    pub(crate) fn new(opened: Opened, hints: Hints) -> Result<Disk> {
        let Opened { file, name, writable, is_block_device } = opened;
        if hints.advice != PosixFadviseAdvice::POSIX_FADV_NORMAL {
            posix_fadvise(&*file, 0, 0, hints.advice)
                .or_error(|| format!("posix_fadvise: {name}"))?;
        }
        let sector = is_block_device
            .then(|| ioctl::sector_size(file.as_fd()))
            .transpose()
            .or_error(|| format!("ioctl: BLKSSZGET: {name}"))?;
        Ok(Disk {
            file,
            name,
            writable,
            is_block_device,
            ladder: Ladder::new(sector),
            windows: hints.spare_cache.then(Windows::default),
            direct: None,
            read_now: AtomicBool::new(!hints.spare_cache),
        })
    }

    /// Passes the page cache by where that is possible.
    pub(super) fn with_direct(mut self, direct: Option<Direct>) -> Disk {
        *self.read_now.get_mut() &= direct.is_none();
        self.direct = direct;
        self
    }

    /// The file without the page cache, if a request can be carried out so.
    fn direct(&self, count: usize, offset: u64) -> Option<&Direct> {
        self.direct.as_ref().filter(|_| Direct::takes(count, offset))
    }

    fn failed(&self, operation: &str, offset: u64, count: u64, errno: Errno) -> Error {
        Error::os(format!("{operation}: {} offset={offset} count={count}", self.name), errno)
    }

    fn step_failed(&self, (operation, errno): Failure, offset: u64, count: u64) -> Error {
        self.failed(operation, offset, count, errno)
    }

    /// `None` with cache=none, where what was read or written must be dropped afterwards, and with
    /// cache=direct.
    fn range(&self, offset: u64) -> Option<FileRange<'_>> {
        let in_memory = Some(page_cache::is_in_memory as fn(BorrowedFd<'_>, u64) -> bool);
        (self.windows.is_none() && self.direct.is_none()).then(|| FileRange {
            fd: self.file.as_fd(),
            offset,
            in_memory,
        })
    }

    fn flush_if(&self, flags: Flags) -> Result<()> {
        if flags.contains(Flags::FUA) { self.flush() } else { Ok(()) }
    }
}

impl Connection for Disk {
    fn size(&self) -> Result<u64> {
        file_size(&self.file, self.is_block_device).or_error(|| format!("size: {}", self.name))
    }

    fn block_size(&self) -> Result<BlockSize> {
        if self.is_block_device
            && let Ok((minimum, optimal)) = ioctl::request_sizes(self.file.as_fd())
        {
            return Ok(constraints(minimum, optimal));
        }
        Ok(BlockSize::default())
    }

    fn can_write(&self) -> Result<bool> {
        Ok(self.writable)
    }

    fn can_flush(&self) -> Result<bool> {
        Ok(true)
    }

    fn is_rotational(&self) -> Result<bool> {
        // Not every driver knows.
        Ok(self.is_block_device && ioctl::is_rotational(self.file.as_fd()).unwrap_or(false))
    }

    fn can_trim(&self) -> Result<bool> {
        Ok(true)
    }

    fn can_zero(&self) -> Result<bool> {
        Ok(true)
    }

    fn can_extents(&self) -> Result<bool> {
        // ENXIO means that there is no byte to ask about, EINVAL that holes are unknown here.
        Ok(lseek64(&*self.file, 0, Whence::SeekHole).is_ok())
    }

    fn can_fua(&self) -> Result<Fua> {
        Ok(Fua::Native)
    }

    // All workers share the kernel's page cache, and fdatasync(2) is for the file, not for the
    // descriptor.
    fn can_multi_conn(&self) -> Result<bool> {
        Ok(true)
    }

    fn can_cache(&self) -> Result<Cache> {
        Ok(if self.direct.is_none() { Cache::Native } else { Cache::None })
    }

    fn pread(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let count = buf.len();
        let read = match self.direct(count, offset).map(|direct| direct.read(buf, offset)) {
            Some(Err(error)) if wants_other_blocks(&error) => self.file.read_exact_at(buf, offset),
            Some(read) => read,
            None => self.file.read_exact_at(buf, offset),
        };
        read.map_err(|error| {
            let what = format!("pread: {} offset={offset} count={count}", self.name);
            match error.kind() {
                ErrorKind::UnexpectedEof => {
                    Error::new(Errno::EIO, format!("{what}: unexpected end of file"))
                }
                _ => Error::io(what, &error),
            }
        })?;
        if self.windows.is_some() {
            drop_pages(self.file.as_fd(), offset, count as u64);
        }
        Ok(())
    }

    fn pwrite(&self, buf: &[u8], offset: u64, flags: Flags) -> Result<()> {
        let written = match self.direct(buf.len(), offset).map(|direct| direct.write(buf, offset)) {
            Some(Err(error)) if wants_other_blocks(&error) => self.file.write_all_at(buf, offset),
            Some(written) => written,
            None => self.file.write_all_at(buf, offset),
        };
        written
            .or_error(|| format!("pwrite: {} offset={offset} count={}", self.name, buf.len()))?;
        self.flush_if(flags)?;
        if let Some(windows) = &self.windows {
            let count = buf.len() as u64;
            windows
                .written(self.file.as_fd(), offset, count)
                .map_err(|errno| self.failed("sync_file_range", offset, count, errno))?;
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        self.file.sync_data().or_error(|| format!("fdatasync: {}", self.name))
    }

    fn trim(&self, count: u64, offset: u64, flags: Flags) -> Result<()> {
        self.ladder
            .trim(&*self.file, offset, count)
            .map_err(|failure| self.step_failed(failure, offset, count))?;
        self.flush_if(flags)
    }

    fn zero(&self, count: u64, offset: u64, flags: Flags) -> Result<()> {
        let zeroed = self
            .ladder
            .zero(&*self.file, offset, count, flags.contains(Flags::MAY_TRIM))
            .map_err(|failure| self.step_failed(failure, offset, count))?;
        if !zeroed {
            return Err(Error::silent(Errno::EOPNOTSUPP));
        }
        self.flush_if(flags)
    }

    fn extents(&self, count: u64, offset: u64, flags: Flags, extents: &mut Extents) -> Result<()> {
        seek_extents(self.file.as_fd(), count, offset, flags.contains(Flags::REQ_ONE), extents)
            .map_err(|why| why.context(format!("{} offset={offset} count={count}", self.name)))
    }

    fn cache(&self, count: u64, offset: u64) -> Result<()> {
        let failed = |errno| self.failed("posix_fadvise", offset, count, errno);
        let at = i64::try_from(offset).map_err(|_| failed(Errno::EINVAL))?;
        let length = i64::try_from(count).map_err(|_| failed(Errno::EINVAL))?;
        posix_fadvise(&*self.file, at, length, PosixFadviseAdvice::POSIX_FADV_WILLNEED)
            .map_err(failed)
    }

    fn blocking(&self) -> Blocking {
        Blocking::Short
    }

    fn try_pread(&self, buf: &mut [u8], offset: u64) -> Option<Result<()>> {
        if !self.read_now.load(Ordering::Relaxed) {
            return None;
        }
        match page_cache::read_now(self.file.as_fd(), buf, offset) {
            Ok(read) if read == buf.len() => Some(Ok(())),
            // Partly cached, or the end of a file that shrank, which `pread` reports.
            Ok(_) => None,
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL) => {
                self.read_now.store(false, Ordering::Relaxed);
                None
            }
            Err(_) => None,
        }
    }

    fn file_range(&self, _count: u32, offset: u64) -> Option<FileRange<'_>> {
        self.range(offset)
    }

    fn write_range(&self, _count: u32, offset: u64) -> Option<FileRange<'_>> {
        self.range(offset)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Some(windows) = &self.windows {
            windows.close(self.file.as_fd());
        }
    }
}

/// Size in bytes of a regular file or block device. Moves the file position of the latter.
///
/// # Errors
/// The kernel's.
pub(crate) fn file_size(file: &File, is_block_device: bool) -> nix::Result<u64> {
    let size =
        if is_block_device { lseek64(file, 0, Whence::SeekEnd)? } else { fstat(file)?.st_size };
    u64::try_from(size).map_err(|_| Errno::EOVERFLOW)
}

/// Whether O_DIRECT did not take a request: this disk has larger blocks than others.
fn wants_other_blocks(error: &std::io::Error) -> bool {
    error.raw_os_error() == Some(libc::EINVAL)
}

/// What a device that asks for requests of at least `minimum` and ideally `optimal` bytes (0 for
/// no wish) advertises; nothing if NBD cannot express it.
fn constraints(minimum: u32, optimal: u32) -> BlockSize {
    let preferred = if optimal == 0 { minimum.max(4096) } else { optimal };
    let size = BlockSize { minimum, preferred, maximum: u32::MAX };
    if minimum >= 512 && size.check().is_ok() { size } else { BlockSize::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_dir::TestDir;
    use nbdkit_api::ExtentKind;

    fn disk(dir: &TestDir, spare_cache: bool) -> Disk {
        std::fs::write(dir.join("disk"), [7; 10_000]).unwrap();
        let file = File::options().read(true).write(true).open(dir.join("disk")).unwrap();
        let opened = Opened {
            file: file.into(),
            name: "disk".to_owned(),
            writable: true,
            is_block_device: false,
        };
        let hints = Hints { spare_cache, advice: PosixFadviseAdvice::POSIX_FADV_SEQUENTIAL };
        Disk::new(opened, hints).unwrap()
    }

    #[test]
    fn what_is_written_is_read_with_and_without_the_cache() {
        for spare_cache in [false, true] {
            let dir = TestDir::new();
            let disk = disk(&dir, spare_cache);
            assert_eq!(disk.size().unwrap(), 10_000);
            for i in 0..20 {
                disk.pwrite(&[i; 100], u64::from(i) * 100, Flags::FUA).unwrap();
            }
            let mut buf = [0; 100];
            disk.pread(&mut buf, 1900).unwrap();
            assert_eq!(buf, [19; 100]);
            let range = disk.file_range(100, 0);
            assert_eq!(range.is_some(), !spare_cache);
            let beyond = disk.file_range(100, 1 << 40);
            // Not every file system can tell.
            let now = disk.try_pread(&mut buf, 0).is_some();
            assert!(range.is_none_or(|range| range.is_in_memory(100) == now));
            assert!(beyond.is_none_or(|beyond| !beyond.is_in_memory(100)));
        }
    }

    #[test]
    fn reading_beyond_the_end_of_a_file_that_shrank_is_an_error() {
        let dir = TestDir::new();
        let disk = disk(&dir, false);
        disk.file.set_len(5000).unwrap();
        let mut buf = [0; 2000];
        let why = disk.pread(&mut buf, 4000).unwrap_err();
        assert_eq!(why.errno(), Errno::EIO);
        assert_eq!(why.message(), "pread: disk offset=4000 count=2000: unexpected end of file");
        assert!(disk.try_pread(&mut buf, 4000).is_none());
    }

    #[test]
    fn a_trimmed_file_shows_the_hole() {
        let dir = TestDir::new();
        let disk = disk(&dir, false);
        assert!(disk.can_extents().unwrap());
        disk.trim(4096, 4096, Flags::FUA).unwrap();
        let mut extents = Extents::new(0, 10_000);
        disk.extents(10_000, 0, Flags::empty(), &mut extents).unwrap();
        let kinds: Vec<_> = extents.iter().map(|e| (e.offset, e.kind)).collect();
        assert_eq!(
            kinds,
            [(0, ExtentKind::DATA), (4096, ExtentKind::SPARSE), (8192, ExtentKind::DATA)]
        );
        disk.cache(10_000, 0).unwrap();
    }

    #[test]
    fn device_sizes_that_nbd_cannot_express_are_not_advertised() {
        let size = |minimum, preferred| BlockSize { minimum, preferred, maximum: u32::MAX };
        assert_eq!(constraints(512, 0), size(512, 4096));
        assert_eq!(constraints(4096, 65536), size(4096, 65536));
        assert_eq!(constraints(8192, 0), size(8192, 8192));
        for (minimum, optimal) in [(0, 0), (256, 0), (4096, 512), (4096, 5000), (1 << 19, 1 << 20)]
        {
            assert_eq!(constraints(minimum, optimal), BlockSize::default());
        }
    }
}
