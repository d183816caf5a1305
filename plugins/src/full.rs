//! nbdkit-full-plugin(1): a sparse disk whose host has no space left. Reads as zeroes; whatever
//! changes it fails with ENOSPC.

use nbdkit_api::{Connection, Errno, Error, ExtentKind, Extents, Open, Plugin, Result, Value};

use crate::simple::{Abilities, Disk, Simple};

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

    fn can_park(&self) -> bool {
        true
    }

    fn open(&self, _open: &Open<'_>) -> Result<Box<dyn Connection>> {
        Ok(Box::new(Simple(NoSpace { size: self.size.unwrap_or(0) })))
    }
}

struct NoSpace {
    size: u64,
}

/// Not logged: this is what the plugin is for.
fn no_space() -> Error {
    Error::silent(Errno::ENOSPC)
}

impl Disk for NoSpace {
    /// Zeroes are left to the server, which writes them and so fails as well.
    const ABILITIES: Abilities = Abilities { zero: false, flush: false, ..Abilities::ALL };

    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, buf: &mut [u8], _offset: u64) -> Result<()> {
        buf.fill(0);
        Ok(())
    }

    fn write(&self, _buf: &[u8], _offset: u64) -> Result<()> {
        Err(no_space())
    }

    fn zero(&self, _count: u64, _offset: u64) -> Result<()> {
        Err(no_space())
    }

    fn extents(&self, count: u64, offset: u64, _one: bool, extents: &mut Extents) -> Result<()> {
        extents.add(offset, count, ExtentKind::SPARSE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nbdkit_api::Flags;

    #[test]
    fn changes_return_enospc_and_reads_zeroes() {
        let disk = Simple(NoSpace { size: 10 });
        assert_eq!(disk.pwrite(b"x", 0, Flags::empty()).unwrap_err().errno(), Errno::ENOSPC);
        assert_eq!(disk.trim(1, 0, Flags::empty()).unwrap_err().errno(), Errno::ENOSPC);
        assert!(!disk.can_zero().unwrap());
        let mut buf = [1; 10];
        disk.pread(&mut buf, 0).unwrap();
        assert_eq!(buf, [0; 10]);
    }
}
