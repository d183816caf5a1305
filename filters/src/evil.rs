//! nbdkit-evil-filter(1): corrupts data that is read, as bad memory, disks and cables do.
//!
//! The disk, or each request, is divided into blocks in which about a hundred bits go wrong. Which
//! ones follows from a block's seed, so that a bit that is stuck is stuck for all processes,
//! without anything being kept about it.

use std::hash::{BuildHasher, Hasher, RandomState};

use nbdkit_api::{
    DataPath, Direction, Error, Filter, Next, NextConfig, Open, OpenLayer, Result, Slot, Value,
};

use crate::random::Random;

/// Below this nothing goes wrong.
const LEAST: f64 = 1e-12;
/// Above this every bit does.
const MOST: f64 = 1.0 / 8.0;

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Bits flip, others every time.
    CosmicRays,
    /// Bits of the disk are always 0 or always 1.
    StuckBits,
    /// The same of the bits of a request, wherever it reads.
    StuckWires,
}

impl Mode {
    fn parse(text: &str) -> Option<Mode> {
        match text {
            "cosmic-rays" | "cosmic" => Some(Mode::CosmicRays),
            "stuck-bits" | "stuck-bit" | "stuck" => Some(Mode::StuckBits),
            "stuck-wires" | "stuck-wire" => Some(Mode::StuckWires),
            _ => None,
        }
    }
}

/// The filter: what goes wrong, and how often.
#[derive(Debug)]
pub struct Evil {
    mode: Mode,
    /// Of a bit to be one of those that go wrong, unless it is the mode's own.
    probability: Option<f64>,
    /// Of one of those to be stuck after all.
    stuck: f64,
    seed: u32,
}

impl Default for Evil {
    fn default() -> Evil {
        // Chosen once, here in the template, so that the same bits are stuck for all clients.
        let seed = RandomState::new().build_hasher().finish() as u32;
        Evil { mode: Mode::StuckBits, probability: None, stuck: 1.0, seed }
    }
}

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
             \x20                            What goes wrong (default: stuck-bits).\n\
             evil-probability=<PROB>      Probability of a bit to go wrong (default: 1e-8, or 1e-6\n\
             \x20                            for stuck-wires).\n\
             evil-stuck-probability=<PROB> Probability of such a bit to be stuck (default: 1).\n\
             evil-seed=<SEED>             Random number seed.",
        )
    }

    fn config(&mut self, next: NextConfig<'_>, key: &str, value: Value<'_>) -> Result<()> {
        let probability = || match value.probability(key)? {
            within @ 0.0..=1.0 => Ok(within),
            _ => Err(Error::msg(format!("{key}: probability out of range: must be 0 to 1"))),
        };
        match key {
            "evil" | "evil-mode" => {
                let text = value.str()?;
                self.mode = Mode::parse(text)
                    .ok_or_else(|| Error::msg(format!("{key}: unknown mode: {text}")))?;
            }
            "evil-probability" => self.probability = Some(probability()?),
            "evil-stuck-probability" => self.stuck = probability()?,
            "evil-seed" => self.seed = value.integer(key)?,
            _ => return next.config(key, value),
        }
        Ok(())
    }

    fn open(&self, below: &mut Slot<'_>, open: &Open<'_>) -> Result<Box<dyn OpenLayer>> {
        below.open(open)?;
        let default = if self.mode == Mode::StuckWires { 1e-6 } else { 1e-8 };
        Ok(Box::new(Handle {
            mode: self.mode,
            damage: Damage {
                spread: Spread::of(self.probability.unwrap_or(default)),
                stuck: (self.stuck * 2_f64.powi(32)) as u64,
            },
            seed: u64::from(self.seed),
            random: Random::seeded_for(open.client.map_or(0, |client| client.number())),
        }))
    }
}

/// How far bits that go wrong are from each other.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Spread {
    Nowhere,
    Everywhere,
    Apart {
        /// Bytes in which there are about a hundred: a power of two.
        block: u64,
        /// Twice the mean distance, bits.
        interval: u64,
    },
}

impl Spread {
    fn of(probability: f64) -> Spread {
        match probability {
            ..LEAST => Spread::Nowhere,
            LEAST..=MOST => Spread::Apart {
                block: ((100.0 / probability / 8.0) as u64).next_power_of_two(),
                interval: (2.0 / probability) as u64,
            },
            _ => Spread::Everywhere,
        }
    }
}

