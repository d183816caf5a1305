//! nbdkit-zero-plugin(1): a disk of no bytes, for testing corner cases.

use nbdkit_api::{Connection, Errno, Error, Open, Plugin, Result};

use crate::simple::{Abilities, Disk, Simple};

/// The plugin; there is nothing to configure.
#[derive(Debug, Default)]
pub struct Zero;

impl Plugin for Zero {
    fn name(&self) -> &str {
        "zero"
    }

    fn callbacks(&self) -> &'static [&'static str] {
        &["open", "get_size", "can_multi_conn", "can_cache", "pread"]
    }

    fn has_config(&self) -> bool {
        false
    }

    fn can_park(&self) -> bool {
        true
    }

    fn open(&self, _open: &Open<'_>) -> Result<Box<dyn Connection>> {
        Ok(Box::new(Simple(Empty)))
    }
}

struct Empty;

impl Disk for Empty {
    const ABILITIES: Abilities = Abilities::READ;

    fn size(&self) -> u64 {
        0
    }

    // No request lies within the disk, so this can only be a mistake of the server.
    fn read(&self, _buf: &mut [u8], _offset: u64) -> Result<()> {
        Err(Error::new(Errno::EINVAL, "pread: the disk is empty"))
    }
}
