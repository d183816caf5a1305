//! Small value types of the plugin and filter contract, with nbdkit's names and numbers.

use std::os::fd::BorrowedFd;

/// How much may run at the same time, from nbdkit-plugin(3), "Threads"; ordered from the most
/// serialised to the most parallel, so the stack's model is the minimum of its layers'.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ThreadModel {
    /// One client at a time; the next one waits in the listener.
    SerializeConnections = 0,
    /// Many clients, one callback at a time in the whole server.
    SerializeAllRequests = 1,
    /// Many clients, one request at a time on each connection.
    SerializeRequests = 2,
    /// Many clients, many requests at a time on each.
    Parallel = 3,
}

impl ThreadModel {
    /// The name that `--dump-plugin` and the debug log print.
    pub fn as_str(self) -> &'static str {
        match self {
            ThreadModel::SerializeConnections => "serialize_connections",
            ThreadModel::SerializeAllRequests => "serialize_all_requests",
            ThreadModel::SerializeRequests => "serialize_requests",
            ThreadModel::Parallel => "parallel",
        }
    }

    /// The model with nbdkit's number `n` (`NBDKIT_THREAD_MODEL_*`).
    pub fn from_number(n: i32) -> Option<ThreadModel> {
        match n {
            0 => Some(ThreadModel::SerializeConnections),
            1 => Some(ThreadModel::SerializeAllRequests),
            2 => Some(ThreadModel::SerializeRequests),
            3 => Some(ThreadModel::Parallel),
            _ => None,
        }
    }
}

bitflags::bitflags! {
    /// Flags of a data request, `NBDKIT_FLAG_*`.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct Flags: u32 {
        /// `zero` may punch a hole.
        const MAY_TRIM = 1;
        /// The action must be on stable storage before success is returned.
        const FUA = 2;
        /// `extents`: only the first extent is wanted.
        const REQ_ONE = 4;
        /// `zero` must fail with EOPNOTSUPP unless it is faster than writing.
        const FAST_ZERO = 8;
    }
}

/// What a layer does about `NBD_CMD_FLAG_FUA`, `NBDKIT_FUA_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fua {
    /// Not advertised.
    None = 0,
    /// Advertised; the server calls `flush` after the write.
    Emulate = 1,
    /// Advertised; the layer honours [`Flags::FUA`].
    Native = 2,
}

/// What a layer does about writing zeroes, `NBDKIT_ZERO_*`. A plugin answers only
/// `Emulate` or `Native`; `None` is for filters only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Zero {
    /// Not advertised at all.
    None = 0,
    /// Advertised; the server writes zeroes with `pwrite`.
    Emulate = 1,
    /// Advertised; `zero` is called, and a plugin's EOPNOTSUPP falls back to `pwrite`.
    Native = 2,
}

/// What a layer does about `NBD_CMD_CACHE`, `NBDKIT_CACHE_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cache {
    /// Not advertised.
    None = 0,
    /// Advertised; the server reads the range and drops what it read.
    Emulate = 1,
    /// Advertised; `cache` is called.
    Native = 2,
}

/// Block size constraints in bytes, `.block_size`. All zero means "no information".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BlockSize {
    /// Smallest size and alignment of a request, a power of two up to 64 KiB.
    pub minimum: u32,
    /// Size without a read-modify-write penalty, a power of two in 512 .. 32 MiB.
    pub preferred: u32,
    /// Largest request: 0xffffffff or a multiple of the minimum.
    pub maximum: u32,
}

impl BlockSize {
    /// True if the layer gave no constraint.
    pub fn is_unspecified(&self) -> bool {
        *self == BlockSize::default()
    }

    /// Checks the rules of nbdkit-plugin(3), `.block_size`.
    ///
    /// # Errors
    /// The rule that does not hold, as text for the log.
    pub fn check(&self) -> Result<(), String> {
        let BlockSize { minimum, preferred, maximum } = *self;
        if self.is_unspecified() {
            return Ok(());
        }
        if !(minimum.is_power_of_two() && minimum <= 65536) {
            return Err(format!(
                "block_size: minimum {minimum} must be a power of 2 between 1 and 64K"
            ));
        }
        if !(preferred.is_power_of_two() && (512..=32 << 20).contains(&preferred)) {
            return Err(format!(
                "block_size: preferred {preferred} must be a power of 2 between 512 and 32M"
            ));
        }
        if maximum != u32::MAX && !maximum.is_multiple_of(minimum) {
            return Err(format!(
                "block_size: maximum {maximum} must be -1 or a multiple of the minimum {minimum}"
            ));
        }
        if minimum > preferred || preferred > maximum {
            return Err(format!(
                "block_size: must be minimum {minimum} <= preferred {preferred} <= maximum {maximum}"
            ));
        }
        Ok(())
    }
}

