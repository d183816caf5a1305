//! The disk: a partition table, a FAT32 file system, and where everything is on it. "Microsoft FAT
//! Specification", 2005. Numbers are little-endian.

#![forbid(unsafe_code)]

use std::sync::Arc;

use nbdkit_api::partitions::{MbrEntry, mbr};
use nbdkit_api::{Error, Result};

use super::names::long_entries;
use super::tree::{Times, Tree, What};
use crate::regions::{Make, Regions};

const SECTOR: u64 = 512;
/// Where the partition begins, in sectors, and its type: FAT32 by numbers of sectors.
const START: u64 = 2048;
const TYPE_FAT32: u8 = 0x0c;
/// Sectors of a cluster, and of what is before the first FAT.
const CLUSTER: u64 = 32;
const RESERVED: u64 = 32;
const CLUSTER_BYTES: u64 = CLUSTER * SECTOR;
/// Where the sector with the number of free clusters is, and the copy of the first two sectors.
const INFO: u64 = 1;
const BACKUP: u64 = 6;
/// The number of the first cluster.
const FIRST: u64 = 2;
/// Bytes of a FAT's entry, and what is in those that no cluster belongs to.
const FAT_ENTRY: u64 = 4;
const MEDIA: u32 = 0x0fff_fff8;
const END_OF_CHAIN: u32 = 0x0fff_ffff;
const DIRECTORY: u8 = 0x10;
const ARCHIVE: u8 = 0x20;
const VOLUME: u8 = 0x08;
/// The system that has made the file system, as those believe that read it.
const SYSTEM: &[u8; 8] = b"MSWIN4.1";
const SYSTEM_AT: usize = 3;
/// The number by which systems tell disks apart: nbdkit's.
const VOLUME_ID: u32 = 0x0102_0304;

/// The label of the volume, filled with spaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Label([u8; 11]);

impl Default for Label {
    fn default() -> Label {
        Label(*b"NBDKITFLOPY")
    }
}

impl Label {
    /// # Errors
    /// It is too long, or FAT does not permit a character.
    pub(super) fn parse(text: &[u8]) -> Result<Label> {
        let why = if text.len() > 11 {
            "it may have at most 11 characters"
        } else if text
            .iter()
            .any(|c| !(b' '..=b'~').contains(c) || b"\"*+,./:;<=>?[\\]|".contains(c))
            || text.starts_with(b" ")
        {
            "it has a character that a FAT file system cannot hold"
        } else {
            let mut label = [b' '; 11];
            label[..text.len()].copy_from_slice(text);
            return Ok(Label(label));
        };
        Err(Error::msg(format!("label={}: {why}", String::from_utf8_lossy(text))))
    }

    fn is_empty(self) -> bool {
        self.0 == [b' '; 11]
    }
}

/// Clusters one after the other.
#[derive(Debug, Clone, Copy)]
struct Chain {
    first: u64,
    count: u64,
}

/// The file allocation table, made when it is read: nothing is in more than one run of clusters.
#[derive(Debug)]
struct Fat {
    /// The last cluster of each chain, in ascending order.
    ends: Vec<u32>,
    /// The first cluster that is free.
    free: u64,
}

impl Fat {
    fn entry(&self, cluster: u64) -> u32 {
        match cluster {
            0 => MEDIA,
            1 => END_OF_CHAIN,
            // Fits: the number of clusters is checked.
            _ if cluster < self.free => match self.ends.binary_search(&(cluster as u32)) {
                Ok(_) => END_OF_CHAIN,
                Err(_) => cluster as u32 + 1,
            },
            _ => 0,
        }
    }
}

impl Make for Fat {
    fn fill(&self, buf: &mut [u8], offset: u64) {
        let mut at = offset;
        let mut rest = buf;
        while !rest.is_empty() {
            let bytes = self.entry(at / FAT_ENTRY).to_le_bytes();
            let skip = (at % FAT_ENTRY) as usize;
            let now = (bytes.len() - skip).min(rest.len());
            let (head, tail) = rest.split_at_mut(now);
            head.copy_from_slice(&bytes[skip..skip + now]);
            rest = tail;
            at += now as u64;
        }
    }
}

/// How the file system is divided, in sectors but for `clusters`.
#[derive(Debug, Clone, Copy)]
struct Geometry {
    /// Of all.
    sectors: u64,
    /// Of one of the two FATs.
    fat: u64,
    clusters: u64,
}

