//! Where the memory and data plugins keep the bytes of their disks: nbdkit's `allocator=`
//! parameter.
//!
//! Configured in the template, used by the workers. Offsets and counts come from clients and have
//! been checked against the size of the disk. Source: nbdkit-memory-plugin(1), "ALLOCATORS".

mod limited;
mod malloc;
mod sparse;
mod zstd;

use std::fmt::Debug;
use std::io::Write;
use std::os::fd::BorrowedFd;

use nbdkit_api::{Error, Extents, Isolation, Result, ResultExt, Value};

/// Bytes that all clients share, all zero at first.
///
/// Made while the plugin is configured; [`set_size`](Self::set_size) is called once the size of the
/// disk is known, at the latest in `get_ready`. What is written before that is kept. All other
/// methods may be called from any process and thread at once.
pub trait Allocator: Debug + Send + Sync {
    /// Reserves what the strategy reserves for a disk of `size` bytes, at most `i64::MAX`. Bytes
    /// that were written beyond it are lost.
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

    /// Bytes of memory that the disk uses now.
    ///
    /// # Errors
    /// EIO.
    fn used(&self) -> Result<u64>;

    /// Whether [`set_size`](Self::set_size) allocates all that the disk will ever use.
    fn is_preallocated(&self) -> bool {
        false
    }

    /// The most bytes of memory that a write of `count` bytes can allocate.
    fn max_cost(&self, count: u64) -> u64;

    /// How many bytes of memory this write allocates, if nobody else writes meanwhile.
    ///
    /// # Errors
    /// EIO.
    fn cost(&self, buf: &[u8], offset: u64) -> Result<u64>;

    /// Whether a write may wait for a mutex that another process holds.
    fn may_wait(&self) -> bool {
        false
    }
}

/// Prints the `--dump-plugin` lines that tell which strategies there are.
///
/// # Errors
/// `out` cannot be written.
pub fn dump_plugin(out: &mut dyn Write) -> std::io::Result<()> {
    writeln!(out, "mlock=yes")?;
    writeln!(out, "zstd=yes")
}

/// Bytes of memory that this machine has, with what it swaps to.
///
/// # Errors
/// The kernel's.
pub(crate) fn machine_memory() -> Result<u64> {
    let machine = nix::sys::sysinfo::sysinfo().or_error(|| "sysinfo")?;
    Ok(machine.ram_total().saturating_add(machine.swap_total()))
}

/// Writes what is not zero in `buf`, in units of 4096 bytes from its start.
///
/// # Errors
/// Those of [`Allocator::write`].
pub(crate) fn write_used(disk: &dyn Allocator, buf: &[u8], offset: u64) -> Result<()> {
    const UNIT: usize = 4096;
    let units = buf.chunks(UNIT).zip((offset..).step_by(UNIT));
    for (unit, at) in units.filter(|(unit, _)| unit.iter().any(|byte| *byte != 0)) {
        disk.write(unit, at)?;
    }
    Ok(())
}

/// The page of nbdkit's sparse arrays, in which allocation and trimming show to clients, bytes.
const PAGE: u64 = 32 << 10;

/// Piece in which [`Allocator::fill`] writes, bytes.
const FILL_PIECE: u64 = 1 << 20;

/// A parsed `allocator=` parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Strategy {
    /// Where the bytes are kept.
    pub kind: Kind,
    /// `max=SIZE`: the most bytes of memory that they may use.
    pub max: Option<u64>,
}

impl From<Kind> for Strategy {
    fn from(kind: Kind) -> Strategy {
        Strategy { kind, max: None }
    }
}

/// Where bytes are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Kind {
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
        let (name, parameters) = text.split_once(',').unwrap_or((text, ""));
        let parsed = split_max(parameters).and_then(|(max, parameters)| {
            let kind = match (name, &parameters[..]) {
                ("sparse" | "", []) => Kind::Sparse,
                ("malloc", parameters) => malloc::parse(parameters)?,
                ("zstd", []) => Kind::Zstd,
                (name @ ("sparse" | "zstd"), _) => {
                    let text = format!("allocator={name} does not take extra parameters");
                    return Err(Error::msg(text));
                }
                _ => return Err(Error::silent(nbdkit_api::Errno::EINVAL)),
            };
            Ok(Strategy { kind, max })
        });
        parsed.map_err(|mut why| {
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
        let allocator: Box<dyn Allocator> = match self.kind {
            Kind::Sparse => Box::new(sparse::Sparse::new(name)?),
            Kind::Malloc { mlock } => Box::new(malloc::Malloc::new(name, mlock)?),
            Kind::Zstd => Box::new(zstd::Zstd::new()?),
        };
        match self.max {
            Some(max) => Ok(Box::new(limited::Limited::new(allocator, max)?)),
            None => Ok(allocator),
        }
    }
}

