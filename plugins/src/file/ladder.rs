//! How ranges are trimmed and zeroed: the ways that there are, best first, and which of them this
//! file is known not to support, so that they are not tried again. nbdkit-file-plugin(1).

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};

use nbdkit_api::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

use super::ioctl;

const PUNCH_HOLE: FallocateFlags =
    FallocateFlags::FALLOC_FL_PUNCH_HOLE.union(FallocateFlags::FALLOC_FL_KEEP_SIZE);

/// What the kernel offers for ranges of a file; a trait so that the ladder can be tested without
/// owning every kind of device.
pub(super) trait Ranges {
    fn punch_hole(&self, offset: u64, count: u64) -> nix::Result<()>;
    fn zero_range(&self, offset: u64, count: u64) -> nix::Result<()>;
    fn allocate(&self, offset: u64, count: u64) -> nix::Result<()>;
    fn discard(&self, offset: u64, count: u64) -> nix::Result<()>;
    fn zero_out(&self, offset: u64, count: u64) -> nix::Result<()>;
}

impl Ranges for File {
    fn punch_hole(&self, offset: u64, count: u64) -> nix::Result<()> {
        fallocate_range(self, PUNCH_HOLE, offset, count)
    }

    fn zero_range(&self, offset: u64, count: u64) -> nix::Result<()> {
        fallocate_range(self, FallocateFlags::FALLOC_FL_ZERO_RANGE, offset, count)
    }

    fn allocate(&self, offset: u64, count: u64) -> nix::Result<()> {
        fallocate_range(self, FallocateFlags::empty(), offset, count)
    }

    fn discard(&self, offset: u64, count: u64) -> nix::Result<()> {
        ioctl::discard(self.as_fd(), offset, count)
    }

    fn zero_out(&self, offset: u64, count: u64) -> nix::Result<()> {
        ioctl::zero_out(self.as_fd(), offset, count)
    }
}

fn fallocate_range(file: &File, flags: FallocateFlags, offset: u64, count: u64) -> nix::Result<()> {
    let offset = i64::try_from(offset).map_err(|_| Errno::EFBIG)?;
    let count = i64::try_from(count).map_err(|_| Errno::EFBIG)?;
    loop {
        match fallocate(file, flags, offset, count) {
            Err(Errno::EINTR) => {}
            result => return result,
        }
    }
}

