//! nbdkit-ones-plugin(1): a disk on which every byte is the same, and writes are dropped.

use nbdkit_api::{Connection, Error, ExtentKind, Extents, Open, Plugin, Result, Value};

use crate::simple::{self, Abilities, Disk, Simple};

/// The plugin: a size and the byte.
#[derive(Debug)]
pub struct Ones {
    size: u64,
    byte: u8,
}

impl Default for Ones {
    fn default() -> Ones {
        Ones { size: 0, byte: 0xff }
    }
}

impl Plugin for Ones {
    fn name(&self) -> &str {
        "ones"
    }

    fn callbacks(&self) -> &'static [&'static str] {
        simple::CALLBACKS
    }

    fn longname(&self) -> Option<&str> {
        Some("nbdkit ones plugin")
    }

    fn magic_config_key(&self) -> Option<&str> {
        Some("size")
    }

    fn config_help(&self) -> Option<&str> {
        Some(
            "size=<SIZE>             Size of the backing disk\n\
             byte=<BYTE>             Byte to return (default 0xff)",
        )
    }

    fn config(&mut self, key: &str, value: Value<'_>) -> Result<()> {
        match key {
            "size" => self.size = value.size()?,
            "byte" => self.byte = value.integer("byte")?,
            _ => return Err(Error::unknown_parameter(key)),
        }
        Ok(())
    }

    fn can_park(&self) -> bool {
        true
    }

    fn open(&self, _open: &Open<'_>) -> Result<Box<dyn Connection>> {
        Ok(Box::new(Simple(Constant { size: self.size, byte: self.byte })))
    }
}

struct Constant {
    size: u64,
    byte: u8,
}

impl Disk for Constant {
    const ABILITIES: Abilities = Abilities::ALL;

    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, buf: &mut [u8], _offset: u64) -> Result<()> {
        buf.fill(self.byte);
        Ok(())
    }

    fn write(&self, _buf: &[u8], _offset: u64) -> Result<()> {
        Ok(())
    }

    fn zero(&self, _count: u64, _offset: u64) -> Result<()> {
        Ok(())
    }

    // All of the disk in one extent: its bytes are equal.
    fn extents(&self, _count: u64, _offset: u64, _one: bool, extents: &mut Extents) -> Result<()> {
        extents.add(0, self.size, ExtentKind::DATA)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_can_be_chosen_and_must_fit() {
        let mut plugin = Ones::default();
        assert_eq!(plugin.byte, 0xff);
        plugin.config("byte", Value::new("0x5a")).unwrap();
        assert!(plugin.config("byte", Value::new("256")).is_err());
        let open = Open { client: None, readonly: false, export: "", tls: false };
        let mut buf = [0; 10];
        plugin.open(&open).unwrap().pread(&mut buf, 0).unwrap();
        assert_eq!(buf, [0x5a; 10]);
    }
}