/// How long a request may keep the thread that runs it. Decides whether the thread that parsed
/// a request answers it on the spot or hands it to the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Blocking {
    /// Never waits for anything: memory, arithmetic. Always answered on the spot.
    Never,
    /// May wait for a local device. Answered on the spot only if nothing else is outstanding.
    Short,
    /// May wait for another program of this machine. Answered on the spot only if nothing else is
    /// outstanding, writes like reads.
    Peer,
    /// May wait for a network, a program or a timer. Never done by the thread that reads requests,
    /// if there may be another.
    Long,
}

/// Which way the bytes of a request go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// `pread`.
    Read,
    /// `pwrite` without flags.
    Write,
}

/// What a filter does to the bytes of its reads, or of its writes without flags. Requests that pass
/// through may be carried out by the server, or by the layer below, without calling the filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DataPath {
    /// Nothing: each request passes to the same offset of the layer below, and the filter need not
    /// see it.
    Transparent,
    /// Each request passes to an offset that is so many bytes higher.
    Shifted(u64),
    /// Nothing: each request passes to the same offset of the layer below, and the filter is
    /// [told of it](crate::OpenLayer::passed) when it has been carried out.
    Watched,
    /// Some requests pass to the same offset:
    /// [`passes`](crate::OpenLayer::passes) decides for each.
    PerRequest,
    /// The filter has to see every request.
    Opaque,
}

/// Where in a file the bytes of a read stand, or those of a write go, so that the server can move
/// them from there to the client without copying, or back: `len` bytes from `offset` of `fd` are
/// what `pread` would have returned.
#[derive(Debug, Clone, Copy)]
pub struct FileRange<'a> {
    /// A regular file, block device or memfd, open for reading, or for writing.
    pub fd: BorrowedFd<'a>,
    /// Byte offset in `fd`.
    pub offset: u64,
    /// Whether what stands at an offset of `fd` can be read without waiting for a device; `None` if
    /// everything can.
    pub in_memory: Option<fn(BorrowedFd<'_>, u64) -> bool>,
}

impl FileRange<'_> {
    /// Whether `count` bytes can be read without waiting for a device, as far as looking at some of
    /// them tells: caches are filled and emptied in longer runs.
    pub fn is_in_memory(&self, count: usize) -> bool {
        const STEP: usize = 128 * 1024;
        let Some(in_memory) = self.in_memory else { return true };
        let last = self.offset + (count as u64).saturating_sub(1);
        in_memory(self.fd, last)
            && (0..count).step_by(STEP).all(|at| in_memory(self.fd, self.offset + at as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn both_ends_of_a_range_and_what_is_between_are_looked_at() {
        let null = std::fs::File::open("/dev/null").unwrap();
        let range = |in_memory| FileRange { fd: null.as_fd(), offset: 1000, in_memory };
        assert!(range(None).is_in_memory(1 << 20));
        assert!(range(Some(|_, at| (1000..1000 + (1 << 20)).contains(&at))).is_in_memory(1 << 20));
        assert!(!range(Some(|_, at| at > 1000)).is_in_memory(1 << 20));
        assert!(!range(Some(|_, at| at < 999 + (1 << 20))).is_in_memory(1 << 20));
        assert!(!range(Some(|_, at| !(500_000..700_000).contains(&at))).is_in_memory(1 << 20));
    }

    #[test]
    fn block_sizes_outside_the_rules_are_refused() {
        let ok = BlockSize { minimum: 1, preferred: 4096, maximum: u32::MAX };
        assert!(ok.check().is_ok());
        assert!(BlockSize::default().check().is_ok());
        for bad in [
            BlockSize { minimum: 3, ..ok },
            BlockSize { minimum: 1 << 17, preferred: 1 << 17, ..ok },
            BlockSize { preferred: 256, ..ok },
            BlockSize { minimum: 512, maximum: 5000, ..ok },
            BlockSize { maximum: 512, ..ok },
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_tightest_thread_model_is_the_minimum() {
        assert_eq!(
            ThreadModel::Parallel.min(ThreadModel::SerializeRequests),
            ThreadModel::SerializeRequests
        );
    }
}
