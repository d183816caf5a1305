//! nbdkit-null-plugin(1): a disk that drops what is written and reads as zeroes.

use nbdkit_api::{
    Blocking, Cache, Connection, ExtentKind, Extents, Flags, Fua, Open, Plugin, Result, Value,
};

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
            _ => return Err(nbdkit_api::Error::unknown_parameter(key)),
        }
        Ok(())
    }

    fn open(&self, _open: &Open<'_>) -> Result<Box<dyn Connection>> {
        Ok(Box::new(Handle { size: self.size }))
    }
}

struct Handle {
    size: u64,
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
        buf.fill(0);
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

    fn extents(&self, count: u64, offset: u64, _flags: Flags, extents: &mut Extents) -> Result<()> {
        extents.add(offset, count, ExtentKind::SPARSE)
    }

    fn blocking(&self) -> Blocking {
        Blocking::Never
    }
}
