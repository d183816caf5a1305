//! The format, without files: the footer, the header of a dynamic image, the table of blocks.
//! Numbers are big-endian.

use nbdkit_api::{Errno, Error, Result};

/// Bytes of a sector.
const SECTOR: u64 = 512;
/// Bytes of the footer, and of the header of a dynamic image.
const FOOTER: usize = 512;
const HEADER: usize = 1024;
/// Where the sums are in them.
const FOOTER_SUM: usize = 64;
const HEADER_SUM: usize = 36;
/// An entry of the table without a block.
const UNUSED: u32 = u32::MAX;
/// Largest disk, bytes: some 2 TiB, the number of sectors that the table's entries can express.
const MAX_SIZE: u64 = (1 << 32) * SECTOR;
/// Sizes of a block, bytes: 2 MiB is usual.
const BLOCKS: std::ops::RangeInclusive<u64> = SECTOR..=(256 << 20);
/// Entries of the table that are read at a time.
const ENTRIES: usize = 64;

/// Where some bytes of the disk are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Nowhere: they are zeroes.
    Zeroes,
    /// At this offset of the image.
    At(u64),
}

/// Where what is in an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Bytes of the disk.
    pub(crate) size: u64,
    /// Bytes of the image.
    image: u64,
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

fn number(bytes: &[u8], at: usize, length: usize) -> u64 {
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

impl Layout {
    /// Reads it from an image of `image` bytes.
    ///
    /// # Errors
    /// EINVAL: it is no VHD image, or one that cannot be read. Those of `read`.
    pub(crate) fn read(image: u64, read: impl Fn(&mut [u8], u64) -> Result<()>) -> Result<Layout> {
        let mut footer = [0; FOOTER];
        let end = image.checked_sub(FOOTER as u64).ok_or_else(|| bad("it is too small"))?;
        read(&mut footer, end)?;
        let is_footer = |footer: &[u8]| footer.starts_with(b"conectix");
        if !is_footer(&footer) || !is_sound(&footer, FOOTER_SUM) {
            // Only a dynamic image has a copy at the beginning.
            read(&mut footer, 0)?;
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
        match number(&footer, 60, 4) {
            2 if size > end => Err(bad("the disk is larger than the image")),
            2 => Ok(Layout { size, image, blocks: None }),
            3 => {
                let blocks = blocks(size, image, number(&footer, 16, 8), read)?;
                Ok(Layout { size, image, blocks: Some(blocks) })
            }
            4 => Err(bad("a differencing disk, which needs another image, is not supported")),
            kind => Err(bad(format_args!("a disk of type {kind}"))),
        }
    }

    /// Whether there is a table of blocks.
    pub(crate) fn is_dynamic(&self) -> bool {
        self.blocks.is_some()
    }

    /// Where the byte `at` of the disk is, and how many bytes from there on are in one piece, at
    /// most `count`. Both are within the disk, and `count` is not 0.
    ///
    /// # Errors
    /// EIO: a block lies outside of the image. Those of `read`.
    pub(crate) fn find(
        &self,
        at: u64,
        count: u64,
        read: impl Fn(&mut [u8], u64) -> Result<()>,
    ) -> Result<(Place, u64)> {
        let Some(blocks) = self.blocks else { return Ok((Place::At(at), count)) };
        let (first, within) = (at / blocks.size, at % blocks.size);
        let last = (at + count - 1) / blocks.size;
        let entries = usize::try_from(last - first + 1).map_or(ENTRIES, |all| all.min(ENTRIES));
        let mut bytes = [0; ENTRIES * 4];
        let bytes = &mut bytes[..entries * 4];
        read(bytes, blocks.table + first * 4)?;
        let mut table = bytes.chunks_exact(4).map(|entry| number(entry, 0, 4) as u32);
        let entry = table.next().unwrap_or(UNUSED);
        if entry == UNUSED {
            let unused = 1 + table.take_while(|entry| *entry == UNUSED).count() as u64;
            return Ok((Place::Zeroes, (unused * blocks.size - within).min(count)));
        }
        let data = u64::from(entry) * SECTOR + blocks.bitmap;
        let count = (blocks.size - within).min(count);
        if data + within + count > self.image {
            return Err(Error::new(Errno::EIO, "a block lies outside of the VHD image"));
        }
        Ok((Place::At(data + within), count))
    }
}

/// Reads the header of a dynamic image, which is at `at`.
fn blocks(
    disk: u64,
    image: u64,
    at: u64,
    read: impl Fn(&mut [u8], u64) -> Result<()>,
) -> Result<Blocks> {
    let mut header = [0; HEADER];
    if at.checked_add(HEADER as u64).is_none_or(|end| end > image) {
        return Err(bad("the header lies outside of the image"));
    }
    read(&mut header, at)?;
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
    if table.checked_add(entries * 4).is_none_or(|end| end > image) {
        return Err(bad("the table lies outside of the image"));
    }
    let bitmap = (size / SECTOR).div_ceil(8).next_multiple_of(SECTOR);
    Ok(Blocks { table, size, bitmap })
}

/// Writes the sum at `at`.
#[cfg(any(test, feature = "fuzz"))]
fn seal(bytes: &mut [u8], at: usize) {
    bytes[at..at + 4].fill(0);
    let sum = !bytes.iter().fold(0_u32, |sum, byte| sum + u32::from(*byte));
    bytes[at..at + 4].copy_from_slice(&sum.to_be_bytes());
}

/// A small image, for fuzzing: of three blocks of 4 KiB, the second of which it has, or fixed.
#[cfg(any(test, feature = "fuzz"))]
pub fn example(dynamic: bool) -> Vec<u8> {
    let mut footer = [0; FOOTER];
    footer[..8].copy_from_slice(b"conectix");
    footer[16..24].copy_from_slice(&(if dynamic { 512 } else { u64::MAX }).to_be_bytes());
    footer[28..32].copy_from_slice(b"test");
    footer[48..56].copy_from_slice(&(3_u64 << 12).to_be_bytes());
    footer[60..64].copy_from_slice(&(if dynamic { 3_u32 } else { 2 }).to_be_bytes());
    seal(&mut footer, FOOTER_SUM);
    if !dynamic {
        return [&[7; 3 << 12][..], &footer].concat();
    }
    let mut header = [0; HEADER];
    header[..8].copy_from_slice(b"cxsparse");
    header[16..24].copy_from_slice(&1536_u64.to_be_bytes());
    header[28..32].copy_from_slice(&3_u32.to_be_bytes());
    header[32..36].copy_from_slice(&4096_u32.to_be_bytes());
    seal(&mut header, HEADER_SUM);
    let mut table = [0xff; 512];
    // Behind the table.
    table[4..8].copy_from_slice(&4_u32.to_be_bytes());
    [&footer[..], &header, &table, &[0xff; 512], &[7; 4096], &footer].concat()
}

/// Any bytes are an image, or an error, and what is found is in it. For the fuzz target.
#[cfg(any(test, feature = "fuzz"))]
pub fn walk(image: &[u8]) {
    let read = |buf: &mut [u8], at: u64| {
        let from = usize::try_from(at).unwrap_or(usize::MAX);
        let bytes = image.get(from..).and_then(|rest| rest.get(..buf.len()));
        buf.copy_from_slice(bytes.ok_or_else(|| Error::silent(Errno::EIO))?);
        Ok(())
    };
    let Ok(layout) = Layout::read(image.len() as u64, read) else { return };
    let mut at = 0;
    for _ in 0..1000 {
        if at >= layout.size {
            return;
        }
        let Ok((place, count)) = layout.find(at, layout.size - at, read) else { return };
        assert!(count > 0 && count <= layout.size - at, "{count} bytes at {at}");
        if let Place::At(from) = place {
            assert!(from + count <= image.len() as u64, "{from} is in the image");
        }
        at += count;
    }
}
