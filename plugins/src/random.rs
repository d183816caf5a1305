//! nbdkit-random-plugin(1): a disk of random bytes, for testing clients. Writes succeed if they
//! write what is there already. The bytes are not fit for cryptography.

use std::hash::{BuildHasher, Hasher, RandomState};

use nbdkit_api::{Connection, Errno, Error, Open, Plugin, Result, Value};

use crate::simple::{Abilities, Disk, Simple};
use crate::words;

/// The plugin: a size and the seed, which is random unless given.
#[derive(Debug)]
pub struct Random {
    size: u64,
    seed: u32,
}

impl Default for Random {
    fn default() -> Random {
        // Chosen once, here in the template, so that all clients see the same disk.
        let seed = RandomState::new().build_hasher().finish() as u32;
        Random { size: 0, seed }
    }
}

impl Plugin for Random {
    fn name(&self) -> &str {
        "random"
    }

    fn callbacks(&self) -> &'static [&'static str] {
        &[
            "config",
            "config_help",
            "open",
            "get_size",
            "can_write",
            "can_trim",
            "can_zero",
            "can_multi_conn",
            "can_cache",
            "pread",
            "pwrite",
            "trim",
            "zero",
        ]
    }

    fn magic_config_key(&self) -> Option<&str> {
        Some("size")
    }

    fn config_help(&self) -> Option<&str> {
        Some(
            "size=<SIZE>  (required) Size of the backing disk\n\
             seed=<SEED>             Random number generator seed",
        )
    }

    fn config(&mut self, key: &str, value: Value<'_>) -> Result<()> {
        match key {
            "size" => self.size = value.size()?,
            "seed" => self.seed = value.integer("seed")?,
            _ => return Err(Error::unknown_parameter(key)),
        }
        Ok(())
    }

    fn can_park(&self) -> bool {
        true
    }

    fn open(&self, _open: &Open<'_>) -> Result<Box<dyn Connection>> {
        Ok(Box::new(Simple(Noise { size: self.size, seed: self.seed })))
    }
}

struct Noise {
    size: u64,
    seed: u32,
}

impl Disk for Noise {
    const ABILITIES: Abilities = Abilities { flush: false, extents: false, ..Abilities::ALL };

    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        words::fill(buf, offset, |at| words::noise(self.seed.into(), at));
        Ok(())
    }

    fn write(&self, buf: &[u8], offset: u64) -> Result<()> {
        if !words::matches(buf, offset, |at| words::noise(self.seed.into(), at)) {
            return Err(Error::new(Errno::EIO, "data written does not match expected"));
        }
        Ok(())
    }

    // A copying program that trims or zeroes has taken data for a hole.
    fn zero(&self, _count: u64, _offset: u64) -> Result<()> {
        Err(Error::new(Errno::EIO, "attempt to trim or zero non-sparse random disk"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(seed: u32, offset: u64, count: usize) -> Vec<u8> {
        let mut buf = vec![0; count];
        Noise { size: 1 << 40, seed }.read(&mut buf, offset).unwrap();
        buf
    }

    #[test]
    fn a_seed_always_gives_the_same_disk_however_it_is_read() {
        let whole = read(1, 0, 10_000);
        assert_eq!(read(1, 0, 10_000), whole);
        for (from, to) in [(0, 1), (3, 9), (7, 8), (513, 5000), (9_993, 10_000)] {
            assert_eq!(read(1, from as u64, to - from), whole[from..to]);
        }
        assert_ne!(read(2, 0, 10_000), whole);
    }

    #[test]
    fn the_bytes_do_not_change_between_versions() {
        assert_eq!(read(0, 0, 8), words::noise(0, 0));
        assert_eq!(u64::from_le_bytes(words::noise(0, 0)), 0xa706_dd2f_4d19_7e6f);
    }

    #[test]
    fn every_byte_value_is_about_equally_frequent() {
        let mut counts = [0_u32; 256];
        for byte in read(7, 1 << 30, 256 * 1000) {
            counts[usize::from(byte)] += 1;
        }
        // 1000 expected with a standard deviation of 32.
        assert!(counts.iter().all(|count| (800..1200).contains(count)), "{counts:?}");
    }

    #[test]
    fn only_what_is_there_already_can_be_written() {
        let disk = Noise { size: 1000, seed: 5 };
        let mut data = read(5, 11, 100);
        disk.write(&data, 11).unwrap();
        data[99] ^= 1;
        let why = disk.write(&data, 11).unwrap_err();
        assert_eq!(why.message(), "data written does not match expected");
        assert_eq!(disk.zero(1, 0).unwrap_err().errno(), Errno::EIO);
    }
}
