//! Partition tables: MBR with extended and logical partitions, and GPT. UEFI specification, chapter
//! 5. What is read is hostile; memory is a sector at most, and every chain has an end.

#![forbid(unsafe_code)]

use std::ops::Range;

use nbdkit_api::partitions::{
    GPT_ENTRIES, GPT_ENTRY_SIZE, GPT_HEADER_SIZE, GPT_SIGNATURE, MBR_PRIMARIES, MBR_SIZE, MbrEntry,
    TYPE_EMPTY, TYPE_PROTECTIVE, mbr_entries, u32_at, u64_at,
};
use nbdkit_api::{Errno, Error, Result};

/// The size of a sector.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Sector {
    /// 512 bytes.
    #[default]
    Bytes512,
    /// 4096 bytes.
    Bytes4096,
}

impl Sector {
    /// The sector of so many bytes.
    pub fn of_size(bytes: u64) -> Option<Sector> {
        match bytes {
            512 => Some(Sector::Bytes512),
            4096 => Some(Sector::Bytes4096),
            _ => None,
        }
    }

    /// In bytes.
    pub fn size(self) -> u64 {
        match self {
            Sector::Bytes512 => 512,
            Sector::Bytes4096 => 4096,
        }
    }

    /// The other one.
    fn other(self) -> Sector {
        match self {
            Sector::Bytes512 => Sector::Bytes4096,
            Sector::Bytes4096 => Sector::Bytes512,
        }
    }
}

/// A disk whose table is looked at.
pub struct Table<'a> {
    /// Fills a buffer from an offset, within the disk.
    pub read: &'a dyn Fn(&mut [u8], u64) -> Result<()>,
    /// Bytes of the disk.
    pub size: u64,
    /// The unit of all numbers in the table.
    pub sector: Sector,
}

fn error(why: impl Into<String>) -> Error {
    Error::new(Errno::EINVAL, why)
}

fn outside() -> Error {
    error("partition is outside the disk")
}

impl Table<'_> {
    /// The bytes of partition `number`, counted from 1, which are within the disk.
    ///
    /// # Errors
    /// EINVAL: there is no such partition, or the table makes no sense. Those of reading.
    pub fn find(&self, number: u32) -> Result<Range<u64>> {
        let sector = self.sector.size();
        if self.size < 2 * sector {
            return Err(error("disk is too small to be a partitioned disk"));
        }
        let mut header = [0; GPT_HEADER_SIZE];
        (self.read)(&mut header, sector)?;
        if header.starts_with(GPT_SIGNATURE) {
            return self.gpt(&header, number);
        }
        let Some(entries) = self.entries(0)? else {
            return Err(error("disk does not contain MBR or GPT partition table signature"));
        };
        if entries.iter().any(|entry| entry.kind == TYPE_PROTECTIVE) {
            let other = self.sector.other().size();
            return Err(error(format!(
                "the MBR is that of a GPT, but there is no GPT at sector 1: try \
                 partition-sectorsize={other}"
            )));
        }
        if number as usize > MBR_PRIMARIES {
            return self.logical(&entries, number);
        }
        let entry = entries[number as usize - 1];
        if !entry.is_used() || entry.is_extended() {
            return Err(error(format!("MBR partition {number} not found")));
        }
        self.sectors(entry.start.into(), entry.count.into())
    }

    /// The entries of the MBR or EBR at `offset`, bytes; `None` if there is none.
    fn entries(&self, offset: u64) -> Result<Option<[MbrEntry; MBR_PRIMARIES]>> {
        let mut record = [0; MBR_SIZE];
        (self.read)(&mut record, offset)?;
        Ok(mbr_entries(&record))
    }

    /// A logical partition. Each is in an EBR, whose second entry leads to the next EBR.
    fn logical(&self, primaries: &[MbrEntry], number: u32) -> Result<Range<u64>> {
        let Some(extended) = primaries.iter().find(|entry| entry.is_extended()) else {
            return Err(error(
                "MBR logical partition selected, but there is no extended partition in the \
                 partition table",
            ));
        };
        let sector = self.sector.size();
        let base = u64::from(extended.start);
        let mut at = base;
        for found in MBR_PRIMARIES as u32 + 1.. {
            let bytes = self.sectors(at, 1)?.start;
            let entries = self
                .entries(bytes)?
                .ok_or_else(|| error(format!("invalid EBR at {bytes}: it has no signature")))?;
            let [entry, next, ..] = entries;
            if found == number && entry.is_used() {
                return self.sectors(at + u64::from(entry.start), entry.count.into());
            }
            if found == number || next.start == 0 || next.kind == TYPE_EMPTY {
                break;
            }
            let following = base + u64::from(next.start);
            // So that a chain cannot be a circle.
            if following <= at {
                let (next, current) = (following * sector, at * sector);
                return Err(error(format!(
                    "invalid EBR chain: next EBR {next} <= current EBR {current}"
                )));
            }
            at = following;
        }
        Err(error(format!("MBR partition {number} not found")))
    }

    fn gpt(&self, header: &[u8; GPT_HEADER_SIZE], number: u32) -> Result<Range<u64>> {
        let sector = self.sector.size();
        let (entries, count) = (u64_at(header, 72), u32_at(header, 80));
        let entry_size = u32_at(header, 84);
        if entries != GPT_ENTRIES {
            return Err(error(format!("GPT partition entries begin at sector {entries}, not 2")));
        }
        if (entry_size as usize) < GPT_ENTRY_SIZE {
            return Err(error("GPT partition entry size is < 128 bytes"));
        }
        if !sector.is_multiple_of(entry_size.into()) {
            return Err(error(format!(
                "GPT partition entry size ({entry_size}) does not divide the sector size"
            )));
        }
        let first = GPT_ENTRIES * sector;
        if self.size < first || (self.size - first) / u64::from(entry_size) < u64::from(count) {
            return Err(error("GPT partition table is too large for this disk"));
        }
        if number > count {
            return Err(error("GPT partition number out of range"));
        }
        let mut entry = [0; GPT_ENTRY_SIZE];
        (self.read)(&mut entry, first + u64::from(number - 1) * u64::from(entry_size))?;
        if entry[..16].iter().all(|byte| *byte == 0) {
            return Err(error(format!("GPT partition {number} not found")));
        }
        let (start, last) = (u64_at(&entry, 32), u64_at(&entry, 40));
        let count = last.checked_sub(start).and_then(|n| n.checked_add(1)).ok_or_else(outside)?;
        self.sectors(start, count)
    }

    /// Sectors in bytes.
    fn sectors(&self, start: u64, count: u64) -> Result<Range<u64>> {
        let bytes = |sectors: u64| sectors.checked_mul(self.sector.size()).ok_or_else(outside);
        let (start, count) = (bytes(start)?, bytes(count)?);
        let end = start.checked_add(count).filter(|end| *end <= self.size);
        Ok(start..end.ok_or_else(outside)?)
    }
}
