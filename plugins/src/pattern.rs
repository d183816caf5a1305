//! nbdkit-pattern-plugin(1): a read-only disk on which every 8 bytes are their offset, as a 64-bit
//! big-endian number.

use nbdkit_api::{Connection, Error, Open, Plugin, Result, Value};

use crate::simple::{Abilities, Disk, Simple};
use crate::words;

/// The plugin: just a size.
#[derive(Debug, Default)]
pub struct Pattern {
    size: u64,
}

impl Plugin for Pattern {
    fn name(&self) -> &str {
        "pattern"
    }

    fn callbacks(&self) -> &'static [&'static str] {
        &["config", "config_help", "open", "get_size", "can_multi_conn", "can_cache", "pread"]
    }

    fn magic_config_key(&self) -> Option<&str> {
        Some("size")
    }

    fn config_help(&self) -> Option<&str> {
        Some("size=<SIZE>  (required) Size of the backing disk")
    }

    fn config(&mut self, key: &str, value: Value<'_>) -> Result<()> {
        match key {
            "size" => self.size = value.size()?,
            _ => return Err(Error::unknown_parameter(key)),
        }
        Ok(())
    }

    fn can_park(&self) -> bool {
        true
    }

    fn open(&self, _open: &Open<'_>) -> Result<Box<dyn Connection>> {
        Ok(Box::new(Simple(Offsets { size: self.size })))
    }
}

struct Offsets {
    size: u64,
}

impl Disk for Offsets {
    const ABILITIES: Abilities = Abilities::READ;

    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        words::fill(buf, offset, u64::to_be_bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_word_is_its_big_endian_offset() {
        let disk = Offsets { size: i64::MAX as u64 };
        let mut buf = [0xaa; 20];
        disk.read(&mut buf, 0x25).unwrap();
        assert_eq!(buf, [0, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0x28, 0, 0, 0, 0, 0, 0, 0, 0x30, 0]);
    }

    #[test]
    fn the_last_word_of_the_largest_disk_is_cut() {
        let disk = Offsets { size: i64::MAX as u64 };
        let mut buf = [0; 7];
        disk.read(&mut buf, i64::MAX as u64 - 7).unwrap();
        assert_eq!(buf, [0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
    }
}
