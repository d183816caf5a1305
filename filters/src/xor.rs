//! nbdkit-xor-filter(1): combines all data with a pattern, by exclusive or.

use std::hash::{BuildHasher, Hasher, RandomState};

use nbdkit_api::{
    DataPath, Direction, Errno, Error, Filter, Flags, Next, NextConfig, Open, OpenLayer, Result,
    Slot, Value, Zero, parse,
};

use crate::random::Random;

/// Piece in which data is written, bytes: a multiple of every pattern's period.
const PIECE: usize = PERIOD * 78;
/// Bytes after which every pattern is where it began: the least common multiple of 1 to 8.
const PERIOD: usize = 840;
/// Longest pattern, bytes.
const LONGEST: usize = 8;

/// What the parameters say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Value(u64),
    /// The pattern follows from the seed.
    Random {
        seed: u64,
        is_given: bool,
    },
}

/// The filter: its parameters.
#[derive(Debug, Default)]
pub struct Xor {
    source: Option<Source>,
    /// Bytes of the pattern, unless they are as many as the value needs.
    length: Option<usize>,
}

impl Filter for Xor {
    fn name(&self) -> &str {
        "xor"
    }

    fn longname(&self) -> Option<&str> {
        Some("nbdkit xor filter")
    }

    fn config_help(&self) -> Option<&str> {
        Some(
            "xor=<VALUE>|rand[:<SEED>]  (required) The pattern.\n\
             xorlen=1..8                Length of the pattern in bytes.",
        )
    }

    fn config(&mut self, next: NextConfig<'_>, key: &str, value: Value<'_>) -> Result<()> {
        match key {
            "xor" => self.source = Some(source(value.str()?)?),
            "xorlen" => {
                let length = value.integer::<u32>(key)? as usize;
                if !(1..=LONGEST).contains(&length) {
                    return Err(Error::msg(format!("xorlen: must be 1 to {LONGEST}")));
                }
                self.length = Some(length);
            }
            _ => return next.config(key, value),
        }
        Ok(())
    }

    fn config_complete(&mut self, next: NextConfig<'_>) -> Result<()> {
        self.pattern()?;
        next.config_complete()
    }

    /// A pattern that was drawn is nowhere else.
    fn keeps_state(&self) -> bool {
        matches!(self.source, Some(Source::Random { is_given: false, .. }))
    }

    fn can_park(&self) -> bool {
        true
    }

    fn open(&self, below: &mut Slot<'_>, open: &Open<'_>) -> Result<Box<dyn OpenLayer>> {
        below.open(open)?;
        Ok(Box::new(Handle(self.pattern()?.into_iter().cycle().take(PERIOD).collect())))
    }
}

/// `VALUE`, `rand` or `rand:SEED`.
fn source(text: &str) -> Result<Source> {
    match text.strip_prefix("rand") {
        None => parse::integer("xor", text).map(Source::Value),
        Some("") => {
            // Drawn once, here in the template, so that all clients have the same pattern.
            let seed = RandomState::new().build_hasher().finish();
            Ok(Source::Random { seed, is_given: false })
        }
        Some(rest) => match rest.strip_prefix(':') {
            Some(seed) => Ok(Source::Random { seed: parse::integer("xor", seed)?, is_given: true }),
            None => Err(Error::msg(format!("xor={text}: expected a number, rand or rand:SEED"))),
        },
    }
}

impl Xor {
    /// The bytes of the pattern.
    ///
    /// # Errors
    /// There is none, or it does not fit the length.
    fn pattern(&self) -> Result<Vec<u8>> {
        let source =
            self.source.ok_or_else(|| Error::msg("you must supply the xor=<VALUE> parameter"))?;
        match source {
            Source::Value(value) => {
                let bytes = value.to_be_bytes();
                let needed = (LONGEST - value.leading_zeros() as usize / 8).max(1);
                let length = self.length.unwrap_or(needed);
                if needed > length {
                    let why = format!("xor={value:#x} has {needed} bytes, more than xorlen");
                    return Err(Error::msg(why));
                }
                Ok(bytes[LONGEST - length..].to_vec())
            }
            Source::Random { seed, .. } if self.length.is_none_or(|it| it == LONGEST) => {
                Ok(Random::new(seed).word().to_be_bytes().to_vec())
            }
            Source::Random { .. } => Err(Error::msg("xor=rand has 8 bytes: xorlen must be 8")),
        }
    }
}

/// The pattern, repeated to the period of all patterns.
struct Handle(Box<[u8]>);

impl Handle {
    /// Combines bytes, the first of which is at `offset`, with the pattern.
    fn apply(&self, mut bytes: &mut [u8], offset: u64) {
        let mut from = (offset % PERIOD as u64) as usize;
        while !bytes.is_empty() {
            let pattern = &self.0[from..];
            let (head, rest) = bytes.split_at_mut(pattern.len().min(bytes.len()));
            head.iter_mut().zip(pattern).for_each(|(byte, with)| *byte ^= with);
            (bytes, from) = (rest, 0);
        }
    }

    fn is_nothing(&self) -> bool {
        self.0.iter().all(|byte| *byte == 0)
    }

    /// Writes zeroes, as clients see them.
    fn write_zeroes(&self, next: &Next, count: u64, offset: u64, flags: Flags) -> Result<()> {
        let mut pattern = vec![0; count.min(PIECE as u64) as usize];
        self.apply(&mut pattern, offset);
        let end = offset + count;
        for at in (offset..end).step_by(PIECE) {
            let length = (end - at).min(PIECE as u64) as usize;
            next.pwrite(&pattern[..length], at, flags)?;
        }
        Ok(())
    }
}

impl OpenLayer for Handle {
    fn can_zero(&self, next: &Next) -> Result<Zero> {
        Ok(if next.can_write()? { Zero::Native } else { Zero::None })
    }

