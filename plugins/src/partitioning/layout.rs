//! Where the partitions are on the disk, and the tables that say so. UEFI specification, chapter 5.

#![forbid(unsafe_code)]

use nbdkit_api::partitions::{
    GPT_ENTRIES, GPT_ENTRY_SIZE, GptEntry, GptHeader, MBR_PRIMARIES, MbrEntry, TYPE_EXTENDED, mbr,
    protective,
};
pub(super) use nbdkit_api::partitions::{GUID_LINUX as LINUX_GUID, SECTOR};
use nbdkit_api::{Error, Result};

use crate::regions::Regions;

/// The largest alignment, bytes, and the default.
pub(super) const MAX_ALIGNMENT: u64 = 1 << 20;
/// A file system of Linux, in an MBR.
pub(super) const LINUX_ID: u8 = 0x83;

/// Most bytes of all files that nbdkit puts on a disk with an MBR: what 32-bit numbers of sectors
/// can express, without a table and some padding.
const MBR_MOST: u64 = (1 << 32) * SECTOR - 5 * MAX_ALIGNMENT - SECTOR;

/// The header that nbdkit writes is longer than the specification's by a reserved number.
const HEADER_SIZE: usize = 96;
/// Entries come in so many at least, and in a multiple of it: 32 sectors.
const ENTRIES_STEP: usize = 128;
/// Attribute of a partition: an old BIOS boots from it.
const LEGACY_BOOTABLE: u64 = 1 << 2;

/// What kind of table there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Table {
    Mbr,
    Gpt,
}

/// A file.
#[derive(Debug, Clone)]
pub(super) struct Partition {
    /// Bytes, not 0.
    pub(super) length: u64,
    /// Bytes, a power of two from [`SECTOR`] to [`MAX_ALIGNMENT`].
    pub(super) alignment: u64,
    pub(super) mbr_id: u8,
    pub(super) type_guid: [u8; 16],
    pub(super) unique_guid: [u8; 16],
    /// Empty, or what the partition is called.
    pub(super) name: String,
}

/// A partition's sectors.
#[derive(Debug, Clone, Copy)]
struct Span {
    start: u64,
    count: u64,
}

impl Span {
    fn end(self) -> u64 {
        self.start + self.count
    }
}

/// The disk of these partitions. By default there is an MBR if it can hold them without logical
/// partitions.
///
/// # Errors
/// The disk is too large for a table of this kind.
pub(super) fn regions(partitions: &[Partition], table: Option<Table>) -> Result<Regions> {
    let total = partitions.iter().try_fold(0_u64, |sum, it| sum.checked_add(it.length));
    // Alignments are small and files few: the sum with all padding does not overflow.
    let total = total.filter(|total| i64::try_from(*total).is_ok());
    let total = total.ok_or_else(|| Error::msg("the files are too large together"))?;
    let fits = total <= MBR_MOST;
    match table {
        None if partitions.len() > MBR_PRIMARIES || !fits => gpt_disk(partitions),
        Some(Table::Gpt) => gpt_disk(partitions),
        None | Some(Table::Mbr) if fits => mbr_disk(partitions),
        _ => Err(too_large(partitions.len(), total)),
    }
}

fn too_large(count: usize, total: u64) -> Error {
    Error::msg(format!(
        "MBR partition table type supports a maximum virtual disk size of about 2 TB, but you \
         requested {count} partition(s) and a total size of {total} bytes (> {MBR_MOST}).  Try \
         using: partition-type=gpt"
    ))
}

/// Appends a file at its alignment, up to the end of its last sector. `end` is where the disk ends
/// so far, in bytes; so it is afterwards.
fn place(end: &mut u64, partition: &Partition) -> Span {
    let start = end.next_multiple_of(partition.alignment);
    *end = (start + partition.length).next_multiple_of(SECTOR);
    Span { start: start / SECTOR, count: (*end - start) / SECTOR }
}

/// Appends the file that belongs to a span.
fn push(regions: &mut Regions, number: usize, partition: &Partition) -> Result<()> {
    regions.pad(partition.alignment)?;
    regions.push_file(number, partition.length)?;
    regions.pad(SECTOR)
}

