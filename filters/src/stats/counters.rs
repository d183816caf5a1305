//! What is counted, in words that all workers add to. A hostile one can make the numbers wrong
//! and nothing else: they are only ever summed up and printed.

use std::sync::atomic::Ordering;
use std::time::Duration;

use nbdkit_api::Result;
use nbdkit_api::shared::SharedWords;

/// What is counted separately, in the order of the summary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    Read,
    Write,
    Trim,
    Zero,
    Extents,
    Cache,
    Flush,
}

impl Operation {
    pub(super) const ALL: [Operation; 7] = [
        Operation::Read,
        Operation::Write,
        Operation::Trim,
        Operation::Zero,
        Operation::Extents,
        Operation::Cache,
        Operation::Flush,
    ];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Operation::Read => "read",
            Operation::Write => "write",
            Operation::Trim => "trim",
            Operation::Zero => "zero",
            Operation::Extents => "extents",
            Operation::Cache => "cache",
            Operation::Flush => "flush",
        }
    }
}

/// Bits of a request's size.
pub(super) const SIZES: usize = 64;
/// Trailing zero bits of an offset; the last one is for offset 0.
pub(super) const ALIGNMENTS: usize = 65;

const OPS: usize = 0;
const BYTES: usize = 1;
const NANOS: usize = 2;
/// Words of an operation without histogram.
const PLAIN: usize = 3;
const SIZE_BYTES: usize = PLAIN;
const HISTOGRAM: usize = SIZE_BYTES + SIZES;
/// Words of an operation with histogram.
const FULL: usize = HISTOGRAM + SIZES * ALIGNMENTS;

/// The counters of all clients, in shared memory.
#[derive(Debug)]
pub(super) struct Counters {
    words: SharedWords,
    histogram: bool,
}

impl Counters {
    /// # Errors
    /// ENOMEM.
    pub(super) fn new(histogram: bool) -> Result<Counters> {
        let words = SharedWords::new(FULL * Operation::ALL.len())?;
        Ok(Counters { words, histogram })
    }

    fn word(&self, operation: Operation, at: usize) -> &std::sync::atomic::AtomicU64 {
        &self.words[operation as usize * FULL + at]
    }

    fn load(&self, operation: Operation, at: usize) -> u64 {
        self.word(operation, at).load(Ordering::Relaxed)
    }

    /// Counts a request of `count` bytes at `offset`; a flush has neither.
    pub(super) fn add(&self, operation: Operation, count: u64, offset: u64, took: Duration) {
        let add = |at, n| self.word(operation, at).fetch_add(n, Ordering::Relaxed);
        add(OPS, 1);
        add(BYTES, count);
        add(NANOS, took.as_nanos() as u64);
        if let Some(bits) = count.checked_ilog2()
            && self.histogram
        {
            let bits = bits as usize;
            add(SIZE_BYTES + bits, count);
            add(HISTOGRAM + bits * ALIGNMENTS + offset.trailing_zeros() as usize, 1);
        }
    }

    /// Successful requests.
    pub(super) fn ops(&self, operation: Operation) -> u64 {
        self.load(operation, OPS)
    }

    /// Their sizes together.
    pub(super) fn bytes(&self, operation: Operation) -> u64 {
        self.load(operation, BYTES)
    }

    /// The time they took together.
    pub(super) fn time(&self, operation: Operation) -> Duration {
        Duration::from_nanos(self.load(operation, NANOS))
    }

    /// The bytes of requests of 2^`bits` up to 2^(`bits`+1)-1 bytes.
    pub(super) fn size_bytes(&self, operation: Operation, bits: usize) -> u64 {
        self.load(operation, SIZE_BYTES + bits)
    }

    /// How many of those requests there were by the alignment of their offset.
    pub(super) fn alignments(&self, operation: Operation, bits: usize) -> [u64; ALIGNMENTS] {
        std::array::from_fn(|align| self.load(operation, HISTOGRAM + bits * ALIGNMENTS + align))
    }
}
