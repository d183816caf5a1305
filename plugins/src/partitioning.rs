//! nbdkit-partitioning-plugin(1): files, each of which is a partition, as one disk with a partition
//! table.
//!
//! The table is made at the start, from the sizes that the files have then. For each client all of
//! them are opened anew.

#![forbid(unsafe_code)]

mod layout;

use std::path::Path;
use std::sync::Arc;

use nbdkit_api::partitions::guid;
use nbdkit_api::paths::{self, Declared};
use nbdkit_api::{BlockSize, Connection, Error, Needs, Open, Plugin, Result, ResultExt, Value};

use crate::file::disk::file_size;
use crate::files::Files;
use crate::regions::{self, Disk, Regions};
use layout::{LINUX_GUID, LINUX_ID, MAX_ALIGNMENT, Partition, SECTOR, Table};

/// Most files: a client has all of them open, and a worker at most 1024 descriptors.
const MOST_FILES: usize = 900;

/// The plugin: the files in their order, and what the next ones will be.
#[derive(Debug)]
pub struct Partitioning {
    files: Vec<Declared>,
    partitions: Vec<Partition>,
    table: Option<Table>,
    alignment: u64,
    mbr_id: u8,
    type_guid: [u8; 16],
    regions: Arc<Regions>,
}

impl Default for Partitioning {
    fn default() -> Partitioning {
        Partitioning {
            files: Vec::new(),
            partitions: Vec::new(),
            table: None,
            alignment: MAX_ALIGNMENT,
            mbr_id: LINUX_ID,
            type_guid: LINUX_GUID,
            regions: Arc::default(),
        }
    }
}

impl Partitioning {
    fn add(&mut self, value: Value<'_>) -> Result<()> {
        let given = value.as_path().display();
        if self.files.len() == MOST_FILES {
            return Err(Error::msg(format!("there may be {MOST_FILES} files at most")));
        }
        let path = std::fs::canonicalize(value.as_os_str()).or_error(|| given.to_string())?;
        let declared = Declared::file(path);
        let opened = paths::open(&declared, None, true)?;
        let length = file_size(&opened.file, opened.is_block_device)
            .or_error(|| format!("size: {given}"))?;
        if length == 0 {
            return Err(Error::msg(format!("{given}: zero length partitions are not allowed")));
        }
        // Clients are not told where the file is.
        let name = value.as_path().file_name().and_then(|name| name.to_str());
        self.partitions.push(Partition {
            length,
            alignment: self.alignment,
            mbr_id: self.mbr_id,
            type_guid: self.type_guid,
            unique_guid: unique_guid(&declared.path, self.files.len()),
            name: name.unwrap_or_default().to_owned(),
        });
        self.files.push(declared);
        Ok(())
    }
}

impl Plugin for Partitioning {
    fn name(&self) -> &str {
        "partitioning"
    }

    fn callbacks(&self) -> &'static [&'static str] {
        regions::CALLBACKS
    }

    fn magic_config_key(&self) -> Option<&str> {
        Some("file")
    }

    fn config_help(&self) -> Option<&str> {
        Some(
            "file=<FILENAME>  (required) File(s) containing partitions\n\
             partition-type=mbr|gpt      Partition type\n\
             alignment=<N>               Alignment of the following files\n\
             mbr-id=<0xN>|default        MBR type byte of the following files\n\
             type-guid=<GUID>|default    GPT type GUID of the following files",
        )
    }

    fn config(&mut self, key: &str, value: Value<'_>) -> Result<()> {
        let is = |word| value.as_os_str().eq_ignore_ascii_case(word);
        match key {
            "file" => self.add(value)?,
            "partition-type" if is("mbr") => self.table = Some(Table::Mbr),
            "partition-type" if is("gpt") => self.table = Some(Table::Gpt),
            "partition-type" => {
                let given = value.str()?;
                return Err(Error::msg(format!("unknown partition-type: {given}")));
            }
            "alignment" => self.alignment = alignment(value.size()?)?,
            "mbr-id" if is("default") => self.mbr_id = LINUX_ID,
            "mbr-id" => self.mbr_id = value.integer(key)?,
            "type-guid" if is("default") => self.type_guid = LINUX_GUID,
            "type-guid" => {
                let text = value.str()?;
                self.type_guid = guid(text)
                    .ok_or_else(|| Error::msg(format!("could not validate GUID: {text}")))?;
            }
            _ => return Err(Error::unknown_parameter(key)),
        }
        Ok(())
    }

    fn config_complete(&mut self) -> Result<()> {
        if self.files.is_empty() {
            return Err(Error::msg("at least one file= parameter must be supplied"));
        }
        self.regions = Arc::new(layout::regions(&self.partitions, self.table)?);
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
        let files = Files::open(files.collect::<Result<_>>()?);
        let (regions, block_size) = (Arc::clone(&self.regions), BlockSize::default());
        Ok(Box::new(Disk { regions, files, block_size }))
    }
}

/// What an alignment must be.
fn alignment(bytes: u64) -> Result<u64> {
    let why = if !(SECTOR..=MAX_ALIGNMENT).contains(&bytes) {
        format!("should be >= sector size {SECTOR} and <= maximum alignment {MAX_ALIGNMENT}")
    } else if !bytes.is_multiple_of(SECTOR) {
        format!("should be a multiple of sector size {SECTOR}")
    } else if !bytes.is_power_of_two() {
        "should be a power of two".to_owned()
    } else {
        return Ok(bytes);
    };
    Err(Error::msg(format!("partition alignment {bytes} {why}")))
}

