//! nbdkit-ones-plugin(1): a disk on which every byte is the same, and writes are dropped.

use nbdkit_api::{
    Blocking, Cache, Connection, Error, ExtentKind, Extents, Flags, Fua, Open, Plugin, Result,
    Value,
};

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
        &[
            "longname",
            "config",
            "config_help",
            "open",
            "get_size",
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

    fn open(&self, _open: &Open<'_>) -> Result<Box<dyn Connection>> {
        Ok(Box::new(Handle { size: self.size, byte: self.byte }))
    }
}

struct Handle {
    size: u64,
    byte: u8,
}

impl Connection for Handle {
    fn size(&self) -> Result<u64> {
        Ok(self.size)
    }

    fn can_write(&self) -> Result<bool> {
        Ok(true)
    }

    fn can_flush(&self) -> Result<bool> {
        Ok(true)
    }

    fn can_trim(&self) -> Result<bool> {
        Ok(true)
    }

    fn can_zero(&self) -> Result<bool> {
        Ok(true)
    }

    fn can_fast_zero(&self) -> Result<bool> {
        Ok(true)
    }

    fn can_extents(&self) -> Result<bool> {
        Ok(true)
    }

    fn can_fua(&self) -> Result<Fua> {
        Ok(Fua::Native)
    }

    // Nothing is kept, so every connection sees the same.
    fn can_multi_conn(&self) -> Result<bool> {
        Ok(true)
    }

    fn can_cache(&self) -> Result<Cache> {
        Ok(Cache::Native)
    }

    fn pread(&self, buf: &mut [u8], _offset: u64) -> Result<()> {
        buf.fill(self.byte);
        Ok(())
    }

    fn pwrite(&self, _buf: &[u8], _offset: u64, _flags: Flags) -> Result<()> {
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn trim(&self, _count: u64, _offset: u64, _flags: Flags) -> Result<()> {
        Ok(())
    }

    fn zero(&self, _count: u64, _offset: u64, _flags: Flags) -> Result<()> {
        Ok(())
    }

    // All of the disk in one extent: it is the same everywhere.
    fn extents(
        &self,
        _count: u64,
        _offset: u64,
        _flags: Flags,
        extents: &mut Extents,
    ) -> Result<()> {
        extents.add(0, self.size, ExtentKind::DATA)
    }

    fn blocking(&self) -> Blocking {
        Blocking::Never
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
