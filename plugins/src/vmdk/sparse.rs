//! Sparse extents: "Hosted Sparse Extents", "Stream-Optimized Compressed Sparse Extents", and
//! "ESXi Host Sparse Extents" (COWD). A directory says where tables are, each of which says where
//! so many grains are.

use std::sync::Arc;

use nbdkit_api::{BlockCache, Result};

use super::grain;
use super::{SECTOR, bad};
use crate::disk_image::little_endian;
use crate::disk_image::source::{Source, Tables};
use crate::disk_image::table::{self, Entry};

/// Bytes of a header.
const HEADER: usize = 512;
/// Where the footer is, which is a header, and the marker before it, from the end.
const FOOTER: u64 = 1024;
const FOOTER_MARKER: u64 = 1536;
/// What the header says if the footer has the directory: GD_AT_END.
const AT_END: u64 = u64::MAX;
/// The marker's type.
const MARKER_FOOTER: u64 = 3;

/// Flags.
const HAS_LINE_ENDS: u64 = 1 << 0;
const USES_REDUNDANT: u64 = 1 << 1;
const HAS_ZEROED: u64 = 1 << 2;
const IS_COMPRESSED: u64 = 1 << 16;
const HAS_MARKERS: u64 = 1 << 17;
/// In order to notice that the file was taken for a text.
const LINE_ENDS: &[u8] = b"\n \r\n";

/// Entries of a table: 512 as a rule, and in COWD always as many.
const MOST_ENTRIES: u64 = 4096;

/// What the header says.
#[derive(Debug)]
pub(super) struct Header {
    /// Bytes of the disk that it has.
    pub(super) capacity: u64,
    /// Where the descriptor in it is, and its bytes.
    pub(super) descriptor: Option<(u64, u64)>,
    /// Bytes of a grain.
    grain: u64,
    /// Entries of a table.
    entries: u64,
    /// Where the directory is.
    directory: u64,
    /// An entry that is 1 stands for zeroes.
    has_zeroed: bool,
    is_compressed: bool,
}

impl Header {
    /// Reads it from a file of `size` bytes; `None` if that does not begin as a sparse extent.
    ///
    /// # Errors
    /// EINVAL: it makes no sense, or is not supported. Those of the source.
    pub(super) fn read(image: &impl Source, size: u64) -> Result<Option<Header>> {
        let mut bytes = [0; HEADER];
        if size < HEADER as u64 {
            return Ok(None);
        }
        image.read(&mut bytes, 0)?;
        let header = match &bytes[..4] {
            b"KDMV" if little_endian(&bytes, 56, 8) == AT_END => footer(image, size)?,
            b"KDMV" => hosted(&bytes)?,
            b"COWD" => cowd(&bytes)?,
            _ => return Ok(None),
        };
        header.check(size)?;
        Ok(Some(header))
    }

    fn check(&self, size: u64) -> Result<()> {
        let grain = self.grain;
        if !grain.is_power_of_two() || !(SECTOR..=grain::MOST).contains(&grain) {
            return Err(bad(format_args!("grains of {grain} bytes")));
        }
        if !(1..=MOST_ENTRIES).contains(&self.entries) {
            return Err(bad(format_args!("tables of {} grains", self.entries)));
        }
        let tables = self.capacity.div_ceil(grain).div_ceil(self.entries);
        let end = self.directory.checked_add(tables * 4);
        if end.is_none_or(|end| end > size) {
            return Err(bad("the directory of its grains lies outside of it"));
        }
        Ok(())
    }
}

/// So many sectors, in bytes.
fn sectors(count: u64) -> Result<u64> {
    let bytes = count.checked_mul(SECTOR).filter(|bytes| i64::try_from(*bytes).is_ok());
    bytes.ok_or_else(|| bad(format_args!("{count} sectors are too many")))
}

fn hosted(bytes: &[u8; HEADER]) -> Result<Header> {
    let number = |at, length| little_endian(bytes, at, length);
    let (version, flags) = (number(4, 4), number(8, 4));
    if !(1..=3).contains(&version) {
        return Err(bad(format_args!("version {version} is not supported, only 1 to 3")));
    }
    if flags & HAS_LINE_ENDS != 0 && &bytes[73..77] != LINE_ENDS {
        return Err(bad("it was damaged by a transfer as text"));
    }
    let is_compressed = flags & IS_COMPRESSED != 0;
    let algorithm = number(77, 2);
    if is_compressed && flags & HAS_MARKERS == 0 {
        return Err(bad("compressed grains without markers are not supported"));
    }
    if is_compressed && algorithm != 1 {
        return Err(bad(format_args!("compression {algorithm} is not supported, only deflate")));
    }
    let redundant = number(48, 8);
    let use_redundant = flags & USES_REDUNDANT != 0 && redundant != 0;
    let descriptor = match (number(28, 8), number(36, 8)) {
        (0, _) | (_, 0) => None,
        (at, count) => Some((sectors(at)?, sectors(count)?)),
    };
    Ok(Header {
        capacity: sectors(number(12, 8))?,
        descriptor,
        grain: sectors(number(20, 8))?,
        entries: number(44, 4),
        directory: sectors(if use_redundant { redundant } else { number(56, 8) })?,
        has_zeroed: flags & HAS_ZEROED != 0,
        is_compressed,
    })
}

