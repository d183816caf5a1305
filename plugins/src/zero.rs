//! nbdkit-zero-plugin(1): a disk of no bytes, for testing corner cases.

use nbdkit_api::{Blocking, Cache, Connection, Errno, Error, Open, Plugin, Result};

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

    fn open(&self, _open: &Open<'_>) -> Result<Box<dyn Connection>> {
        Ok(Box::new(Handle))
    }
}

struct Handle;

impl Connection for Handle {
    fn size(&self) -> Result<u64> {
        Ok(0)
    }

    fn can_multi_conn(&self) -> Result<bool> {
        Ok(true)
    }

    fn can_cache(&self) -> Result<Cache> {
        Ok(Cache::Native)
    }

    // No request lies within the disk, so this can only be a mistake of the server.
    fn pread(&self, _buf: &mut [u8], _offset: u64) -> Result<()> {
        Err(Error::new(Errno::EINVAL, "pread: the disk is empty"))
    }

    fn blocking(&self) -> Blocking {
        Blocking::Never
    }
}
