//! Where the tables are and what they describe: the region table, 2.2.3, and the metadata, 2.6.

use nbdkit_api::Result;

use super::{MIB, bad, is_sound};
use crate::disk_image::little_endian;
use crate::disk_image::source::{Source, Tables};

/// Where the region tables are, of which one may be damaged.
pub(super) const REGIONS: [u64; 2] = [192 << 10, 256 << 10];
/// Bytes of a region table, and of the table at the beginning of the metadata.
pub(super) const TABLE: usize = 64 << 10;
/// Most entries of them, and the bytes of one, and of what stands before them.
const MOST: usize = 2047;
const ENTRY: usize = 32;
const REGIONS_AT: usize = 16;
const METADATA_AT: usize = 32;

/// The identifiers of regions and of items of the metadata.
pub(super) const BAT: [u8; 16] = guid(0x2dc27766_f623_4200_9d64_115e9bfd4a08);
pub(super) const METADATA: [u8; 16] = guid(0x8b7ca206_4790_4b9a_b8fe_575f050f886e);
pub(super) const FILE_PARAMETERS: [u8; 16] = guid(0xcaa16737_fa36_4d43_b3b6_33f0aa44e76b);
pub(super) const DISK_SIZE: [u8; 16] = guid(0x2fa54224_cd1b_4876_b211_5dbed83bf4b8);
pub(super) const DISK_ID: [u8; 16] = guid(0xbeca12ab_b2e6_4523_93ef_c309e000c746);
pub(super) const LOGICAL_SECTOR: [u8; 16] = guid(0x8141bf1d_a96f_4709_ba47_f233a8faab5f);
pub(super) const PHYSICAL_SECTOR: [u8; 16] = guid(0xcda348c7_445d_4471_9cc9_e9885251c556);
pub(super) const PARENT_LOCATOR: [u8; 16] = guid(0xa8d35f2d_b30b_454d_abf7_d3d84834ab0c);

/// Flags of the file parameters: 2.6.2.1.
pub(super) const HAS_PARENT: u64 = 1 << 1;
/// Sizes of a block, and the largest disk, bytes.
const BLOCKS: std::ops::RangeInclusive<u64> = MIB..=(256 << 20);
const MAX_SIZE: u64 = 64 << 40;

/// What is where.
#[derive(Debug)]
pub(super) struct Layout {
    /// Bytes of the disk, and of a block.
    pub(super) size: u64,
    pub(super) block: u64,
    /// Where the block allocation table is.
    pub(super) table: u64,
    /// Entries for blocks between two for bitmaps, which only differencing disks have.
    chunk: u64,
}

/// Some bytes of the image.
#[derive(Clone, Copy)]
struct Range {
    offset: u64,
    length: u64,
}

/// A GUID as it stands in an image, of one as it is written: 2.1 of \[MS-DTYP\].
const fn guid(written: u128) -> [u8; 16] {
    let b = written.to_be_bytes();
    [
        b[3], b[2], b[1], b[0], b[5], b[4], b[7], b[6], b[8], b[9], b[10], b[11], b[12], b[13],
        b[14], b[15],
    ]
}

impl Layout {
    /// Reads it.
    ///
    /// # Errors
    /// EINVAL: it makes no sense, or is not supported. Those of the source.
    pub(super) fn read(image: &Tables<impl Source>) -> Result<Layout> {
        let (bat, metadata) = regions(image)?;
        let items = Items::read(image, metadata)?;
        let parameters = number(image, items.file_parameters, 8, "file parameters")?;
        let size = number(image, items.disk_size, 8, "disk size")?;
        let sector = number(image, items.logical_sector, 4, "logical sector size")?;
        let (block, flags) = (parameters & 0xffff_ffff, parameters >> 32);
        if flags & HAS_PARENT != 0 {
            return Err(bad("a differencing disk, which needs another image, is not supported"));
        }
        if !block.is_power_of_two() || !BLOCKS.contains(&block) {
            return Err(bad(format_args!("blocks of {block} bytes")));
        }
        if !matches!(sector, 512 | 4096) {
            return Err(bad(format_args!("sectors of {sector} bytes")));
        }
        if size > MAX_SIZE || !size.is_multiple_of(sector) {
            return Err(bad(format_args!("a disk of {size} bytes")));
        }
        // A bitmap of 1 MiB has a bit for each sector of a chunk: 2.4.
        let chunk = (sector << 23) / block;
        let layout = Layout { size, block, table: bat.offset, chunk };
        let entries = size.div_ceil(block).checked_sub(1).map_or(0, |last| layout.entry(last) + 1);
        if entries * 8 > bat.length {
            return Err(bad("the block allocation table has fewer blocks than the disk"));
        }
        Ok(layout)
    }

