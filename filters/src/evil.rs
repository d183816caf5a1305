//! Corrupts what clients read, at random: nbdkit's evil filter, which came with 1.36.
//!
//! The seed is chosen before the first fork, and the state of the cosmic rays is in shared memory:
//! so all workers have the same stuck bits, and no two of them the same rays.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

use nbdkit_api::shared::SharedWords;
use nbdkit_api::{
    DataPath, Direction, Error, Filter, Next, NextConfig, Open, OpenLayer, Result, Slot,
    ThreadModel, Value,
};

use crate::random::{STEP, mix};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Mode {
    /// Any bit of any read is flipped.
    CosmicRays,
    /// Certain bits of the disk are always 0, or always 1.
    #[default]
    StuckBits,
    /// Certain bits of each read are.
    StuckWires,
}

/// The filter: its parameters and, once ready, the state of the cosmic rays.
#[derive(Debug)]
pub struct Evil {
    mode: Mode,
    probability: Option<f64>,
    stuck_probability: f64,
    seed: u32,
    rays: Option<Arc<SharedWords>>,
}

impl Default for Evil {
    fn default() -> Evil {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Evil {
            mode: Mode::default(),
            probability: None,
            stuck_probability: 1.0,
            seed: now.as_secs() as u32,
            rays: None,
        }
    }
}

/// Less than this is never, more than the other is always.
const NEVER: f64 = 1e-12;
const ALWAYS: f64 = 1.0 / 8.0;

impl Filter for Evil {
    fn name(&self) -> &str {
        "evil"
    }

    fn longname(&self) -> Option<&str> {
        Some("nbdkit evil filter")
    }

    fn config_help(&self) -> Option<&str> {
        Some(
            "evil=cosmic-rays|stuck-bits|stuck-wires\n\
             \x20                              What is corrupted (default: stuck-bits).\n\
             evil-probability=PROB          Probability of a corrupted bit (default 1e-8, of wires 1e-6).\n\
             evil-seed=SEED                 Random seed (default: the time).\n\
             evil-stuck-probability=PROB    Probability of such a bit being stuck (default 1).",
        )
    }

    fn config(&mut self, next: NextConfig<'_>, key: &str, value: Value<'_>) -> Result<()> {
        let probability = || {
            let probability = value.probability(key)?;
            if probability > 1.0 {
                return Err(Error::msg(format!("{key}: probability must be between 0 and 1")));
            }
            Ok(probability)
        };
        match key {
            "evil" | "evil-mode" => {
                self.mode = match value.str()? {
                    "cosmic-rays" | "cosmic" => Mode::CosmicRays,
                    "stuck-bits" | "stuck-bit" | "stuck" => Mode::StuckBits,
                    "stuck-wires" | "stuck-wire" => Mode::StuckWires,
                    other => return Err(Error::msg(format!("evil: unknown mode: {other}"))),
                }
            }
            "evil-probability" => self.probability = Some(probability()?),
            "evil-stuck-probability" => self.stuck_probability = probability()?,
            "evil-seed" => self.seed = value.integer(key)?,
            _ => return next.config(key, value),
        }
        Ok(())
    }

    /// Rays come in one order, as in nbdkit.
    fn thread_model(&self, below: ThreadModel) -> Result<ThreadModel> {
        Ok(match self.mode {
            Mode::CosmicRays => below.min(ThreadModel::SerializeRequests),
            Mode::StuckBits | Mode::StuckWires => below,
        })
    }

    fn get_ready(&mut self, _: ThreadModel) -> Result<()> {
        let rays = SharedWords::new(1)?;
        rays[0].store(self.seed.into(), Ordering::Relaxed);
        self.rays = Some(Arc::new(rays));
        Ok(())
    }

    fn open(&self, below: &mut Slot<'_>, open: &Open<'_>) -> Result<Box<dyn OpenLayer>> {
        below.open(open)?;
        let rays = self.rays.as_ref().ok_or_else(|| Error::msg("evil: opened before get_ready"))?;
        let usual = if self.mode == Mode::StuckWires { 1e-6 } else { 1e-8 };
        Ok(Box::new(Handle {
            mode: self.mode,
            probability: self.probability.unwrap_or(usual),
            // Of 2^32.
            stuck: (self.stuck_probability * 4_294_967_296.0) as u64,
            seed: self.seed.into(),
            rays: Arc::clone(rays),
        }))
    }
}

struct Handle {
    mode: Mode,
    probability: f64,
    stuck: u64,
    seed: u64,
    rays: Arc<SharedWords>,
}

/// A sequence from a seed.
fn sequence(seed: u64) -> impl FnMut() -> u64 {
    let mut state = mix(seed.wrapping_add(STEP));
    move || {
        state = state.wrapping_add(STEP);
        mix(state)
    }
}

impl Handle {
    /// Bytes of which the corrupted bits are computed from one seed: about a hundred of them.
    fn block(&self) -> u64 {
        ((100.0 / self.probability / 8.0).ceil() as u64).next_power_of_two()
    }

    fn corrupt(&self, buf: &mut [u8], offset: u64) {
        match self.mode {
            Mode::CosmicRays => {
                let next = || mix(self.rays[0].fetch_add(STEP, Ordering::Relaxed));
                self.corrupt_block(buf, 0, next);
            }
            Mode::StuckWires => self.corrupt_block(buf, 0, sequence(self.seed)),
            Mode::StuckBits => {
                let block = self.block();
                let (mut left, mut at) = (buf, offset);
                while !left.is_empty() {
                    let start = at - at % block;
                    let length = (block - (at - start)).min(left.len() as u64);
                    let (part, others) = left.split_at_mut(length as usize);
                    self.corrupt_block(part, at - start, sequence(self.seed.wrapping_add(start)));
                    (left, at) = (others, at + length);
                }
            }
        }
    }