/// With more partitions than an MBR has entries, those from the fourth on are logical: each is in
/// an EBR of its own, which stands before it.
fn mbr_disk(partitions: &[Partition]) -> Result<Regions> {
    let primaries = match partitions.len() {
        0..=MBR_PRIMARIES => partitions.len(),
        _ => MBR_PRIMARIES - 1,
    };
    let mut end = SECTOR;
    let mut spans = Vec::with_capacity(partitions.len());
    // First sectors of the EBRs.
    let mut records = Vec::new();
    for (number, partition) in partitions.iter().enumerate() {
        if number >= primaries {
            records.push(end / SECTOR);
            end += SECTOR;
        }
        spans.push(place(&mut end, partition));
    }
    let last = spans.last().map_or(0, |span| span.end());
    if u32::try_from(last).is_err() {
        return Err(too_large(partitions.len(), last * SECTOR));
    }
    // Every number is at most `last`.
    let entry = |active, kind, start: u64, end: u64| MbrEntry {
        active,
        kind,
        start: start as u32,
        count: (end - start) as u32,
    };
    let mut regions = Regions::default();
    let mut entries: Vec<_> = std::iter::zip(&spans[..primaries], partitions)
        .enumerate()
        .map(|(i, (span, it))| entry(i == 0, it.mbr_id, span.start, span.end()))
        .collect();
    let first = records.first().copied();
    entries.extend(first.map(|first| entry(false, TYPE_EXTENDED, first, last)));
    regions.push_bytes(mbr(&entries))?;
    for (number, partition) in partitions.iter().enumerate() {
        if let Some(i) = number.checked_sub(primaries) {
            let (at, base, span) = (records[i], records[0], spans[number]);
            let mut entries =
                vec![entry(false, partition.mbr_id, span.start - at, span.end() - at)];
            if let Some(next) = records.get(i + 1) {
                let (next, end) = (next - base, spans[number + 1].end() - base);
                entries.push(entry(false, TYPE_EXTENDED, next, end));
            }
            regions.push_bytes(mbr(&entries))?;
        }
        push(&mut regions, number, partition)?;
    }
    Ok(regions)
}

fn gpt_disk(partitions: &[Partition]) -> Result<Regions> {
    let count = partitions.len().next_multiple_of(ENTRIES_STEP);
    let table_sectors = (count * GPT_ENTRY_SIZE) as u64 / SECTOR;
    let first_usable = GPT_ENTRIES + table_sectors;
    let mut end = first_usable * SECTOR;
    let spans: Vec<Span> = partitions.iter().map(|it| place(&mut end, it)).collect();
    let usable_end = end / SECTOR;
    let last = usable_end + table_sectors;

    let mut entries = vec![0; count * GPT_ENTRY_SIZE];
    let filled = entries.chunks_exact_mut(GPT_ENTRY_SIZE).zip(partitions).zip(&spans);
    for (number, ((bytes, partition), span)) in filled.enumerate() {
        let entry = GptEntry {
            kind: partition.type_guid,
            unique: partition.unique_guid,
            first: span.start,
            last: span.end() - 1,
            attributes: if number == 0 { LEGACY_BOOTABLE } else { 0 },
            name: &partition.name,
        };
        bytes.copy_from_slice(&entry.encode());
    }
    let (size, last_usable, disk) = (HEADER_SIZE, usable_end - 1, [0; 16]);
    let header = |own: u64, other: u64, at: u64| {
        GptHeader { size, own, other, first_usable, last_usable, disk, entries: at }
            .encode(&entries)
    };
    let backup = header(last, 1, usable_end);
    let mut regions = Regions::default();
    regions.push_bytes(mbr(&[protective(last)]))?;
    regions.push_bytes(header(1, last, GPT_ENTRIES))?;
    regions.push_bytes(entries.clone())?;
    for (number, partition) in partitions.iter().enumerate() {
        push(&mut regions, number, partition)?;
    }
    regions.push_bytes(entries)?;
    regions.push_bytes(backup)?;
    Ok(regions)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partition(length: u64) -> Partition {
        Partition {
            length,
            alignment: MAX_ALIGNMENT,
            mbr_id: LINUX_ID,
            type_guid: LINUX_GUID,
            unique_guid: [1; 16],
            name: "n".repeat(36),
        }
    }

    #[test]
    fn the_kind_follows_from_number_and_size() {
        // A GPT has its table at the end, too, so the disk ends later.
        let is_gpt = |sizes: &[u64]| {
            let partitions: Vec<_> = sizes.iter().map(|size| partition(*size)).collect();
            let size = |table| regions(&partitions, table).map(|it| it.size()).ok();
            let found = size(None);
            assert!([size(Some(Table::Mbr)), size(Some(Table::Gpt))].contains(&found));
            found == size(Some(Table::Gpt))
        };
        assert!(!is_gpt(&[512; 4]) && is_gpt(&[512; 5]));
        assert!(!is_gpt(&[MBR_MOST]) && is_gpt(&[MBR_MOST + 1]));
        assert_eq!(MBR_MOST, 2_199_018_012_160);
    }

    #[test]
    fn what_an_mbr_cannot_express_is_refused() {
        let refused = |partitions: &[Partition]| {
            let why = regions(partitions, Some(Table::Mbr)).unwrap_err();
            assert!(why.message().ends_with("Try using: partition-type=gpt"), "{why}");
        };
        refused(&[partition(MBR_MOST + 1)]);
        // The files would fit, their padding does not.
        refused(&vec![partition(MBR_MOST / 900); 900]);
        assert!(regions(&[partition(MBR_MOST)], Some(Table::Mbr)).is_ok());
    }

    #[test]
    fn disks_beyond_a_file_offset_are_refused() {
        for sizes in [&[u64::MAX, 1][..], &[i64::MAX as u64], &[1 << 62, 1 << 62]] {
            let partitions: Vec<_> = sizes.iter().map(|size| partition(*size)).collect();
            let why = regions(&partitions, None).unwrap_err();
            assert_eq!(why.message(), "the files are too large together");
        }
    }
}