    /// The number of the entry of a block. Behind the entries of a chunk is one for its bitmap.
    pub(super) fn entry(&self, block: u64) -> u64 {
        block + block / self.chunk
    }
}

/// The regions of the block allocation table and of the metadata.
fn regions(image: &Tables<impl Source>) -> Result<(Range, Range)> {
    let mut table = vec![0; TABLE];
    let mut is_whole = false;
    for at in REGIONS {
        image.source().read(&mut table, at)?;
        is_whole = is_sound(&table, b"regi") && little_endian(&table, 8, 4) <= MOST as u64;
        if is_whole {
            break;
        }
    }
    if !is_whole {
        return Err(bad("neither region table is whole"));
    }
    let count = little_endian(&table, 8, 4) as usize;
    let (mut bat, mut metadata) = (None, None);
    for entry in table[REGIONS_AT..].chunks_exact(ENTRY).take(count) {
        let (offset, length) = (little_endian(entry, 16, 8), little_endian(entry, 24, 4));
        let found = match entry.first_chunk() {
            Some(&BAT) => &mut bat,
            Some(&METADATA) => &mut metadata,
            _ if little_endian(entry, 28, 4) & 1 == 0 => continue,
            _ => return Err(bad("it needs a region of an unknown kind")),
        };
        let end = offset.checked_add(length);
        let is_aligned = offset.is_multiple_of(MIB) && length.is_multiple_of(MIB);
        if !is_aligned || offset < MIB || end.is_none_or(|end| end > image.size()) {
            return Err(bad(format_args!("a region of {length} bytes cannot be at {offset}")));
        }
        *found = Some(Range { offset, length });
    }
    let bat = bat.ok_or_else(|| bad("there is no block allocation table"))?;
    let metadata = metadata.filter(|metadata| metadata.length > 0);
    Ok((bat, metadata.ok_or_else(|| bad("there is no metadata"))?))
}

/// The items of the metadata that matter.
#[derive(Default)]
struct Items {
    file_parameters: Option<Range>,
    disk_size: Option<Range>,
    logical_sector: Option<Range>,
}

impl Items {
    fn read(image: &Tables<impl Source>, region: Range) -> Result<Items> {
        let mut table = vec![0; TABLE];
        image.source().read(&mut table, region.offset)?;
        let count = little_endian(&table, 10, 2) as usize;
        if !table.starts_with(b"metadata") || count > MOST {
            return Err(bad("the table of the metadata makes no sense"));
        }
        let mut items = Items::default();
        for entry in table[METADATA_AT..].chunks_exact(ENTRY).take(count) {
            let number = |at| little_endian(entry, at, 4);
            let (offset, length, flags) = (number(16), number(20), number(24));
            // Items of users may be called as they like: 2.6.1.2.
            let (is_user, is_required) = (flags & 1 != 0, flags & 4 != 0);
            let found = match entry.first_chunk() {
                Some(&FILE_PARAMETERS) if !is_user => &mut items.file_parameters,
                Some(&DISK_SIZE) if !is_user => &mut items.disk_size,
                Some(&LOGICAL_SECTOR) if !is_user => &mut items.logical_sector,
                Some(&DISK_ID | &PHYSICAL_SECTOR | &PARENT_LOCATOR) if !is_user => continue,
                _ if !is_required => continue,
                _ => return Err(bad("it needs metadata of an unknown kind")),
            };
            if offset < TABLE as u64 || offset + length > region.length {
                return Err(bad(format_args!(
                    "metadata of {length} bytes cannot be at {offset} of its region"
                )));
            }
            *found = Some(Range { offset: region.offset + offset, length });
        }
        Ok(items)
    }
}

/// The number that an item is.
fn number(
    image: &Tables<impl Source>,
    item: Option<Range>,
    length: usize,
    name: &str,
) -> Result<u64> {
    let item = item.filter(|item| item.length == length as u64);
    let item = item.ok_or_else(|| bad(format_args!("there is no {name}")))?;
    let mut bytes = [0; 8];
    image.source().read(&mut bytes[..length], item.offset)?;
    Ok(u64::from_le_bytes(bytes))
}
