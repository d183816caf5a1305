//! nbdkit-full-plugin(1): a sparse disk whose host has no space left. Reads as zeroes; whatever
//! changes it fails with ENOSPC.

use nbdkit_api::{
    Blocking, Cache, Connection, Errno, Error, ExtentKind, Extents, Flags, Open, Plugin, Result,
    Value,
};

/// The plugin: just a size.
#[derive(Debug, Default)]
pub struct Full {
    size: Option<u64>,
}

impl Plugin for Full {
    fn name(&self) -> &str {
        "full"
    }

    fn callbacks(&self) -> &'static [&'static str] {
        &[
            "config",
            "config_complete",
            "config_help",
            "open",
            "get_size",
            "can_write",
            "can_trim",
            "can_extents",
            "can_multi_conn",
            "can_cache",
            "pread",
            "pwrite",
            "trim",
            "extents",
        ]
    }

    fn magic_config_key(&self) -> Option<&str> {
        Some("size")
    }

    fn config_help(&self) -> Option<&str> {
        Some("size=<SIZE>  (required) Size of the backing disk")
    }

    fn config(&mut self, key: &str, value: Value<'_>) -> Result<()> {
        match key {
            "size" => self.size = Some(value.size()?),
            _ => return Err(Error::unknown_parameter(key)),
        }
        Ok(())
    }

    fn config_complete(&mut self) -> Result<()> {
        match self.size {
            Some(_) => Ok(()),
            None => Err(Error::msg("size parameter is required")),
        }
    }

    fn open(&self, _open: &Open<'_>) -> Result<Box<dyn Connection>> {
        Ok(Box::new(Handle { size: self.size.unwrap_or(0) }))
    }
}

struct Handle {
    size: u64,
}

/// Not logged: this is what the plugin is for.
fn no_space() -> Error {
    Error::silent(Errno::ENOSPC)
}

impl Connection for Handle {
    fn size(&self) -> Result<u64> {
        Ok(self.size)
    }

    fn can_write(&self) -> Result<bool> {
        Ok(true)
    }

    // Zeroes are left to the server, which writes them and so fails as well.
    fn can_trim(&self) -> Result<bool> {
        Ok(true)
    }

    fn can_extents(&self) -> Result<bool> {
        Ok(true)
    }

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
        Err(no_space())
    }

    fn trim(&self, _count: u64, _offset: u64, _flags: Flags) -> Result<()> {
        Err(no_space())
    }

    fn extents(&self, count: u64, offset: u64, _flags: Flags, extents: &mut Extents) -> Result<()> {
        extents.add(offset, count, ExtentKind::SPARSE)
    }

    fn blocking(&self) -> Blocking {
        Blocking::Never
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_return_enospc_and_reads_zeroes() {
        let disk = Handle { size: 10 };
        assert_eq!(disk.pwrite(b"x", 0, Flags::empty()).unwrap_err().errno(), Errno::ENOSPC);
        assert_eq!(disk.trim(1, 0, Flags::empty()).unwrap_err().errno(), Errno::ENOSPC);
        assert!(!disk.can_zero().unwrap());
        let mut buf = [1; 10];
        disk.pread(&mut buf, 0).unwrap();
        assert_eq!(buf, [0; 10]);
    }
}