/// What happens to bits.
#[derive(Debug, Clone, Copy)]
struct Damage {
    spread: Spread,
    /// Of 2^32 bits that go wrong, so many are stuck.
    stuck: u64,
}

impl Damage {
    /// Lets bits of `buf` go wrong, whose first byte is at `offset` of what the mode divides into
    /// blocks. `seed` makes the numbers of the block at an offset.
    fn apply(self, mode: Mode, buf: &mut [u8], offset: u64, seed: impl Fn(u64) -> Random) {
        match self.spread {
            Spread::Nowhere => {}
            Spread::Everywhere => {
                for (byte, at) in buf.iter_mut().zip(offset..) {
                    let random = seed(at);
                    (0..8).for_each(|bit| self.corrupt(mode, byte, bit, random.word()));
                }
            }
            Spread::Apart { block, interval } => {
                let end = offset + buf.len() as u64;
                let first = offset - offset % block;
                for start in (first..end).step_by(usize::try_from(block).unwrap_or(usize::MAX)) {
                    let (random, end) = (seed(start), end.min(start.saturating_add(block)));
                    let mut at = start;
                    loop {
                        let (distance, number) = (random.word() % interval, random.word());
                        at = at.saturating_add(distance / 8);
                        if at >= end {
                            break;
                        }
                        if at >= offset {
                            let byte = &mut buf[(at - offset) as usize];
                            self.corrupt(mode, byte, distance % 8, number);
                        }
                    }
                }
            }
        }
    }

    fn corrupt(self, mode: Mode, byte: &mut u8, bit: u64, random: u64) {
        let mask = 1 << bit;
        let low = random & u64::from(u32::MAX);
        match mode {
            Mode::CosmicRays => *byte ^= mask,
            _ if low >= self.stuck => {}
            _ if random & 1 != 0 => *byte |= mask,
            _ => *byte &= !mask,
        }
    }
}

struct Handle {
    mode: Mode,
    damage: Damage,
    seed: u64,
    /// For cosmic rays.
    random: Random,
}

impl Handle {
    fn corrupt(&self, buf: &mut [u8], offset: u64) {
        let at = if self.mode == Mode::StuckWires { 0 } else { offset };
        self.damage.apply(self.mode, buf, at, |block| match self.mode {
            Mode::CosmicRays => Random::new(self.random.word()),
            Mode::StuckBits | Mode::StuckWires => Random::new(self.seed.wrapping_add(block)),
        });
    }
}

impl OpenLayer for Handle {
    fn pread(&self, next: &Next, buf: &mut [u8], offset: u64) -> Result<()> {
        next.pread(buf, offset)?;
        self.corrupt(buf, offset);
        Ok(())
    }

    fn data_path(&self, direction: Direction) -> DataPath {
        match direction {
            Direction::Read if self.damage.spread != Spread::Nowhere => DataPath::Opaque,
            _ => DataPath::Transparent,
        }
    }

