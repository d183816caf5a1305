//! Pseudo-random numbers. Quality matters here, secrecy does not.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// What the state grows by with each number.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

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
        // Tests compare connections that draw the same numbers.
        Random::new(if cfg!(test) { 0 } else { seed } ^ connection.rotate_left(48))
    }

    /// Any number.
    pub(crate) fn word(&self) -> u64 {
        mix(self.0.fetch_add(STEP, Ordering::Relaxed))
    }

    /// Uniform in 0 .. 1.
    pub(crate) fn unit(&self) -> f64 {
        unit_of(self.word())
    }

    /// What [`unit`](Self::unit) returns next, if no other thread draws before.
    pub(crate) fn next_unit(&self) -> f64 {
        unit_of(mix(self.0.load(Ordering::Relaxed)))
    }
}

/// The number that is drawn from a state.
fn mix(state: u64) -> u64 {
    let mut z = state.wrapping_add(STEP);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn unit_of(word: u64) -> f64 {
    // The upper 53 bits are what a double holds exactly.
    (word >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_number_is_known_before_it_is_drawn() {
        let random = Random::new(7);
        for _ in 0..100 {
            let next = random.next_unit().to_bits();
            assert_eq!(random.next_unit().to_bits(), next, "a look draws nothing");
            assert_eq!(random.unit().to_bits(), next);
        }
    }
}