/// The GUID of the partition that is file `number`. It is made of the file's name, so that it is
/// the same when the server has started again. RFC 9562, section 5.8.
fn unique_guid(path: &Path, number: usize) -> [u8; 16] {
    // FNV-1a of 128 bits.
    let start = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d_u128;
    let text = [path.as_os_str().as_encoded_bytes(), b"\0", &number.to_le_bytes()].concat();
    let hash = text.iter().fold(start, |hash, byte| {
        (hash ^ u128::from(*byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b)
    });
    let mut bytes = hash.to_be_bytes();
    // Version 8; the third group is little-endian.
    bytes[7] = bytes[7] & 0x0f | 0x80;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_dir::TestDir;
    use nbdkit_api::{Errno, Flags};

    fn configured(parameters: &[(&str, &str)]) -> Result<Partitioning> {
        let mut plugin = Partitioning::default();
        for (key, value) in parameters {
            plugin.config(key, Value::new(*value))?;
        }
        plugin.config_complete()?;
        Ok(plugin)
    }

    #[test]
    fn what_makes_no_sense_is_one_line() {
        let dir = TestDir::new();
        std::fs::write(dir.join("a"), [1; 1000]).unwrap();
        std::fs::write(dir.join("empty"), "").unwrap();
        let file = dir.join("a").display().to_string();
        let of = |name: &str| dir.join(name).display().to_string();
        let range = "should be >= sector size 512 and <= maximum alignment 1048576";
        for (key, value, expected) in [
            ("alignment", "511", format!("partition alignment 511 {range}")),
            ("alignment", "2M", format!("partition alignment 2097152 {range}")),
            (
                "alignment",
                "513",
                "partition alignment 513 should be a multiple of sector size 512".to_owned(),
            ),
            ("alignment", "3K", "partition alignment 3072 should be a power of two".to_owned()),
            ("partition-type", "apm", "unknown partition-type: apm".to_owned()),
            ("type-guid", "x", "could not validate GUID: x".to_owned()),
            (
                "file",
                &of("empty"),
                format!("{}: zero length partitions are not allowed", of("empty")),
            ),
            ("file", &of("none"), format!("{}: No such file or directory", of("none"))),
            ("foo", "1", "unknown parameter 'foo'".to_owned()),
        ] {
            let why = configured(&[("file", &file), (key, value)]).unwrap_err();
            assert_eq!(why.message(), expected, "{key}={value}");
        }
        for (key, value) in [("mbr-id", "0x100"), ("mbr-id", "x"), ("file", &of(""))] {
            assert!(configured(&[("file", &file), (key, value)]).is_err(), "{key}={value}");
        }
        let none = configured(&[]).unwrap_err();
        assert_eq!(none.message(), "at least one file= parameter must be supplied");
        let many = vec![("file", &*file); MOST_FILES + 1];
        assert_eq!(configured(&many[1..]).unwrap().files.len(), MOST_FILES);
        let why = configured(&many).unwrap_err();
        assert_eq!(why.message(), "there may be 900 files at most");
    }

    #[test]
    fn guids_tell_partitions_apart_and_stay_the_same() {
        let of = |path: &str, number| unique_guid(path.as_ref(), number);
        assert_eq!(of("/a", 1), of("/a", 1));
        assert!(of("/a", 1) != of("/a", 2) && of("/a", 1) != of("/b", 1));
        assert_eq!((of("/a", 1)[7] >> 4, of("/a", 1)[8] >> 6), (8, 2));
    }

    #[test]
    fn only_files_can_be_changed() {
        let dir = TestDir::new();
        std::fs::write(dir.join("a"), [1; 1000]).unwrap();
        let file = dir.join("a").display().to_string();
        let plugin = configured(&[("file", &file), ("alignment", "512"), ("file", &file)]).unwrap();
        let disk =
            plugin.open(&Open { client: None, readonly: false, export: "", tls: false }).unwrap();
        let start = 1 << 20;
        assert_eq!(disk.size().unwrap(), start + 2048);
        let mut table = [0; 512];
        disk.pread(&mut table, 0).unwrap();
        disk.pwrite(&table, 0, Flags::empty()).unwrap();
        table[511] ^= 1;
        let why = |buf: &[u8], offset| disk.pwrite(buf, offset, Flags::empty()).unwrap_err();
        let changed = why(&table, 0);
        assert_eq!(changed.message(), "attempt to change partition table of virtual disk");
        assert_eq!(changed.errno(), Errno::EIO);
        let mut across = [7; 1024];
        assert_eq!(why(&across, start).message(), "write non-zeroes to padding region");
        // Nothing was written, as a part could not be.
        assert_eq!(std::fs::read(dir.join("a")).unwrap(), [1; 1000]);
        across[1000..].fill(0);
        disk.pwrite(&across, start, Flags::empty()).unwrap();
        disk.flush().unwrap();
        assert_eq!(std::fs::read(dir.join("a")).unwrap(), [7; 1000]);
        let range = disk.file_range(1000, start).unwrap();
        assert_eq!(range.offset, 0);
        assert!(disk.write_range(1000, start).is_some());
        assert!(disk.write_range(1001, start).is_none() && disk.write_range(512, 0).is_none());
    }
}