/// The header that is at the end of an image that was written from its beginning to its end.
fn footer(image: &impl Source, size: u64) -> Result<Header> {
    let why = || bad("there is no footer");
    let at = size.checked_sub(FOOTER_MARKER).ok_or_else(why)?;
    let mut marker = [0; 16];
    image.read(&mut marker, at)?;
    if little_endian(&marker, 8, 4) != 0 || little_endian(&marker, 12, 4) != MARKER_FOOTER {
        return Err(why());
    }
    let mut bytes = [0; HEADER];
    image.read(&mut bytes, size - FOOTER)?;
    if !bytes.starts_with(b"KDMV") || little_endian(&bytes, 56, 8) == AT_END {
        return Err(why());
    }
    hosted(&bytes)
}

fn cowd(bytes: &[u8; HEADER]) -> Result<Header> {
    let number = |at| little_endian(bytes, at, 4);
    let version = number(4);
    if version != 1 {
        return Err(bad(format_args!("version {version} of COWD is not supported, only 1")));
    }
    Ok(Header {
        capacity: number(12) * SECTOR,
        descriptor: None,
        grain: number(16) * SECTOR,
        entries: MOST_ENTRIES,
        directory: number(20) * SECTOR,
        has_zeroed: false,
        is_compressed: false,
    })
}

/// A sparse extent.
pub(super) struct Sparse<S> {
    image: Tables<S>,
    header: Header,
}

impl<S: Source> Sparse<S> {
    /// Of a file, which is the image's of this number.
    ///
    /// # Errors
    /// Those of [`Header::read`]. EINVAL: it is none.
    pub(super) fn of(source: S, number: usize, pages: &Arc<BlockCache>) -> Result<Sparse<S>> {
        let image = Tables::of_one(source, number, pages)?;
        let header = Header::read(image.source(), image.size())?;
        Ok(Sparse { image, header: header.ok_or_else(|| bad("it is no sparse extent"))? })
    }

    /// Bytes of the disk that it has.
    pub(super) fn capacity(&self) -> u64 {
        self.header.capacity
    }

    /// Bytes of a grain.
    pub(super) fn grain(&self) -> u64 {
        self.header.grain
    }

    pub(super) fn is_compressed(&self) -> bool {
        self.header.is_compressed
    }

    pub(super) fn image(&self) -> &Tables<S> {
        &self.image
    }

    /// As [`table::find`]: where the byte `at` of the extent is in the file; of a compressed grain,
    /// where it would be if it were not.
    ///
    /// # Errors
    /// EIO: a table or a grain is not in the file. Those of the source.
    pub(super) fn find(&self, at: u64, count: u64) -> Result<(Option<u64>, u64)> {
        let Header { grain, entries, directory, is_compressed, .. } = self.header;
        // Bytes of the disk that one table is for.
        let span = grain * entries;
        let look = |table, first, slots: &mut [Entry]| self.read_entries(table + first * 4, slots);
        let (table, count) =
            table::find((at, count), span, u64::MAX, |first, slots| look(directory, first, slots))?;
        let within = at % span;
        let Some(table) = table.map(|table| table - within) else { return Ok((None, count)) };
        let count = count.min(span - within);
        // How long a compressed grain is, its marker says.
        let image = if is_compressed { u64::MAX } else { self.image.size() };
        let (offset, count) =
            table::find((within, count), grain, image, |first, slots| look(table, first, slots))?;
        let is_one = is_compressed && offset.is_some();
        Ok((offset, if is_one { count.min(grain - at % grain) } else { count }))
    }

    /// Reads entries that begin at `at` of the file.
    fn read_entries(&self, at: u64, entries: &mut [Entry]) -> Result<()> {
        let mut bytes = vec![0; entries.len() * 4];
        self.image.read(&mut bytes, at)?;
        for (entry, bytes) in entries.iter_mut().zip(bytes.chunks_exact(4)) {
            *entry = self.entry(bytes);
        }
        Ok(())
    }

    /// What an entry of the directory or of a table says.
    fn entry(&self, bytes: &[u8]) -> Entry {
        match little_endian(bytes, 0, 4) {
            0 => Entry::Zeroes,
            1 if self.header.has_zeroed => Entry::Zeroes,
            sector => Entry::At(sector * SECTOR),
        }
    }
}
