//! Pseudo-random numbers. Quality matters here, secrecy does not.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators"), which any
/// number of threads may draw from.
#[derive(Debug)]
pub(crate) struct Random(AtomicU64);

impl Random {
    /// The sequence of a seed.
    pub(crate) fn new(seed: u64) -> Random {
        Random(AtomicU64::new(seed))
    }

    /// A sequence of its own for every connection, though workers are forks of one process.
    pub(crate) fn seeded_for(connection: u64) -> Random {
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let seed = time.as_nanos() as u64 ^ u64::from(std::process::id()).rotate_left(32);
        Random::new(seed ^ connection.rotate_left(48))
    }

    /// Any number.
    pub(crate) fn word(&self) -> u64 {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut z = self.0.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in 0 .. 1.
    pub(crate) fn unit(&self) -> f64 {
        // The upper 53 bits are what a double holds exactly.
        (self.word() >> 11) as f64 / (1_u64 << 53) as f64
    }
}