/// The name of the operation that failed, and why.
pub(super) type Failure = (&'static str, Errno);

/// What an open file can do of the ways to trim and zero it, as far as is known. One per open file.
#[derive(Debug, Default)]
pub(super) struct Ladder {
    /// Sector size in bytes of a block device; `None` for a regular file.
    sector: Option<u64>,
    no_punch_hole: AtomicBool,
    no_zero_range: AtomicBool,
    no_allocate: AtomicBool,
    no_discard: AtomicBool,
    no_zero_out: AtomicBool,
}

impl Ladder {
    /// A ladder of which every step is still untried.
    pub(super) fn new(sector: Option<u32>) -> Ladder {
        Ladder { sector: sector.map(|bytes| u64::from(bytes.max(1))), ..Ladder::default() }
    }

    /// Gives the range back to the file system or device. Where that is unsupported nothing
    /// happens, since trimming is advice.
    ///
    /// # Errors
    /// Any failure other than that.
    pub(super) fn trim(
        &self,
        file: &impl Ranges,
        mut offset: u64,
        mut count: u64,
    ) -> Result<(), Failure> {
        if let Some(sector) = self.sector {
            // Devices refuse parts of sectors; leaving those alone is permitted.
            let end = (offset + count) / sector * sector;
            offset = offset.next_multiple_of(sector);
            count = end.saturating_sub(offset);
            if count == 0 {
                return Ok(());
            }
        }
        if try_step(&self.no_punch_hole, "fallocate: FALLOC_FL_PUNCH_HOLE", || {
            file.punch_hole(offset, count)
        })? {
            return Ok(());
        }
        if self.sector.is_some() {
            try_step(&self.no_discard, "ioctl: BLKDISCARD", || file.discard(offset, count))?;
        }
        Ok(())
    }

    /// Zeroes the range, leaving a hole if `may_trim` allows that. False means that there is no way
    /// but writing.
    ///
    /// # Errors
    /// A step failed for another reason than being unsupported.
    pub(super) fn zero(
        &self,
        file: &impl Ranges,
        offset: u64,
        count: u64,
        may_trim: bool,
    ) -> Result<bool, Failure> {
        if let Some(sector) = self.sector
            && !(offset.is_multiple_of(sector) && count.is_multiple_of(sector))
        {
            return Ok(false);
        }
        let punch_hole = || {
            try_step(&self.no_punch_hole, "fallocate: FALLOC_FL_PUNCH_HOLE", || {
                file.punch_hole(offset, count)
            })
        };
        if may_trim && punch_hole()? {
            return Ok(true);
        }
        // No discard follows, although the device could then forget the zeroes: what it reads as
        // afterwards is not defined, and these must be zeroes.
        if try_step(&self.no_zero_range, "fallocate: FALLOC_FL_ZERO_RANGE", || {
            file.zero_range(offset, count)
        })? {
            return Ok(true);
        }
        if !self.no_allocate.load(Ordering::Relaxed)
            && punch_hole()?
            && try_step(&self.no_allocate, "fallocate", || file.allocate(offset, count))?
        {
            return Ok(true);
        }
        if self.sector.is_some() {
            return try_step(&self.no_zero_out, "ioctl: BLKZEROOUT", || {
                file.zero_out(offset, count)
            });
        }
        Ok(false)
    }
}

/// Runs a step unless it is known not to be supported; true if it did its work.
fn try_step(
    unsupported: &AtomicBool,
    name: &'static str,
    step: impl FnOnce() -> nix::Result<()>,
) -> Result<bool, Failure> {
    if unsupported.load(Ordering::Relaxed) {
        return Ok(false);
    }
    let result = step();
    if nbdkit_api::log::flag("file", "zero") != 0 {
        let outcome = result.map_or_else(nbdkit_api::strerror, |()| "done".to_owned());
        nbdkit_api::debug!("{name}: {outcome}");
    }
    match result {
        Ok(()) => Ok(true),
        // ENODEV and ENOTTY: not for this type of file; ENOSYS: not in this kernel.
        Err(Errno::EOPNOTSUPP | Errno::ENODEV | Errno::ENOTTY | Errno::ENOSYS) => {
            nbdkit_api::debug!("{name} is not supported here, it will not be tried again");
            unsupported.store(true, Ordering::Relaxed);
            Ok(false)
        }
        Err(errno) => Err((name, errno)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    /// Answers each call with the errno of its letter, if there is one.
    struct Fake {
        answers: &'static [(char, Errno)],
        calls: RefCell<String>,
    }

    impl Fake {
        fn new(answers: &'static [(char, Errno)]) -> Fake {
            Fake { answers, calls: RefCell::new(String::new()) }
        }

        fn call(&self, letter: char) -> nix::Result<()> {
            self.calls.borrow_mut().push(letter);
            match self.answers.iter().find(|(known, _)| *known == letter) {
                Some((_, errno)) => Err(*errno),
                None => Ok(()),
            }
        }

        fn calls(&self) -> String {
            self.calls.take()
        }
    }

    impl Ranges for Fake {
        fn punch_hole(&self, _: u64, _: u64) -> nix::Result<()> {
            self.call('p')
        }
        fn zero_range(&self, _: u64, _: u64) -> nix::Result<()> {
            self.call('z')
        }
        fn allocate(&self, _: u64, _: u64) -> nix::Result<()> {
            self.call('a')
        }
        fn discard(&self, _: u64, _: u64) -> nix::Result<()> {
            self.call('d')
        }
        fn zero_out(&self, _: u64, _: u64) -> nix::Result<()> {
            self.call('o')
        }
    }

    const NO: Errno = Errno::EOPNOTSUPP;

    #[test]
    fn holes_are_punched_only_where_they_are_allowed() {
        let (ladder, file) = (Ladder::new(None), Fake::new(&[]));
        assert!(ladder.zero(&file, 0, 4096, true).unwrap());
        assert_eq!(file.calls(), "p");
        assert!(ladder.zero(&file, 0, 4096, false).unwrap());
        assert_eq!(file.calls(), "z");
    }

    #[test]
    fn a_hole_is_allocated_again_where_ranges_cannot_be_zeroed() {
        let (ladder, file) = (Ladder::new(None), Fake::new(&[('z', NO)]));
        assert!(ladder.zero(&file, 0, 4096, false).unwrap());
        assert_eq!(file.calls(), "zpa");
        assert!(ladder.zero(&file, 0, 4096, false).unwrap());
        assert_eq!(file.calls(), "pa", "ZERO_RANGE must not be tried again");
    }

    #[test]
    fn a_device_without_fallocate_is_zeroed_by_ioctl_if_aligned() {
        let ladder = Ladder::new(Some(512));
        let file = Fake::new(&[('p', NO), ('z', NO), ('a', NO)]);
        assert!(ladder.zero(&file, 512, 1024, true).unwrap());
        assert_eq!(file.calls(), "pzo");
        assert!(!ladder.zero(&file, 100, 1024, true).unwrap());
        assert_eq!(file.calls(), "");
    }

    #[test]
    fn where_nothing_is_supported_the_server_has_to_write() {
        let ladder = Ladder::new(Some(512));
        let file = Fake::new(&[('p', NO), ('z', NO), ('a', NO), ('o', Errno::ENOTTY)]);
        assert!(!ladder.zero(&file, 0, 512, false).unwrap());
        assert_eq!(file.calls(), "zpo");
        assert!(!ladder.zero(&file, 0, 512, false).unwrap());
        assert_eq!(file.calls(), "");
    }

    #[test]
    fn a_failure_is_not_taken_for_lack_of_support() {
        let file = Fake::new(&[('p', Errno::EIO), ('z', Errno::ENOSPC)]);
        let ladder = Ladder::new(None);
        assert_eq!(ladder.trim(&file, 0, 1).unwrap_err().1, Errno::EIO);
        assert_eq!(ladder.zero(&file, 0, 1, false).unwrap_err().1, Errno::ENOSPC);
        assert_eq!(ladder.zero(&file, 0, 1, true).unwrap_err().1, Errno::EIO);
    }

    #[test]
    fn a_device_is_trimmed_by_whole_sectors() {
        struct Range(RefCell<Option<(u64, u64)>>);
        impl Ranges for Range {
            fn punch_hole(&self, _: u64, _: u64) -> nix::Result<()> {
                Err(NO)
            }
            fn zero_range(&self, _: u64, _: u64) -> nix::Result<()> {
                Err(NO)
            }
            fn allocate(&self, _: u64, _: u64) -> nix::Result<()> {
                Err(NO)
            }
            fn discard(&self, offset: u64, count: u64) -> nix::Result<()> {
                self.0.replace(Some((offset, count)));
                Ok(())
            }
            fn zero_out(&self, _: u64, _: u64) -> nix::Result<()> {
                Err(NO)
            }
        }
        let (ladder, file) = (Ladder::new(Some(512)), Range(RefCell::new(None)));
        ladder.trim(&file, 1, 510).unwrap();
        assert_eq!(file.0.take(), None);
        ladder.trim(&file, 1, 2000).unwrap();
        assert_eq!(file.0.take(), Some((512, 1024)));
    }

    #[test]
    fn a_real_file_is_trimmed_and_zeroed() {
        use std::os::unix::fs::FileExt;
        let dir = crate::test_dir::TestDir::new();
        std::fs::write(dir.join("disk"), [7; 65536]).unwrap();
        let file = File::options().read(true).write(true).open(dir.join("disk")).unwrap();
        let ladder = Ladder::new(None);
        ladder.trim(&file, 4096, 4096).unwrap();
        assert!(ladder.zero(&file, 10_000, 10_000, true).unwrap());
        assert!(ladder.zero(&file, 30_000, 10_000, false).unwrap());
        let mut expected = [7; 65536];
        expected[4096..8192].fill(0);
        expected[10_000..20_000].fill(0);
        expected[30_000..40_000].fill(0);
        let mut found = [1; 65536];
        file.read_exact_at(&mut found, 0).unwrap();
        assert!(found == expected);
    }
}
