//! Where the memory and data plugins keep the bytes of their disks: nbdkit's `allocator=` parameter.
//!
//! Configured in the template, used by the workers. Offsets and counts come from clients and have been
//! checked against the size of the disk.
//! Source: nbdkit-memory-plugin(1), "ALLOCATORS".

mod malloc;
mod sparse;
mod zstd;

use std::fmt::Debug;
use std::io::Write;
use std::os::fd::BorrowedFd;

use nbdkit_api::{Error, Extents, Isolation, Result, Value};

/// Bytes that all clients share, all zero at first.
///
/// Made while the plugin is configured; [`set_size`](Self::set_size) is called once the size of the disk
/// is known, at the latest in `get_ready`. What is written before that is kept. All other methods
/// may be called from any process and thread at once.
pub trait Allocator: Debug + Send + Sync {
    /// Reserves what the strategy reserves for a disk of `size` bytes, at most `i64::MAX`. Bytes that
    /// were written beyond it are lost.
    ///
    /// # Errors
    /// ENOMEM if there is not enough memory, EPERM if it may not be locked.
    fn set_size(&mut self, size: u64) -> Result<()>;

    /// Fills all of `buf` from `offset`. What was never written reads as zeroes.
    ///
    /// # Errors
    /// EIO.
    fn read(&self, buf: &mut [u8], offset: u64) -> Result<()>;

    /// Writes all of `buf` at `offset`.
    ///
    /// # Errors
    /// ENOSPC, ENOMEM.
    fn write(&self, buf: &[u8], offset: u64) -> Result<()>;

    /// Sets `count` bytes from `offset` to `byte`.
    ///
    /// # Errors
    /// ENOSPC, ENOMEM.
    fn fill(&self, byte: u8, count: u64, offset: u64) -> Result<()> {
        if byte == 0 {
            return self.zero(count, offset);
        }
        let piece = vec![byte; count.min(FILL_PIECE) as usize];
        let mut done = 0;
        while done < count {
            let length = (count - done).min(FILL_PIECE);
            self.write(&piece[..length as usize], offset + done)?;
            done += length;
        }
        Ok(())
    }

    /// Makes `count` bytes from `offset` read as zeroes, giving memory back where that is possible.
    /// Fast in the sense of NBD's fast zero.
    ///
    /// # Errors
    /// ENOSPC, ENOMEM.
    fn zero(&self, count: u64, offset: u64) -> Result<()>;

    /// Describes `count` bytes from `offset`, or with `one` at least the first extent of them.
    ///
    /// # Errors
    /// Those of [`Extents::add`]; EIO.
    fn extents(&self, count: u64, offset: u64, one: bool, extents: &mut Extents) -> Result<()>;

    /// The file whose byte N is byte N of the disk, if there is one: reads can then be
    /// moved from it without copying.
    fn as_file(&self) -> Option<BorrowedFd<'_>>;

    /// Preferred block size in bytes that the plugin should advertise.
    fn preferred_block_size(&self) -> u32;

    /// How the plugin's clients may be divided over processes.
    fn isolation(&self) -> Isolation;
}

/// Prints the `--dump-plugin` lines that tell which strategies there are.
///
/// # Errors
/// `out` cannot be written.
pub fn dump_plugin(out: &mut dyn Write) -> std::io::Result<()> {
    writeln!(out, "mlock=yes")?;
    writeln!(out, "zstd=yes")
}

/// The page of nbdkit's sparse arrays, in which allocation and trimming show to clients, bytes.
const PAGE: u64 = 32 << 10;

/// Piece in which [`Allocator::fill`] writes, bytes.
const FILL_PIECE: u64 = 1 << 20;

/// A parsed `allocator=` parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Strategy {
    /// `sparse`: what was not written takes no memory.
    #[default]
    Sparse,
    /// `malloc[,mlock=BOOL]`: all of it is allocated at once, and locked if wanted.
    Malloc {
        /// Keep it from being swapped out.
        mlock: bool,
    },
    /// `zstd`: what was written is kept compressed, in one process for all clients.
    Zstd,
}