/// What stands behind the first comma: the last `max=SIZE`, and the rest.
fn split_max(parameters: &str) -> Result<(Option<u64>, Vec<&str>)> {
    let (mut max, mut others) = (None, Vec::new());
    for parameter in parameters.split(',').filter(|parameter| !parameter.is_empty()) {
        match parameter.strip_prefix("max=") {
            Some(size) => max = Some(Value::new(size).size()?),
            None => others.push(parameter),
        }
    }
    Ok((max, others))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nbdkit_api::{ExtentKind, Extents};

    fn parse(text: &str) -> Result<Strategy> {
        Strategy::parse(Value::new(text))
    }

    fn limited(kind: Kind, max: u64) -> Box<dyn Allocator> {
        let mut allocator = Strategy { kind, max: Some(max) }.create("test").unwrap();
        allocator.set_size(8 << 20).unwrap();
        allocator
    }

    /// Bytes that do not compress.
    fn noise(count: usize, seed: u64) -> Vec<u8> {
        let mut state = seed;
        let next = || {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            (state >> 56) as u8
        };
        std::iter::repeat_with(next).take(count).collect()
    }

    #[test]
    fn a_write_beyond_the_limit_changes_nothing_and_zeroing_gives_room_back() {
        for kind in [Kind::Sparse, Kind::Zstd] {
            let allocator = limited(kind, 1 << 20);
            let full = |offset: u64, count: usize| {
                let why = allocator.write(&noise(count, offset + 7), offset).unwrap_err();
                assert_eq!(why.errno(), nbdkit_api::Errno::ENOSPC, "{kind:?}");
            };
            let piece = 900 << 10;
            allocator.write(&noise(piece, 1), 0).unwrap();
            // The beginning of it is there already, and the next bytes would fit.
            let reach = 600 << 10;
            full(500 << 10, reach);
            full(4 << 20, 200 << 10);
            let mut back = vec![0; 2 << 20];
            allocator.read(&mut back, 0).unwrap();
            assert!(back[..piece] == noise(piece, 1) && back[piece..].iter().all(|b| *b == 0));
            // What is there can be written again.
            for seed in 2..5 {
                allocator.write(&noise(piece, seed), 0).unwrap();
            }
            assert!(allocator.used().unwrap() <= 1 << 20);
            allocator.zero(512 << 10, 0).unwrap();
            allocator.write(&noise(500 << 10, 3), 4 << 20).unwrap();
            full(6 << 20, 300 << 10);
            allocator.zero(8 << 20, 0).unwrap();
            assert_eq!(allocator.used().unwrap(), 0, "{kind:?}");
        }
    }

    #[test]
    fn what_compresses_well_fits_a_small_limit() {
        let allocator = limited(Kind::Zstd, 64 << 10);
        for round in 0..3 {
            allocator.write(&vec![round; 4 << 20], 0).unwrap();
        }
        assert!(allocator.used().unwrap() <= 64 << 10);
        assert!(allocator.write(&noise(1 << 20, 1), 4 << 20).is_err());
    }

    #[test]
    fn writers_at_the_same_time_do_not_exceed_the_limit() {
        for kind in [Kind::Sparse, Kind::Zstd] {
            let allocator = limited(kind, 1 << 20);
            std::thread::scope(|scope| {
                for thread in 0..4_u64 {
                    let allocator = &allocator;
                    scope.spawn(move || {
                        for n in 0..32 {
                            let offset = (thread * 32 + n) * (64 << 10);
                            let _ = allocator.write(&noise(64 << 10, offset + 1), offset);
                            if n % 5 == thread {
                                allocator.zero(64 << 10, offset).unwrap();
                            }
                        }
                    });
                }
            });
            let taken = allocator.used().unwrap();
            assert!((800 << 10..=1 << 20).contains(&taken), "{kind:?}: {taken}");
        }
    }

    #[test]
    fn a_disk_that_is_allocated_at_once_must_fit_the_limit() {
        let create = |max| Strategy { kind: Kind::Malloc { mlock: false }, max: Some(max) };
        let mut large = create((1 << 20) - 1).create("test").unwrap();
        assert_eq!(large.set_size(1 << 20).unwrap_err().errno(), nbdkit_api::Errno::ENOSPC);
        let mut small = create(1 << 20).create("test").unwrap();
        small.set_size(1 << 20).unwrap();
        small.write(&vec![1; 1 << 20], 0).unwrap();
        assert_eq!(small.used().unwrap(), 1 << 20);
    }

    #[test]
    fn every_form_of_the_parameter_is_understood() {
        assert_eq!(parse("sparse").unwrap(), Kind::Sparse.into());
        assert_eq!(parse("zstd").unwrap(), Kind::Zstd.into());
        assert_eq!(parse("malloc").unwrap(), Kind::Malloc { mlock: false }.into());
        assert_eq!(parse("malloc,mlock=true").unwrap(), Kind::Malloc { mlock: true }.into());
        let max = |kind, max| Strategy { kind, max: Some(max) };
        assert_eq!(parse("sparse,max=1M").unwrap(), max(Kind::Sparse, 1 << 20));
        assert_eq!(parse(",max=1,max=2").unwrap(), max(Kind::Sparse, 2));
        assert_eq!(parse("zstd,max=1").unwrap(), max(Kind::Zstd, 1));
        let locked = Kind::Malloc { mlock: true };
        assert_eq!(parse("malloc,max=2,mlock=1").unwrap(), max(locked, 2));
        assert_eq!(parse("malloc,mlock=1,mlock=0").unwrap(), Kind::Malloc { mlock: false }.into());
        for bad in [
            "foo",
            "zstd,x=1",
            "sparse,x=1",
            "sparse,max=x",
            "sparse,max",
            "foo,max=1",
            "malloc,foo=1",
            "malloc,mlock=x",
            "Sparse",
        ] {
            let why = parse(bad).unwrap_err();
            assert_eq!(why.message(), format!("unknown allocator \"{bad}\""));
        }
    }

    fn all() -> Vec<Box<dyn Allocator>> {
        [Kind::Sparse, Kind::Malloc { mlock: false }, Kind::Zstd]
            .map(|kind| {
                let mut allocator = Strategy::from(kind).create("test").unwrap();
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
        for kind in [Kind::Sparse, Kind::Malloc { mlock: false }, Kind::Zstd] {
            let mut allocator = Strategy::from(kind).create("test").unwrap();
            allocator.write(b"hello", 100_000).unwrap();
            allocator.set_size(200_000).unwrap();
            let mut buf = [1; 6];
            allocator.read(&mut buf, 100_000).unwrap();
            assert_eq!(&buf, b"hello\0");
        }
    }
}