    /// Corrupts the bytes of a block from `from` on. The walk begins with the block, so that the
    /// same bits are found for any part of it.
    fn corrupt_block(&self, part: &mut [u8], from: u64, mut next: impl FnMut() -> u64) {
        let end = from + part.len() as u64;
        // Bits, between two that are corrupted: from 0 to twice the mean.
        let longest = (2.0 / self.probability) as u64;
        let is_every_bit = self.probability > ALWAYS;
        let mut at = 0;
        for number in 0_u64.. {
            let bit = if is_every_bit {
                at = number / 8;
                number & 7
            } else {
                let interval = next() % longest;
                at += interval / 8;
                interval & 7
            };
            if at >= end {
                return;
            }
            let random = next();
            if at >= from {
                self.corrupt_bit(&mut part[(at - from) as usize], 1 << bit, random);
            }
        }
    }

    fn corrupt_bit(&self, byte: &mut u8, bit: u8, random: u64) {
        match self.mode {
            Mode::CosmicRays => *byte ^= bit,
            Mode::StuckBits | Mode::StuckWires if self.stuck <= random & 0xffff_ffff => {}
            Mode::StuckBits | Mode::StuckWires if random & 1 == 1 => *byte |= bit,
            Mode::StuckBits | Mode::StuckWires => *byte &= !bit,
        }
    }

    fn does_nothing(&self) -> bool {
        self.probability < NEVER
    }
}

impl OpenLayer for Handle {
    fn pread(&self, next: &Next, buf: &mut [u8], offset: u64) -> Result<()> {
        next.pread(buf, offset)?;
        if !self.does_nothing() {
            self.corrupt(buf, offset);
        }
        Ok(())
    }

    fn data_path(&self, direction: Direction) -> DataPath {
        match direction {
            Direction::Read if !self.does_nothing() => DataPath::Opaque,
            Direction::Read | Direction::Write => DataPath::Transparent,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, Disk};

    const SIZE: usize = 1 << 20;

    fn backend(mode: &str, probability: &str, seed: &str) -> Next {
        let disk = Arc::new(Disk::new(SIZE));
        disk.data.lock().unwrap().fill(0x55);
        let params = [("evil", mode), ("evil-probability", probability), ("evil-seed", seed)];
        testing::backend(&disk, &["evil"], &params)
    }

    fn changed(bytes: &[u8]) -> u32 {
        bytes.iter().map(|byte| (byte ^ 0x55).count_ones()).sum()
    }

    #[test]
    fn about_so_many_bits_are_corrupted() {
        // 8389 of 8388608 bits; half of those that are stuck are so at what they were.
        for (mode, low, high) in
            [("cosmic-rays", 7500, 9300), ("stuck-bits", 3600, 4800), ("stuck-wires", 3600, 4800)]
        {
            let count = changed(&testing::read(&backend(mode, "1e-3", "1"), SIZE, 0));
            assert!((low..high).contains(&count), "{mode}: {count}");
        }
        assert_eq!(changed(&testing::read(&backend("cosmic", "0.5", "1"), 1000, 3)), 8000);
        let all = changed(&testing::read(&backend("stuck-wire", "1", "1"), 1000, 3));
        assert!((3600..4400).contains(&all), "{all}");
        for never in ["0", "1e-13"] {
            let backend = backend("cosmic", never, "1");
            assert_eq!(backend.passes_to(Direction::Read, 5, 5), Some(5));
            assert_eq!(changed(&testing::read(&backend, SIZE, 0)), 0);
        }
    }

    #[test]
    fn stuck_bits_are_stuck_whatever_part_is_read_and_by_whom() {
        let whole = testing::read(&backend("stuck", "1e-3", "7"), SIZE, 0);
        let parts = backend("stuck-bit", "1e-3", "7");
        for (offset, count) in [(0, 1), (12_345, 100_000), (16_383, 2), (SIZE - 5000, 5000)] {
            let part = testing::read(&parts, count, offset as u64);
            assert!(part == whole[offset..offset + count], "{offset}");
        }
        let other = testing::read(&backend("stuck", "1e-3", "8"), SIZE, 0);
        assert!(other != whole);
        // Wires are stuck by the offset within the request.
        let wires = backend("stuck-wires", "1e-3", "7");
        assert!(testing::read(&wires, 50_000, 0) == testing::read(&wires, 50_000, 77));
        let rays = backend("cosmic", "1e-3", "7");
        assert!(testing::read(&rays, 50_000, 0) != testing::read(&rays, 50_000, 0));
    }

    #[test]
    fn writes_are_not_touched_and_parameters_are_checked() {
        let backend = backend("stuck", "0.1", "7");
        assert_eq!(backend.passes_to(Direction::Write, 5, 5), Some(5));
        for (key, bad) in [
            ("evil", "x"),
            ("evil-probability", "1.1"),
            ("evil-stuck-probability", "200%"),
            ("evil-seed", "-1"),
            ("evil-seed", "4294967296"),
        ] {
            testing::config_error("evil", &[(key, bad)]);
        }
    }
}
