//! nbdkit-split-plugin(1): concatenates files and block devices into one disk.
//!
//! For each client all of them are opened anew. They must not be resized while they are served.

use std::sync::Arc;

use nbdkit_api::paths::{self, Declared, Opened};
use nbdkit_api::{BlockSize, Connection, Error, Needs, Open, Plugin, Result, ResultExt, Value};

use crate::file::disk::file_size;
use crate::files::Files;
use crate::regions::{self, Disk, Regions};

/// The plugin: the files in their order.
#[derive(Debug, Default)]
pub struct Split {
    files: Vec<Declared>,
}

impl Plugin for Split {
    fn name(&self) -> &str {
        "split"
    }

    fn callbacks(&self) -> &'static [&'static str] {
        regions::CALLBACKS
    }

    fn magic_config_key(&self) -> Option<&str> {
        Some("file")
    }

    fn config_help(&self) -> Option<&str> {
        Some("file=<FILENAME>  (required) File(s) to serve.")
    }

    fn config(&mut self, key: &str, value: Value<'_>) -> Result<()> {
        match key {
            "file" => self.files.push(Declared::file(value.realpath()?)),
            _ => return Err(Error::unknown_parameter(key)),
        }
        Ok(())
    }

    fn config_complete(&mut self) -> Result<()> {
        if self.files.is_empty() {
            return Err(Error::msg(
                "you must supply at least one [file=]<FILENAME> parameter \
                 after the plugin name on the command line",
            ));
        }
        Ok(())
    }

    fn needs(&self, readonly: bool) -> Needs {
        let needs = Needs::nothing();
        let declared = self.files.iter().cloned();
        declared.fold(needs, |needs, file| needs.declare(file.read_only(readonly)))
    }

    fn can_park(&self) -> bool {
        true
    }

    fn open(&self, open: &Open<'_>) -> Result<Box<dyn Connection>> {
        let files = self.files.iter().map(|file| paths::open(file, None, open.readonly));
        let files = files.collect::<Result<Vec<_>>>()?;
        let mut regions = Regions::default();
        for (number, Opened { file, is_block_device, name, .. }) in files.iter().enumerate() {
            let size = file_size(file, *is_block_device).or_error(|| format!("size: {name}"))?;
            regions.push_file(number, size)?;
        }
        let (regions, block_size) = (Arc::new(regions), BlockSize::default());
        Ok(Box::new(Disk { regions, files: Files::open(files), block_size }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_dir::TestDir;
    use nbdkit_api::{ExtentKind, Extents, Flags};

    fn open(dir: &TestDir, readonly: bool) -> Box<dyn Connection> {
        let mut plugin = Split::default();
        std::fs::write(dir.join("a"), [1; 10_000]).unwrap();
        std::fs::write(dir.join("b"), "").unwrap();
        std::fs::File::create(dir.join("c")).unwrap().set_len(8192).unwrap();
        std::fs::write(dir.join("d"), [3; 5]).unwrap();
        for name in ["a", "b", "c", "d"] {
            plugin.config("file", Value::new(&dir.join(name))).unwrap();
        }
        plugin.config_complete().unwrap();
        plugin.open(&Open { client: None, readonly, export: "", tls: false }).unwrap()
    }

    #[test]
    fn requests_cross_the_bounds_of_files() {
        let dir = TestDir::new();
        let disk = open(&dir, false);
        assert_eq!(disk.size().unwrap(), 18_197);
        disk.pwrite(&[9; 8196], 9_998, Flags::empty()).unwrap();
        let mut buf = vec![0; 18_197];
        disk.pread(&mut buf, 0).unwrap();
        let mut expected = vec![1; 18_197];
        expected[9_998..18_194].fill(9);
        expected[18_194..].fill(3);
        assert!(buf == expected);
        assert_eq!(std::fs::metadata(dir.join("a")).unwrap().len(), 10_000);
        assert_eq!(std::fs::read(dir.join("d")).unwrap(), [9, 9, 3, 3, 3]);
        disk.flush().unwrap();
        disk.cache(18_197, 0).unwrap();
    }

    #[test]
    fn extents_are_those_of_the_files_at_their_places() {
        let dir = TestDir::new();
        let disk = open(&dir, true);
        let mut extents = Extents::new(100, 18_197);
        disk.extents(18_097, 100, Flags::empty(), &mut extents).unwrap();
        let found: Vec<_> = extents.iter().map(|e| (e.offset, e.length, e.kind)).collect();
        assert_eq!(
            found,
            [
                (100, 9_900, ExtentKind::DATA),
                (10_000, 8_192, ExtentKind::SPARSE),
                (18_192, 5, ExtentKind::DATA)
            ]
        );
    }

    #[test]
    fn only_ranges_within_one_file_can_be_moved_without_copying() {
        let dir = TestDir::new();
        let disk = open(&dir, true);
        assert_eq!(disk.file_range(100, 10_000).unwrap().offset, 0);
        assert_eq!(disk.file_range(100, 9_900).unwrap().offset, 9_900);
        assert!(disk.file_range(101, 9_900).is_none());
        assert!(!disk.can_write().unwrap());
    }

    #[test]
    fn a_file_is_required() {
        assert!(Split::default().config_complete().is_err());
    }
}
