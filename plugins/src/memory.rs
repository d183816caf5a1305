//! nbdkit-memory-plugin(1): a RAM disk that all clients share.

mod load;

use std::io::Write;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::Arc;

use nbdkit_api::{
    BlockSize, Blocking, Connection, Error, Extents, Isolation, Open, Plugin, Result, Value, log,
};

use crate::allocator::{self, Allocator, Strategy};
use crate::simple::{Abilities, Disk, Simple};

/// The plugin: a size, what is there at first and, once it is ready, the disk.
#[derive(Debug, Default)]
pub struct Memory {
    size: Option<u64>,
    strategy: Strategy,
    load: Option<PathBuf>,
    disk: Option<Arc<dyn Allocator>>,
}

/// The callbacks of a plugin whose disk an allocator keeps.
pub(crate) const CALLBACKS: &[&str] = &[
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
];

impl Plugin for Memory {
    fn name(&self) -> &str {
        "memory"
    }

    fn callbacks(&self) -> &'static [&'static str] {
        CALLBACKS
    }

    fn magic_config_key(&self) -> Option<&str> {
        Some("size")
    }

    fn config_help(&self) -> Option<&str> {
        Some(
            "size=<SIZE>  (required) Size of the backing disk\n\
             allocator=sparse|...    Backend allocation strategy, with ,max=<SIZE> at most so\n                        much memory\n\
             load=<FILE>             What the disk holds at first, and its size unless that is given",
        )
    }

    fn config(&mut self, key: &str, value: Value<'_>) -> Result<()> {
        match key {
            "size" => self.size = Some(value.size()?),
            "allocator" => self.strategy = Strategy::parse(value)?,
            "load" => self.load = Some(value.realpath()?),
            _ => return Err(Error::unknown_parameter(key)),
        }
        Ok(())
    }

    fn config_complete(&mut self) -> Result<()> {
        match (self.size, &self.load) {
            (Some(_), _) | (None, Some(_)) => Ok(()),
            (None, None) => Err(Error::msg("you must specify size=<SIZE> on the command line")),
        }
    }

    fn get_ready(&mut self) -> Result<()> {
        let source = self.load.as_ref().map(load::Source::open).transpose()?;
        let size = self.size.or(source.as_ref().map(|source| source.size)).unwrap_or(0);
        let mut disk = self.strategy.create("memory")?;
        disk.set_size(size)?;
        if let Some(source) = source {
            source.copy(&*disk, size)?;
        }
        self.size = Some(size);
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

    fn can_park(&self) -> bool {
        true
    }

    fn open(&self, _open: &Open<'_>) -> Result<Box<dyn Connection>> {
        match (&self.disk, self.size) {
            (Some(disk), Some(size)) => open(disk, size),
            _ => Err(Error::msg("memory: not ready")),
        }
    }
}

/// A disk that an allocator keeps, for one client.
struct Allocated {
    disk: Arc<dyn Allocator>,
    size: u64,
}

/// A client of `disk`, which has `size` bytes.
///
/// # Errors
/// EIO.
pub(crate) fn open(disk: &Arc<dyn Allocator>, size: u64) -> Result<Box<dyn Connection>> {
    if log::verbose() {
        log::debug(&format!("allocator: {} bytes of memory are in use", disk.used()?));
    }
    Ok(Box::new(Simple(Allocated { disk: Arc::clone(disk), size })))
}

impl Disk for Allocated {
    const ABILITIES: Abilities = Abilities::ALL;

    fn size(&self) -> u64 {
        self.size
    }

    fn block_size(&self) -> BlockSize {
        BlockSize { minimum: 1, preferred: self.disk.preferred_block_size(), maximum: u32::MAX }
    }

    fn read(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.disk.read(buf, offset)
    }

    fn write(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.disk.write(buf, offset)
    }

    fn zero(&self, count: u64, offset: u64) -> Result<()> {
        self.disk.zero(count, offset)
    }

    fn extents(&self, count: u64, offset: u64, one: bool, extents: &mut Extents) -> Result<()> {
        self.disk.extents(count, offset, one, extents)
    }

    fn blocking(&self) -> Blocking {
        // Compressed pages take time and locks.
        let never = self.disk.as_file().is_some() && !self.disk.may_wait();
        if never { Blocking::Never } else { Blocking::Short }
    }

    fn file(&self) -> Option<BorrowedFd<'_>> {
        self.disk.as_file()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_dir::TestDir;
    use nbdkit_api::Flags;

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
    fn a_file_is_loaded_with_its_holes_and_without_its_zeroes() {
        let dir = TestDir::new();
        let path = dir.join("file").display().to_string();
        let file = std::fs::File::create(&path).unwrap();
        let mut expected = vec![0; 3_000_001];
        for (from, to, byte) in [(70_000, 1_100_000, 5), (1_200_000, 1_300_000, 0)] {
            expected[from..to].fill(byte);
            std::os::unix::fs::FileExt::write_all_at(&file, &expected[from..to], from as u64)
                .unwrap();
        }
        file.set_len(3_000_001).unwrap();
        for allocator in ["sparse", "malloc", "zstd", "sparse,max=2M"] {
            for size in ["3000001", "4M", ""] {
                let mut parameters = vec![("load", &*path), ("allocator", allocator)];
                parameters.extend((!size.is_empty()).then_some(("size", size)));
                let disk = open(&parameters).unwrap();
                let length = disk.size().unwrap() as usize;
                let mut found = vec![1; length];
                disk.pread(&mut found, 0).unwrap();
                expected.resize(length, 0);
                assert!(found == expected, "{allocator} {size}");
                expected.truncate(3_000_001);
            }
        }
        let disk = open(&[("load", &path)]).unwrap();
        let mut extents = Extents::new(0, 3_000_001);
        disk.extents(3_000_001, 0, Flags::empty(), &mut extents).unwrap();
        let ends: Vec<_> = extents.iter().map(|e| (e.end() >> 15, e.kind.bits())).collect();
        assert_eq!(ends, [(2, 3), (34, 0), (91, 3)]);
    }

    #[test]
    fn what_cannot_be_loaded_stops_the_start() {
        let dir = TestDir::new();
        let path = dir.join("file").display().to_string();
        std::fs::write(&path, [1; 5000]).unwrap();
        let why = |parameters: &[(&str, &str)]| open(parameters).err().unwrap();
        let larger = format!("load={path}: the file has 5000 bytes, and the disk 4999");
        assert_eq!(why(&[("load", &path), ("size", "4999")]).message(), larger);
        let directory = dir.path().display().to_string();
        assert!(why(&[("load", &directory)]).message().contains("not regular or block device"));
        assert!(why(&[("load", &format!("{path}x"))]).message().contains("No such file"));
        let full = why(&[("load", &path), ("allocator", "sparse,max=4K")]);
        assert_eq!(full.errno(), nbdkit_api::Errno::ENOSPC);
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