    fn can_fast_zero(&self, _: &Next) -> Result<bool> {
        Ok(false)
    }

    /// What is a hole below is not zeroes here.
    fn can_extents(&self, _: &Next) -> Result<bool> {
        Ok(false)
    }

    fn pread(&self, next: &Next, buf: &mut [u8], offset: u64) -> Result<()> {
        next.pread(buf, offset)?;
        self.apply(buf, offset);
        Ok(())
    }

    fn pwrite(&self, next: &Next, buf: &[u8], offset: u64, flags: Flags) -> Result<()> {
        let mut combined = Vec::with_capacity(buf.len().min(PIECE));
        for (piece, at) in buf.chunks(PIECE).zip((offset..).step_by(PIECE)) {
            combined.clear();
            combined.extend(piece);
            self.apply(&mut combined, at);
            next.pwrite(&combined, at, flags)?;
        }
        Ok(())
    }

    fn trim(&self, next: &Next, count: u64, offset: u64, flags: Flags) -> Result<()> {
        self.write_zeroes(next, count, offset, flags)
    }

    fn zero(&self, next: &Next, count: u64, offset: u64, flags: Flags) -> Result<()> {
        if flags.contains(Flags::FAST_ZERO) {
            return Err(Error::silent(Errno::EOPNOTSUPP));
        }
        self.write_zeroes(next, count, offset, flags & Flags::FUA)
    }

    fn data_path(&self, _: Direction) -> DataPath {
        if self.is_nothing() { DataPath::Transparent } else { DataPath::Opaque }
    }

    fn try_pread(&self, next: &Next, buf: &mut [u8], offset: u64) -> Option<Result<()>> {
        let result = next.try_pread(buf, offset)?;
        if result.is_ok() {
            self.apply(buf, offset);
        }
        Some(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, Disk};
    use std::sync::Arc;

    fn pattern(parameters: &[(&str, &str)]) -> Vec<u8> {
        let disk = Arc::new(Disk::new(64));
        testing::read(&testing::backend(&disk, &["xor"], parameters), 16, 0)
    }

    #[test]
    fn the_pattern_is_big_endian_and_as_long_as_it_has_to_be() {
        assert_eq!(pattern(&[("xor", "0x5a")]), [0x5a; 16]);
        assert_eq!(pattern(&[("xor", "0x102")])[..5], [1, 2, 1, 2, 1]);
        assert_eq!(pattern(&[("xor", "1"), ("xorlen", "3")])[..7], [0, 0, 1, 0, 0, 1, 0]);
        assert_eq!(pattern(&[("xor", "0")]), [0; 16]);
        let largest = u64::MAX.to_string();
        assert_eq!(pattern(&[("xor", &largest)]), [0xff; 16]);
        let drawn = pattern(&[("xor", "rand:7")]);
        assert_eq!(drawn, pattern(&[("xor", "rand:7"), ("xorlen", "8")]));
        assert_eq!(drawn[..8], drawn[8..]);
        assert_ne!(drawn, pattern(&[("xor", "rand:8")]));
        assert_ne!(pattern(&[("xor", "rand")]), pattern(&[("xor", "rand")]));
    }

    #[test]
    fn what_is_written_is_read_whatever_the_parts() {
        for value in ["0x12", "0x123456", "0x1122334455", "rand:3"] {
            let disk = Arc::new(Disk::new(1 << 20));
            let backend = testing::backend(&disk, &["xor"], &[("xor", value)]);
            let bytes: Vec<u8> = (0..200_000).map(|at| (at % 251) as u8).collect();
            backend.pwrite(&bytes, 12_345, Flags::FUA).unwrap();
            assert!(testing::read(&backend, bytes.len(), 12_345) == bytes, "{value}");
            assert!(testing::read(&backend, 70_001, 20_000) == bytes[7655..][..70_001]);
            assert!(disk.data.lock().unwrap()[12_345..][..bytes.len()] != bytes);
        }
    }

    #[test]
    fn zeroing_and_trimming_write_what_reads_as_zeroes() {
        let disk = Arc::new(Disk::pattern(1 << 20));
        let backend = testing::backend(&disk, &["xor"], &[("xor", "0x010203")]);
        disk.take_calls();
        backend.zero(100_000, 1, Flags::MAY_TRIM | Flags::FUA).unwrap();
        backend.trim(1000, 300_000, Flags::empty()).unwrap();
        let calls = disk.take_calls();
        assert_eq!(calls, ["pwrite 65520@1 FUA", "pwrite 34480@65521 FUA", "pwrite 1000@300000"]);
        assert!(testing::read(&backend, 100_000, 1) == vec![0; 100_000]);
        assert!(testing::read(&backend, 1000, 300_000) == [0; 1000]);
        assert!(!backend.can_extents().unwrap() && !backend.can_fast_zero().unwrap());
    }

    #[test]
    fn bad_parameters_are_refused() {
        for (parameters, why) in [
            (&[][..], "you must supply the xor"),
            (&[("xor", "random")], "xor=random: expected"),
            (&[("xor", "256"), ("xorlen", "1")], "xor=0x100 has 2 bytes"),
            (&[("xor", "rand"), ("xorlen", "4")], "xor=rand has 8 bytes"),
            (&[("xor", "1"), ("xorlen", "9")], "xorlen: must be 1 to 8"),
            (&[("xor", "1"), ("xorlen", "0")], "xorlen: must be 1 to 8"),
        ] {
            let error = testing::config_error("xor", parameters);
            assert!(error.starts_with(why), "{error}");
        }
        testing::config_error("xor", &[("xor", "0x1ffffffffffffffff")]);
        testing::config_error("xor", &[("xor", "rand:x")]);
    }
}
