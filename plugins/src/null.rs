//! nbdkit-null-plugin(1): a disk that drops what is written and reads as zeroes.

use nbdkit_api::{Connection, Error, ExtentKind, Extents, Open, Plugin, Result, Value};

use crate::simple::{self, Abilities, Disk, Simple};

/// The plugin: just a size.
#[derive(Debug, Default)]
pub struct Null {
    size: u64,
}

impl Plugin for Null {
    fn name(&self) -> &str {
        "null"
    }

    fn callbacks(&self) -> &'static [&'static str] {
        simple::CALLBACKS
    }

    fn longname(&self) -> Option<&str> {
        Some("nbdkit null plugin")
    }

    fn magic_config_key(&self) -> Option<&str> {
        Some("size")
    }

    fn config_help(&self) -> Option<&str> {
        Some("size=<SIZE>             Size of the backing disk")
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
        Ok(Box::new(Simple(Nothing { size: self.size })))
    }
}

struct Nothing {
    size: u64,
}

impl Disk for Nothing {
    const ABILITIES: Abilities = Abilities::ALL;

    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, buf: &mut [u8], _offset: u64) -> Result<()> {
        buf.fill(0);
        Ok(())
    }

    fn write(&self, _buf: &[u8], _offset: u64) -> Result<()> {
        Ok(())
    }

    fn zero(&self, _count: u64, _offset: u64) -> Result<()> {
        Ok(())
    }

    fn extents(&self, count: u64, offset: u64, _one: bool, extents: &mut Extents) -> Result<()> {
        extents.add(offset, count, ExtentKind::SPARSE)
    }
}