impl Geometry {
    /// A file system for `used` clusters, on a disk of `size` bytes if that is given.
    fn new(used: u64, size: Option<u64>) -> Result<Geometry> {
        let fat = |clusters: u64| {
            ((clusters + FIRST) * FAT_ENTRY).div_ceil(SECTOR).next_multiple_of(CLUSTER)
        };
        let least = Geometry {
            sectors: RESERVED + 2 * fat(used) + used * CLUSTER,
            fat: fat(used),
            clusters: used,
        };
        let geometry = match size {
            None => least,
            Some(size) => {
                let sectors = (size / SECTOR).saturating_sub(START);
                let fat = fat(sectors / CLUSTER);
                let clusters = sectors.saturating_sub(RESERVED + 2 * fat) / CLUSTER;
                Geometry { sectors, fat, clusters }
            }
        };
        if geometry.clusters < used {
            return Err(Error::msg("filesystem is larger than \"size\" bytes"));
        }
        if u32::try_from(START + geometry.sectors).is_err() {
            return Err(Error::msg("disk image is too large for the MBR disk format"));
        }
        Ok(geometry)
    }
}

/// The disk with the files and directories of `tree`.
///
/// # Errors
/// They do not fit on a disk of `size` bytes, or the disk is too large.
pub(super) fn regions(tree: &Tree, label: &Label, size: Option<u64>) -> Result<Regions> {
    let mut free = FIRST;
    let mut ends = Vec::new();
    let mut allocate = |bytes: u64| {
        let chain = Chain { first: free, count: bytes.div_ceil(CLUSTER_BYTES) };
        free += chain.count;
        // What does not fit into 32 bits is refused below.
        ends.extend((chain.count > 0).then_some((free - 1) as u32));
        chain
    };
    // Besides its entries a directory has its own and its parent's, and the root the label.
    let slots = tree.directories.iter().map(|directory| directory.slots() as u64 + 2);
    let directories: Vec<Chain> = slots.map(|slots| allocate(slots * 32)).collect();
    let files: Vec<Chain> = tree.files.iter().map(|file| allocate(file.size.into())).collect();
    let used = free - FIRST;
    let geometry = Geometry::new(used, size)?;
    let fat = Arc::new(Fat { ends, free });

    let mut regions = Regions::default();
    let partition = MbrEntry {
        active: false,
        kind: TYPE_FAT32,
        start: START as u32,
        count: geometry.sectors as u32,
    };
    let mut record = mbr(&[partition]);
    // Programs that look at the beginning of the disk, and libnbd's manual, know it by this name.
    put(&mut record, SYSTEM_AT, *SYSTEM);
    regions.push_bytes(record)?;
    regions.pad(START * SECTOR)?;
    let reserved = regions.size();
    let (boot, info) = (boot_sector(geometry, *label), info_sector(geometry.clusters - used, free));
    for at in [0, BACKUP] {
        regions.push_zeroes(reserved + at * SECTOR - regions.size())?;
        regions.push_bytes(boot)?;
        regions.push_zeroes((INFO - 1) * SECTOR)?;
        regions.push_bytes(info)?;
    }
    regions.push_zeroes(reserved + RESERVED * SECTOR - regions.size())?;
    for _ in 0..2 {
        regions.push_made(Arc::clone(&fat) as Arc<dyn Make>, geometry.fat * SECTOR)?;
    }
    let data = regions.size();
    let end_of = |chain: &Chain| data + (chain.first - FIRST + chain.count) * CLUSTER_BYTES;
    for (number, chain) in directories.iter().enumerate() {
        regions.push_bytes(directory_bytes(tree, number, &directories, &files, *label))?;
        regions.pad(SECTOR)?;
        regions.push_zeroes(end_of(chain) - regions.size())?;
    }
    for (number, chain) in files.iter().enumerate() {
        regions.push_file(number, tree.files[number].size.into())?;
        regions.pad(SECTOR)?;
        regions.push_zeroes(end_of(chain) - regions.size())?;
    }
    let end = size.unwrap_or((START + geometry.sectors) * SECTOR);
    regions.push_zeroes(end - regions.size())?;
    Ok(regions)
}

/// Puts bytes at an offset.
fn put<const N: usize>(sector: &mut [u8], at: usize, bytes: [u8; N]) {
    sector[at..at + N].copy_from_slice(&bytes);
}