impl Strategy {
    /// Parses the value of `allocator=`.
    ///
    /// # Errors
    /// `unknown allocator "VALUE"`; what is wrong with a parameter after the comma is
    /// logged before that, as nbdkit does.
    pub fn parse(value: Value<'_>) -> Result<Strategy> {
        let text = value.str()?;
        let strategy = match text.split_once(',').unwrap_or((text, "")) {
            ("sparse" | "", "") => Ok(Strategy::Sparse),
            ("malloc", parameters) => malloc::parse(parameters),
            ("zstd", "") => Ok(Strategy::Zstd),
            (name @ ("sparse" | "zstd"), _) => {
                Err(Error::msg(format!("allocator={name} does not take extra parameters")))
            }
            _ => Err(Error::silent(nbdkit_api::Errno::EINVAL)),
        };
        strategy.map_err(|mut why| {
            if why.take_for_log() {
                nbdkit_api::error!("{}", why.message());
            }
            Error::msg(format!("unknown allocator \"{text}\""))
        })
    }

    /// An empty allocator of this strategy. `name` appears in messages and in /proc.
    ///
    /// # Errors
    /// The kernel's.
    pub fn create(self, name: &str) -> Result<Box<dyn Allocator>> {
        Ok(match self {
            Strategy::Sparse => Box::new(sparse::Sparse::new(name)?),
            Strategy::Malloc { mlock } => Box::new(malloc::Malloc::new(name, mlock)?),
            Strategy::Zstd => Box::new(zstd::Zstd::new()?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nbdkit_api::{ExtentKind, Extents};

    fn parse(text: &str) -> Result<Strategy> {
        Strategy::parse(Value::new(text))
    }

    #[test]
    fn every_form_of_the_parameter_is_understood() {
        assert_eq!(parse("sparse").unwrap(), Strategy::Sparse);
        assert_eq!(parse("zstd").unwrap(), Strategy::Zstd);
        assert_eq!(parse("malloc").unwrap(), Strategy::Malloc { mlock: false });
        assert_eq!(parse("malloc,mlock=true").unwrap(), Strategy::Malloc { mlock: true });
        assert_eq!(parse("malloc,mlock=1,mlock=0").unwrap(), Strategy::Malloc { mlock: false });
        for bad in ["foo", "zstd,x=1", "sparse,x=1", "malloc,foo=1", "malloc,mlock=x", "Sparse"] {
            let why = parse(bad).unwrap_err();
            assert_eq!(why.message(), format!("unknown allocator \"{bad}\""));
        }
    }

    fn all() -> Vec<Box<dyn Allocator>> {
        [Strategy::Sparse, Strategy::Malloc { mlock: false }, Strategy::Zstd]
            .map(|strategy| {
                let mut allocator = strategy.create("test").unwrap();
                allocator.set_size(1 << 20).unwrap();
                allocator
            })
            .into()
    }

    #[test]
    fn what_is_written_is_read_and_the_rest_is_zero() {
        for allocator in all() {
            // Crosses the 32 KiB pages of every strategy.
            allocator.write(&[7; 40_000], 32_000).unwrap();
            allocator.fill(9, 10, 33_000).unwrap();
            allocator.zero(100, 50_000).unwrap();
            let mut buf = vec![1; 1 << 20];
            allocator.read(&mut buf, 0).unwrap();
            let mut expected = vec![0; 1 << 20];
            expected[32_000..72_000].fill(7);
            expected[33_000..33_010].fill(9);
            expected[50_000..50_100].fill(0);
            assert!(buf == expected, "{allocator:?}");
        }
    }

    #[test]
    fn extents_cover_the_disk_and_holes_are_zero() {
        for allocator in all() {
            allocator.write(&[7; 40_000], 500_000).unwrap();
            let mut extents = Extents::new(0, 1 << 20);
            allocator.extents(1 << 20, 0, false, &mut extents).unwrap();
            assert_eq!(extents.covered_to(), 1 << 20);
            let mut buf = vec![1; 1 << 20];
            allocator.read(&mut buf, 0).unwrap();
            for extent in extents.iter().filter(|e| e.kind.contains(ExtentKind::ZERO)) {
                let bytes = &buf[extent.offset as usize..extent.end() as usize];
                assert!(bytes.iter().all(|b| *b == 0), "{allocator:?} {extent:?}");
            }
        }
    }

    #[test]
    fn what_was_written_before_the_size_was_known_is_kept() {
        for strategy in [Strategy::Sparse, Strategy::Malloc { mlock: false }, Strategy::Zstd] {
            let mut allocator = strategy.create("test").unwrap();
            allocator.write(b"hello", 100_000).unwrap();
            allocator.set_size(200_000).unwrap();
            let mut buf = [1; 6];
            allocator.read(&mut buf, 100_000).unwrap();
            assert_eq!(&buf, b"hello\0");
        }
    }
}
