//! nbdkit-sparse-random-plugin(1): a disk of runs of random blocks and of holes, for testing
//! programs that copy disks. Writes succeed if they write what is there already. The bytes are not
//! fit for cryptography.

#![forbid(unsafe_code)]

mod runs;

use std::hash::{BuildHasher, Hasher, RandomState};

use nbdkit_api::{
    BlockSize, Connection, Errno, Error, ExtentKind, Extents, Open, Plugin, Result, Value,
};

use crate::simple::{Abilities, Disk, Simple};
use crate::words;
use runs::{BLOCK, Run, Runs};

/// The plugin: the parameters, and the seed, which is random unless given.
#[derive(Debug)]
pub struct SparseRandom {
    size: u64,
    seed: u32,
    percent: f64,
    /// Bytes.
    run_length: u64,
    random_content: bool,
}

impl Default for SparseRandom {
    fn default() -> SparseRandom {
        // Chosen once, here in the template, so that all clients see the same disk.
        let seed = RandomState::new().build_hasher().finish() as u32;
        let run_length = 16 << 20;
        SparseRandom { size: 0, seed, percent: 10.0, run_length, random_content: false }
    }
}

impl Plugin for SparseRandom {
    fn name(&self) -> &str {
        "sparse-random"
    }

    fn callbacks(&self) -> &'static [&'static str] {
        &[
            "config",
            "config_help",
            "open",
            "get_size",
            "block_size",
            "can_write",
            "can_flush",
            "can_trim",
            "can_zero",
            "can_fast_zero",
            "can_extents",
            "can_fua",
            "can_multi_conn",
            "can_cache",
            "pread",
            "pwrite",
            "flush",
            "trim",
            "zero",
            "extents",
        ]
    }

    fn magic_config_key(&self) -> Option<&str> {
        Some("size")
    }

    fn config_help(&self) -> Option<&str> {
        Some(
            "size=<SIZE>  (required) Size of the backing disk\n\
             seed=<SEED>             Random number generator seed\n\
             percent=<PERCENT>       Percentage of data\n\
             runlength=<BYTES>       Expected average run length of data\n\
             random-content=true     Fully random content in each block",
        )
    }

    fn config(&mut self, key: &str, value: Value<'_>) -> Result<()> {
        match key {
            "size" => self.size = value.size()?,
            "seed" => self.seed = value.integer("seed")?,
            "percent" => {
                let text = value.str()?;
                let percent = text.parse().ok().filter(|it| (0.0..=100.0).contains(it));
                self.percent = percent
                    .ok_or_else(|| Error::msg(format!("cannot parse percent parameter: {text}")))?;
            }
            "runlength" => {
                self.run_length = value.size()?;
                if self.run_length == 0 {
                    return Err(Error::msg("runlength parameter must be > 0"));
                }
            }
            "random-content" => self.random_content = value.boolean()?,
            _ => return Err(Error::unknown_parameter(key)),
        }
        Ok(())
    }

    fn can_park(&self) -> bool {
        true
    }

    fn open(&self, _open: &Open<'_>) -> Result<Box<dyn Connection>> {
        Ok(Box::new(Simple(Sparse {
            size: self.size,
            seed: self.seed,
            random_content: self.random_content,
            runs: Runs::new(self.seed, self.percent, self.run_length),
        })))
    }
}

struct Sparse {
    size: u64,
    seed: u32,
    random_content: bool,
    runs: Runs,
}

/// What the words are made of besides the seed, so that bytes and runs have nothing in common.
const BYTES: u64 = 1 << 32;

impl Sparse {
    /// The runs that a range touches, cut to it, as offsets and lengths in bytes.
    fn pieces(&self, offset: u64, count: u64) -> impl Iterator<Item = (u64, u64, bool)> {
        let end = offset.saturating_add(count);
        let runs = self.runs.from(offset / BLOCK);
        runs.map_while(move |Run { start, end: last, data }| {
            let from = offset.max(start.saturating_mul(BLOCK));
            let to = end.min(last.saturating_mul(BLOCK));
            (from < to).then(|| (from, to - from, data))
        })
    }

    /// The byte of all of a block, which is not 0.
    fn byte(&self, block: u64) -> u8 {
        let [low, high, ..] = words::noise(BYTES + u64::from(self.seed), block * 8);
        (u16::from_le_bytes([low, high]) % 255) as u8 + 1
    }

    fn fill(&self, buf: &mut [u8], offset: u64) {
        if self.random_content {
            let seed = BYTES + u64::from(self.seed);
            return words::fill(buf, offset, |at| words::noise(seed, at));
        }
        let mut at = offset;
        let mut rest = buf;
        while !rest.is_empty() {
            let now = ((BLOCK - at % BLOCK) as usize).min(rest.len());
            let (block, behind) = rest.split_at_mut(now);
            block.fill(self.byte(at / BLOCK));
            rest = behind;
            at += now as u64;
        }
    }

    fn matches(&self, buf: &[u8], offset: u64) -> bool {
        if self.random_content {
            let seed = BYTES + u64::from(self.seed);
            return words::matches(buf, offset, |at| words::noise(seed, at));
        }
        let mut at = offset;
        let mut rest = buf;
        while !rest.is_empty() {
            let now = ((BLOCK - at % BLOCK) as usize).min(rest.len());
            let (block, behind) = rest.split_at(now);
            let byte = self.byte(at / BLOCK);
            if block.iter().any(|it| *it != byte) {
                return false;
            }
            rest = behind;
            at += now as u64;
        }
        true
    }
}

impl Disk for Sparse {
    const ABILITIES: Abilities = Abilities::ALL;

    fn size(&self) -> u64 {
        self.size
    }

    fn block_size(&self) -> BlockSize {
        BlockSize { minimum: 1, preferred: BLOCK as u32, maximum: u32::MAX }
    }

    fn read(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let mut rest = buf;
        for (at, length, data) in self.pieces(offset, rest.len() as u64) {
            // A piece is within the buffer.
            let (now, behind) = rest.split_at_mut(length as usize);
            if data {
                self.fill(now, at);
            } else {
                now.fill(0);
            }
            rest = behind;
        }
        Ok(())
    }

    fn write(&self, buf: &[u8], offset: u64) -> Result<()> {
        let mut rest = buf;
        for (at, length, data) in self.pieces(offset, rest.len() as u64) {
            let (now, behind) = rest.split_at(length as usize);
            let same = if data { self.matches(now, at) } else { now.iter().all(|it| *it == 0) };
            if !same {
                return Err(Error::new(Errno::EIO, "data written does not match expected"));
            }
            rest = behind;
        }
        Ok(())
    }

    // A copying program that trims or zeroes data has taken it for a hole.
    fn zero(&self, count: u64, offset: u64) -> Result<()> {
        if self.pieces(offset, count).any(|(_, _, data)| data) {
            return Err(Error::new(Errno::EIO, "trying to trim or zero non-hole in disk"));
        }
        Ok(())
    }

    fn extents(&self, count: u64, offset: u64, one: bool, extents: &mut Extents) -> Result<()> {
        let most = if one { 1 } else { usize::MAX };
        for (at, length, data) in self.pieces(offset, count).take(most) {
            let kind = if data { ExtentKind::DATA } else { ExtentKind::SPARSE };
            extents.add(at, length, kind)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