/// Section 3. Every number fits: that of the sectors is less than 2^32.
fn boot_sector(geometry: Geometry, label: Label) -> [u8; SECTOR as usize] {
    let mut sector = [0; SECTOR as usize];
    put(&mut sector, 0, [0xeb, 0x58, 0x90]);
    put(&mut sector, SYSTEM_AT, *SYSTEM);
    put(&mut sector, 11, (SECTOR as u16).to_le_bytes());
    sector[13] = CLUSTER as u8;
    put(&mut sector, 14, (RESERVED as u16).to_le_bytes());
    sector[16] = 2;
    sector[21] = MEDIA as u8;
    // What a BIOS makes of a large disk: 63 sectors and 255 heads.
    put(&mut sector, 24, 63_u16.to_le_bytes());
    put(&mut sector, 26, 255_u16.to_le_bytes());
    put(&mut sector, 28, (START as u32).to_le_bytes());
    put(&mut sector, 32, (geometry.sectors as u32).to_le_bytes());
    put(&mut sector, 36, (geometry.fat as u32).to_le_bytes());
    put(&mut sector, 44, (FIRST as u32).to_le_bytes());
    put(&mut sector, 48, (INFO as u16).to_le_bytes());
    put(&mut sector, 50, (BACKUP as u16).to_le_bytes());
    // A hard disk, whose next three fields are there.
    sector[64] = 0x80;
    sector[66] = 0x29;
    put(&mut sector, 67, VOLUME_ID.to_le_bytes());
    put(&mut sector, 71, if label.is_empty() { *b"NO NAME    " } else { label.0 });
    put(&mut sector, 82, *b"FAT32   ");
    put(&mut sector, 510, [0x55, 0xaa]);
    sector
}

/// Section 5.
fn info_sector(count: u64, next: u64) -> [u8; SECTOR as usize] {
    let mut sector = [0; SECTOR as usize];
    put(&mut sector, 0, *b"RRaA");
    put(&mut sector, 484, *b"rrAa");
    put(&mut sector, 488, (count as u32).to_le_bytes());
    let next = if count == 0 { u32::MAX } else { next as u32 };
    put(&mut sector, 492, next.to_le_bytes());
    put(&mut sector, 510, [0x55, 0xaa]);
    sector
}

/// The entries of a directory. Section 6.
fn directory_bytes(
    tree: &Tree,
    number: usize,
    directories: &[Chain],
    files: &[Chain],
    label: Label,
) -> Vec<u8> {
    let directory = &tree.directories[number];
    let mut bytes = Vec::new();
    if number == 0 {
        if !label.is_empty() {
            bytes.extend(entry(&label.0, VOLUME, directory.times, 0, 0));
        }
    } else {
        let parent = &tree.directories[directory.parent];
        // The root is called 0 here.
        let above = if directory.parent == 0 { 0 } else { directories[directory.parent].first };
        let own = directories[number].first;
        bytes.extend(entry(b".          ", DIRECTORY, directory.times, own, 0));
        bytes.extend(entry(b"..         ", DIRECTORY, parent.times, above, 0));
    }
    for it in &directory.entries {
        if !it.is_short() {
            bytes.extend(long_entries(&it.name, &it.short).concat());
        }
        bytes.extend(match it.what {
            What::Directory(number) => {
                entry(&it.short, DIRECTORY, it.times, directories[number].first, 0)
            }
            What::File(number) => {
                let (chain, size) = (files[number], tree.files[number].size);
                // An empty file has no cluster.
                let first = if chain.count == 0 { 0 } else { chain.first };
                entry(&it.short, ARCHIVE, it.times, first, size)
            }
        });
    }
    bytes
}

fn entry(short: &[u8; 11], attributes: u8, times: Times, cluster: u64, size: u32) -> [u8; 32] {
    let mut entry = [0; 32];
    put(&mut entry, 0, *short);
    entry[11] = attributes;
    let created = stamp(times.changed);
    put(&mut entry, 14, created.1.to_le_bytes());
    put(&mut entry, 16, created.0.to_le_bytes());
    put(&mut entry, 18, stamp(times.accessed).0.to_le_bytes());
    put(&mut entry, 20, ((cluster >> 16) as u16).to_le_bytes());
    let written = stamp(times.written);
    put(&mut entry, 22, written.1.to_le_bytes());
    put(&mut entry, 24, written.0.to_le_bytes());
    put(&mut entry, 26, (cluster as u16).to_le_bytes());
    put(&mut entry, 28, size.to_le_bytes());
    entry
}

/// Date and time in UTC. What is before 1980 or after 2107 is the first or the last that there is.
pub(super) fn stamp(seconds: i64) -> (u16, u16) {
    /// 1980-01-01 00:00:00 and 2107-12-31 23:59:58.
    const RANGE: (i64, i64) = (315_532_800, 4_354_819_198);
    let seconds = seconds.clamp(RANGE.0, RANGE.1);
    let (mut days, second) = (seconds / 86_400, seconds % 86_400);
    let is_leap = |year: i64| year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let mut year = 1970;
    while days >= 365 + i64::from(is_leap(year)) {
        days -= 365 + i64::from(is_leap(year));
        year += 1;
    }
    let february = 28 + i64::from(is_leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    let date = ((year - 1980) << 9) | (month << 5) | (days + 1);
    let (hour, minute) = (second / 3600, second / 60 % 60);
    let time = (hour << 11) | (minute << 5) | (second % 60 / 2);
    // Both are within 16 bits.
    (date as u16, time as u16)
}
