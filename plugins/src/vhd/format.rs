//! The format: the footer, the header of a dynamic image, the table of blocks. Numbers are
//! big-endian.
//!
//! "Virtual Hard Disk Image Format Specification", version 1.0.

use nbdkit_api::{Errno, Error, Result};

use crate::disk_image::Map;
use crate::disk_image::source::{Source, Tables};
use crate::disk_image::table::{self, Entry};
use crate::files::File;

/// Bytes of a sector.
const SECTOR: u64 = 512;
/// Bytes of the footer, and of the header of a dynamic image.
pub(super) const FOOTER: usize = 512;
pub(super) const HEADER: usize = 1024;
/// Where the sums are in them.
pub(super) const FOOTER_SUM: usize = 64;
pub(super) const HEADER_SUM: usize = 36;
/// An entry of the table without a block.
const UNUSED: u64 = 0xffff_ffff;
/// Largest disk, bytes: some 2 TiB, the number of sectors that the table's entries can express.
const MAX_SIZE: u64 = (1 << 32) * SECTOR;
/// Sizes of a block, bytes: 2 MiB is usual.
const BLOCKS: std::ops::RangeInclusive<u64> = SECTOR..=(256 << 20);
/// The disk in an image.
pub(crate) struct Disk<S> {
    image: Tables<S>,
    /// Bytes of the disk.
    size: u64,
    /// `None`: the disk stands as it is at the beginning of the image.
    blocks: Option<Blocks>,
}

/// Those of a dynamic image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Blocks {
    /// Where the table is.
    table: u64,
    /// Bytes of the disk that are in one block.
    size: u64,
    /// Bytes of the bitmap that stands before them.
    bitmap: u64,
}

fn bad(why: impl std::fmt::Display) -> Error {
    Error::new(Errno::EINVAL, format!("bad VHD image: {why}"))
}

pub(super) fn number(bytes: &[u8], at: usize, length: usize) -> u64 {
    bytes[at..at + length].iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// Whether the sum at `at` is right: the complement of all other bytes together.
fn is_sound(bytes: &[u8], at: usize) -> bool {
    let sum = |bytes: &[u8]| bytes.iter().fold(0_u32, |sum, byte| sum + u32::from(*byte));
    let expected = !(sum(&bytes[..at]) + sum(&bytes[at + 4..]));
    number(bytes, at, 4) == u64::from(expected)
}

/// Bytes of the disk. Virtual PC takes the geometry for it, all others the number in bytes.
fn disk_size(footer: &[u8]) -> u64 {
    let bytes = number(footer, 48, 8);
    let (cylinders, heads, sectors) =
        (number(footer, 56, 2), number(footer, 58, 1), number(footer, 59, 1));
    let geometry = cylinders * heads * sectors;
    /// The largest geometry, which stands for all larger disks.
    const MOST: u64 = 65535 * 16 * 255;
    if &footer[28..32] == b"vpc " && geometry < MOST { geometry * SECTOR } else { bytes }
}

impl<S: Source> Disk<S> {
    /// The disk in `image`.
    ///
    /// # Errors
    /// EINVAL: it is no VHD image, or one that cannot be read. Those of the source.
    pub(crate) fn of(image: S) -> Result<Disk<S>> {
        let image = Tables::of(image)?;
        let mut footer = [0; FOOTER];
        let end = image.size().checked_sub(FOOTER as u64);
        let end = end.ok_or_else(|| bad("it is too small"))?;
        image.source().read(&mut footer, end)?;
        let is_footer = |footer: &[u8]| footer.starts_with(b"conectix");
        if !is_footer(&footer) || !is_sound(&footer, FOOTER_SUM) {
            // Only a dynamic image has a copy at the beginning.
            image.source().read(&mut footer, 0)?;
            if !is_footer(&footer) {
                return Err(bad("there is no footer"));
            }
            if !is_sound(&footer, FOOTER_SUM) {
                return Err(bad("the footer's checksum differs"));
            }
            if number(&footer, 60, 4) != 3 {
                return Err(bad("there is no footer at the end"));
            }
        }
        let size = disk_size(&footer);
        if size > MAX_SIZE || !size.is_multiple_of(SECTOR) {
            return Err(bad(format_args!("a disk of {size} bytes")));
        }
        let blocks = match number(&footer, 60, 4) {
            2 if size > end => return Err(bad("the disk is larger than the image")),
            2 => None,
            3 => Some(blocks(size, &image, number(&footer, 16, 8))?),
            4 => {
                return Err(bad(
                    "a differencing disk, which needs another image, is not supported",
                ));
            }
            kind => return Err(bad(format_args!("a disk of type {kind}"))),
        };
        Ok(Disk { image, size, blocks })
    }
}

impl<S: Source> Map for Disk<S> {
    /// Bytes of the image.
    type Place = u64;

    fn size(&self) -> u64 {
        self.size
    }

    fn find(&self, at: u64, count: u64) -> Result<(Option<u64>, u64)> {
        let Some(blocks) = self.blocks else { return Ok((Some(at), count)) };
        table::find((at, count), blocks.size, self.image.size(), |first, entries| {
            let mut bytes = vec![0; entries.len() * 4];
            self.image.read(&mut bytes, blocks.table + first * 4)?;
            for (entry, bytes) in entries.iter_mut().zip(bytes.chunks_exact(4)) {
                *entry = match number(bytes, 0, 4) {
                    UNUSED => Entry::Zeroes,
                    sector => Entry::At(sector * SECTOR + blocks.bitmap),
                };
            }
            Ok(())
        })
    }

    fn read(&self, buf: &mut [u8], place: u64) -> Result<()> {
        self.image.source().read(buf, place)
    }

    fn file_at(&self, at: u64, _: u64) -> Option<(&File, u64)> {
        let file = self.image.source().file()?;
        self.blocks.is_none().then_some((file, at))
    }
}

/// Reads the header of a dynamic image, which is at `at`.
fn blocks(disk: u64, image: &Tables<impl Source>, at: u64) -> Result<Blocks> {
    let mut header = [0; HEADER];
    if at.checked_add(HEADER as u64).is_none_or(|end| end > image.size()) {
        return Err(bad("the header lies outside of the image"));
    }
    image.source().read(&mut header, at)?;
    if !header.starts_with(b"cxsparse") {
        return Err(bad("there is no header"));
    }
    if !is_sound(&header, HEADER_SUM) {
        return Err(bad("the header's checksum differs"));
    }
    let (table, entries, size) =
        (number(&header, 16, 8), number(&header, 28, 4), number(&header, 32, 4));
    if !size.is_power_of_two() || !BLOCKS.contains(&size) {
        return Err(bad(format_args!("blocks of {size} bytes")));
    }
    if entries < disk.div_ceil(size) {
        return Err(bad("the table has fewer blocks than the disk"));
    }
    if table.checked_add(entries * 4).is_none_or(|end| end > image.size()) {
        return Err(bad("the table lies outside of the image"));
    }
    let bitmap = (size / SECTOR).div_ceil(8).next_multiple_of(SECTOR);
    Ok(Blocks { table, size, bitmap })
}

/// Writes the sum at `at`.
#[cfg(any(test, feature = "fuzz"))]
pub(super) fn seal(bytes: &mut [u8], at: usize) {
    bytes[at..at + 4].fill(0);
    let sum = !bytes.iter().fold(0_u32, |sum, byte| sum + u32::from(*byte));
    bytes[at..at + 4].copy_from_slice(&sum.to_be_bytes());
}