    fn try_pread(&self, next: &Next, buf: &mut [u8], offset: u64) -> Option<Result<()>> {
        let result = next.try_pread(buf, offset)?;
        if result.is_ok() {
            self.corrupt(buf, offset);
        }
        Some(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, Disk};
    use std::sync::Arc;

    const SIZE: usize = 1 << 20;

    /// A disk of zeroes and one of ones, as the filter shows them.
    fn both(parameters: &[(&str, &str)]) -> [Next; 2] {
        let parameters = [&[("evil-seed", "7")], parameters].concat();
        [0, 0xff].map(|byte| {
            let disk = Disk::new(SIZE);
            disk.data.lock().unwrap().fill(byte);
            testing::backend(&Arc::new(disk), &["evil"], &parameters)
        })
    }

    fn ones(data: &[u8]) -> u32 {
        data.iter().map(|byte| byte.count_ones()).sum()
    }

    /// Whether about as many of the disk's bits as the probability says; half of the stuck ones are
    /// what they would be anyway.
    fn is_about(count: u32, probability: f64) -> bool {
        let expected = SIZE as f64 * 8.0 * probability;
        (f64::from(count) - expected).abs() < 6.0 * expected.sqrt()
    }

    #[test]
    fn stuck_bits_are_the_same_in_every_read_and_as_many_as_wanted() {
        let [low, high] = both(&[("evil-probability", "1e-4")]);
        let (zeroes, all) = (testing::read(&low, SIZE, 0), testing::read(&high, SIZE, 0));
        assert!(is_about(ones(&zeroes), 0.5e-4), "{}", ones(&zeroes));
        assert!(is_about((SIZE * 8) as u32 - ones(&all), 0.5e-4));
        // A bit is stuck at one value.
        assert!(zeroes.iter().zip(&all).all(|(low, high)| low & !high == 0));
        for (count, offset) in [(4096, 0), (5000, 77_777), (SIZE - 1, 1)] {
            assert!(testing::read(&low, count, offset as u64) == zeroes[offset..][..count]);
            let mut now = vec![0; count];
            low.try_pread(&mut now, offset as u64).unwrap().unwrap();
            assert!(now == zeroes[offset..][..count]);
        }
        let [again, _] = both(&[("evil", "stuck"), ("evil-probability", "1:10000")]);
        assert!(testing::read(&again, SIZE, 0) == zeroes);
    }

    #[test]
    fn some_bits_are_stuck_and_others_only_could_be() {
        let parameters = [("evil-probability", "1e-3"), ("evil-stuck-probability", "25%")];
        let [low, _] = both(&parameters);
        let count = ones(&testing::read(&low, SIZE, 0));
        assert!(is_about(count, 0.125e-3), "{count}");
        let [low, _] = both(&[("evil-probability", "1e-3"), ("evil-stuck-probability", "0")]);
        assert_eq!(ones(&testing::read(&low, SIZE, 0)), 0);
    }

    #[test]
    fn cosmic_rays_flip_other_bits_every_time() {
        let [low, high] = both(&[("evil-mode", "cosmic-rays"), ("evil-probability", "1e-4")]);
        let first = testing::read(&low, SIZE, 0);
        assert!(is_about(ones(&first), 1e-4), "{}", ones(&first));
        assert!(first != testing::read(&low, SIZE, 0));
        assert!(is_about((SIZE * 8) as u32 - ones(&testing::read(&high, SIZE, 0)), 1e-4));
    }

    #[test]
    fn stuck_wires_are_in_the_same_place_of_every_request() {
        let [low, _] = both(&[("evil", "stuck-wire"), ("evil-probability", "1e-3")]);
        let first = testing::read(&low, 8192, 0);
        assert!(ones(&first) > 0);
        assert!(testing::read(&low, 8192, 12_345) == first);
        assert!(testing::read(&low, 4096, 512) == first[..4096]);
    }

    #[test]
    fn probabilities_at_the_ends_are_never_and_always() {
        let [low, high] = both(&[("evil-probability", "1e-13")]);
        assert_eq!(low.passes_to(Direction::Read, 512, 512), Some(512));
        assert!(testing::read(&high, SIZE, 0) == vec![0xff; SIZE]);
        let [low, _] = both(&[("evil", "cosmic"), ("evil-probability", "100%")]);
        assert!(testing::read(&low, 4096, 3) == [0xff; 4096]);
        let [low, high] = both(&[("evil-probability", "1")]);
        let (zeroes, all) = (testing::read(&low, 4096, 3), testing::read(&high, 4096, 3));
        assert!(zeroes == all && ones(&zeroes) > 15_000);
    }

    #[test]
    fn writes_are_not_corrupted() {
        let disk = Arc::new(Disk::new(4096));
        let parameters = [("evil", "cosmic"), ("evil-probability", "1")];
        let backend = testing::backend(&disk, &["evil"], &parameters);
        backend.pwrite(&[5; 4096], 0, nbdkit_api::Flags::empty()).unwrap();
        assert!(*disk.data.lock().unwrap() == [5; 4096]);
        assert_eq!(backend.passes_to(Direction::Write, 512, 0), Some(0));
        assert_eq!(backend.passes_to(Direction::Read, 512, 0), None);
    }

    #[test]
    fn bad_parameters_are_refused() {
        for (key, value, why) in [
            ("evil", "rays", "evil: unknown mode: rays"),
            ("evil-mode", "", "evil-mode: unknown mode: "),
            ("evil-probability", "1.5", "evil-probability: probability out of range"),
            ("evil-stuck-probability", "200%", "evil-stuck-probability: probability out of range"),
        ] {
            let error = testing::config_error("evil", &[(key, value)]);
            assert!(error.starts_with(why), "{error}");
        }
        testing::config_error("evil", &[("evil-seed", "4294967296")]);
        testing::config_error("evil", &[("evil-probability", "often")]);
    }
}
