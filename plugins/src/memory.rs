//! nbdkit-memory-plugin(1): a RAM disk that all clients share.

use std::io::Write;
use std::sync::Arc;

use nbdkit_api::{
    BlockSize, Blocking, Cache, Connection, Error, Extents, FileRange, Flags, Fua, Isolation, Open,
    Plugin, Result, Value, log,
};

use crate::allocator::{self, Allocator, Strategy};

/// The plugin: a size and, once it is ready, the disk.
#[derive(Debug, Default)]
pub struct Memory {
    size: Option<u64>,
    strategy: Strategy,
    disk: Option<Arc<dyn Allocator>>,
}

impl Plugin for Memory {
    fn name(&self) -> &str {
        "memory"
    }

    fn callbacks(&self) -> &'static [&'static str] {
        &[
            "dump_plugin",
            "config",
            "config_complete",
            "config_help",
            "get_ready",
            "open",
            "get_size",
            "block_size",
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

    fn magic_config_key(&self) -> Option<&str> {
        Some("size")
    }

    fn config_help(&self) -> Option<&str> {
        Some(
            "size=<SIZE>  (required) Size of the backing disk\n\
             allocator=sparse|...    Backend allocation strategy, with ,max=<SIZE> at most so\n                        much memory",
        )
    }

    fn config(&mut self, key: &str, value: Value<'_>) -> Result<()> {
        match key {
            "size" => self.size = Some(value.size()?),
            "allocator" => self.strategy = Strategy::parse(value)?,
            _ => return Err(Error::unknown_parameter(key)),
        }
        Ok(())
    }

    fn config_complete(&mut self) -> Result<()> {
        match self.size {
            Some(_) => Ok(()),
            None => Err(Error::msg("you must specify size=<SIZE> on the command line")),
        }
    }

    fn get_ready(&mut self) -> Result<()> {
        let mut disk = self.strategy.create("memory")?;
        disk.set_size(self.size.unwrap_or(0))?;
        self.disk = Some(disk.into());
        Ok(())
    }

    fn dump_plugin(&self, out: &mut dyn Write) -> std::io::Result<()> {
        allocator::dump_plugin(out)
    }

    fn isolation(&self) -> Isolation {
        self.disk.as_ref().map_or(Isolation::Connection, |disk| disk.isolation())
    }

    /// What clients write is nowhere else.
    fn keeps_state(&self) -> bool {
        true
    }

    fn open(&self, _open: &Open<'_>) -> Result<Box<dyn Connection>> {
        match (&self.disk, self.size) {
            (Some(disk), Some(size)) => Ok(Box::new(Handle::new(disk, size)?)),
            _ => Err(Error::msg("memory: not ready")),
        }
    }
}

/// One client of a disk that an allocator keeps.
pub(crate) struct Handle {
    pub(crate) disk: Arc<dyn Allocator>,
    pub(crate) size: u64,
}

impl Handle {
    /// A client of `disk`, which has `size` bytes.
    ///
    /// # Errors
    /// EIO.
    pub(crate) fn new(disk: &Arc<dyn Allocator>, size: u64) -> Result<Handle> {
        if log::verbose() {
            log::debug(&format!("allocator: {} bytes of memory are in use", disk.used()?));
        }
        Ok(Handle { disk: Arc::clone(disk), size })
    }
}

impl Connection for Handle {
    fn size(&self) -> Result<u64> {
        Ok(self.size)
    }

    fn block_size(&self) -> Result<BlockSize> {
        Ok(BlockSize { minimum: 1, preferred: self.disk.preferred_block_size(), maximum: u32::MAX })
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

    // There is no storage more stable than the memory that the bytes are in already.
    fn can_fua(&self) -> Result<Fua> {
        Ok(Fua::Native)
    }

    fn can_multi_conn(&self) -> Result<bool> {
        Ok(true)
    }

    fn can_cache(&self) -> Result<Cache> {
        Ok(Cache::Native)
    }

    fn pread(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.disk.read(buf, offset)
    }

    fn pwrite(&self, buf: &[u8], offset: u64, _flags: Flags) -> Result<()> {
        self.disk.write(buf, offset)
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn trim(&self, count: u64, offset: u64, _flags: Flags) -> Result<()> {
        self.disk.zero(count, offset)
    }

    fn zero(&self, count: u64, offset: u64, _flags: Flags) -> Result<()> {
        self.disk.zero(count, offset)
    }

    fn extents(&self, count: u64, offset: u64, flags: Flags, extents: &mut Extents) -> Result<()> {
        self.disk.extents(count, offset, flags.contains(Flags::REQ_ONE), extents)
    }

    fn blocking(&self) -> Blocking {
        // Compressed pages take time and locks.
        let never = self.disk.as_file().is_some() && !self.disk.may_wait();
        if never { Blocking::Never } else { Blocking::Short }
    }

    fn try_pread(&self, buf: &mut [u8], offset: u64) -> Option<Result<()>> {
        self.disk.as_file().map(|_| self.pread(buf, offset))
    }

    fn file_range(&self, _count: u32, offset: u64) -> Option<FileRange<'_>> {
        Some(FileRange { fd: self.disk.as_file()?, offset, in_memory: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(parameters: &[(&str, &str)]) -> Result<Box<dyn Connection>> {
        let mut plugin = Memory::default();
        for (key, value) in parameters {
            plugin.config(key, Value::new(*value))?;
        }
        plugin.config_complete()?;
        plugin.get_ready()?;
        plugin.open(&Open { client: None, readonly: false, export: "", tls: false })
    }

    #[test]
    fn the_size_is_required() {
        let why = open(&[]).err().unwrap();
        assert_eq!(why.message(), "you must specify size=<SIZE> on the command line");
    }

    #[test]
    fn the_end_of_the_largest_disk_can_be_written_and_trimmed() {
        let disk = open(&[("size", "9223372036854775807")]).unwrap();
        // The kernel's last page may be short; nbdkit's may not, so every byte must do.
        let last = i64::MAX as u64 - 1;
        disk.pwrite(b"x", last, Flags::empty()).unwrap();
        let mut byte = [0];
        disk.pread(&mut byte, last).unwrap();
        assert_eq!(&byte, b"x");
        disk.trim(4096, last - 4095, Flags::empty()).unwrap();
        disk.pread(&mut byte, last).unwrap();
        assert_eq!(&byte, b"\0");
    }

    #[test]
    fn a_trimmed_range_is_a_hole() {
        let disk = open(&[("size", "1M")]).unwrap();
        disk.pwrite(&[1; 1 << 20], 0, Flags::empty()).unwrap();
        disk.trim(64 << 10, 64 << 10, Flags::empty()).unwrap();
        let mut extents = Extents::new(0, 1 << 20);
        disk.extents(1 << 20, 0, Flags::empty(), &mut extents).unwrap();
        let ends: Vec<_> = extents.iter().map(|e| (e.end() >> 10, e.kind.bits())).collect();
        assert_eq!(ends, [(64, 0), (128, 3), (1024, 0)]);
    }
}
