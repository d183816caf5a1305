//! The two levels of tables, which say where each cluster is. They are read in pages, of which a
//! bounded number is kept.

use std::sync::Arc;

use nbdkit_api::{BlockCache, Errno, Error, Next, Result};

use super::NAME;
use super::header::Header;
use crate::compressed::corrupt;

/// Bytes of the image that are read at a time.
const PAGE: u64 = 32 << 10;
/// Pages that are kept.
const PAGES: usize = 64;
/// Bytes that all of them take.
pub(super) const MEMORY: u64 = PAGE * PAGES as u64;

/// What is reserved in an entry of either table; bit 0 of an L2 entry is apart.
const RESERVED: u64 = 0x3f00_0000_0000_01fe;
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1 << 0;

/// Where the bytes of a cluster are in the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// They are zeroes.
    Nowhere,
    At(u64),
    /// In `length` bytes from `offset`, compressed.
    Compressed {
        offset: u64,
        length: u64,
    },
}

impl Place {
    /// The place of what is `within` bytes after the cluster's beginning.
    pub(super) fn at(self, within: u64) -> Place {
        if let Place::At(at) = self { Place::At(at + within) } else { self }
    }
}

/// The pages that were read.
pub(super) struct Tables(BlockCache);

impl Tables {
    pub(super) fn new() -> Tables {
        Tables(BlockCache::new(PAGES))
    }

    /// For a request, whose entries are often next to each other. Pages that are not kept are read
    /// from `next`; without it, they are not found.
    pub(super) fn lookup<'a>(&'a self, next: Option<&'a Next>) -> Lookup<'a> {
        Lookup { tables: self, next, last: None, l2: None }
    }
}

/// Looks up the clusters of one request.
pub(super) struct Lookup<'a> {
    tables: &'a Tables,
    next: Option<&'a Next>,
    /// The page that was used last, and its number.
    last: Option<(u64, Arc<Vec<u8>>)>,
    /// The last entry of the L1 table, and its index.
    l2: Option<(u64, u64)>,
}

impl Lookup<'_> {
    /// Where `cluster` is in an image of `image` bytes.
    ///
    /// # Errors
    /// EIO: the tables are damaged; those of the layer below; EAGAIN: a page is not kept.
    pub(super) fn place_of(&mut self, header: &Header, image: u64, cluster: u64) -> Result<Place> {
        let (index, within) = (cluster / header.entries(), cluster % header.entries());
        let table = match self.l2 {
            Some((known, table)) if known == index => table,
            _ => {
                let entry = self.entry(header.l1_offset() + index * 8, image)?;
                l2_table(header, image, entry)?
            }
        };
        self.l2 = Some((index, table));
        if table == 0 {
            return Ok(Place::Nowhere);
        }
        let entry = self.entry(table + within * 8, image)?;
        place(header, image, entry)
    }

    /// The entry at this offset of the image, a multiple of eight.
    fn entry(&mut self, offset: u64, image: u64) -> Result<u64> {
        let (number, within) = (offset / PAGE, (offset % PAGE) as usize);
        let page = match self.last.take() {
            Some((last, page)) if last == number => page,
            _ => self.page(number, image)?,
        };
        let bytes = page.get(within..).and_then(|bytes| bytes.first_chunk());
        let bytes = bytes.ok_or_else(|| corrupt(NAME, "the image is cut off in a table"))?;
        let entry = u64::from_be_bytes(*bytes);
        self.last = Some((number, page));
        Ok(entry)
    }

    fn page(&self, number: u64, image: u64) -> Result<Arc<Vec<u8>>> {
        let Some(next) = self.next else {
            return self.tables.0.kept(number).ok_or_else(|| Error::silent(Errno::EAGAIN));
        };
        self.tables.0.get(number, || {
            let length = PAGE.min(image.saturating_sub(number * PAGE));
            let mut page = vec![0; length as usize];
            next.pread(&mut page, number * PAGE)?;
            Ok(page)
        })
    }
}

/// The offset of an L2 table; 0 if there is none.
fn l2_table(header: &Header, image: u64, entry: u64) -> Result<u64> {
    let table = entry & OFFSET;
    if entry & (RESERVED | COMPRESSED | ZERO) != 0 {
        return Err(corrupt(NAME, format!("an L1 entry has reserved bits: {entry:#018x}")));
    }
    let is_within = table.checked_add(header.cluster_size()).is_some_and(|end| end <= image);
    if table != 0 && !(is_within && header.is_cluster(table)) {
        return Err(corrupt(NAME, format!("an L2 table cannot be at {table}")));
    }
    Ok(table)
}

/// What an L2 entry says.
fn place(header: &Header, image: u64, entry: u64) -> Result<Place> {
    if entry & COMPRESSED != 0 {
        return compressed(header, image, entry);
    }
    let is_zero = entry & ZERO != 0;
    if entry & RESERVED != 0 || is_zero && !header.has_zero_flag() {
        return Err(corrupt(NAME, format!("an L2 entry has reserved bits: {entry:#018x}")));
    }
    let offset = entry & OFFSET;
    if is_zero || offset == 0 {
        return Ok(Place::Nowhere);
    }
    if offset >= image || !header.is_cluster(offset) {
        return Err(corrupt(NAME, format!("a cluster cannot be at {offset}")));
    }
    Ok(Place::At(offset))
}

fn compressed(header: &Header, image: u64, entry: u64) -> Result<Place> {
    let bits = 62 - (header.cluster_bits() - 8);
    let offset = entry & ((1 << bits) - 1);
    let sectors = ((entry & (COMPRESSED - 1)) >> bits) + 1;
    if offset < 512 || offset >= image || entry >> 63 != 0 {
        return Err(corrupt(NAME, format!("a compressed cluster cannot be at {offset}")));
    }
    let end = (offset / 512 + sectors) * 512;
    Ok(Place::Compressed { offset, length: end.min(image) - offset })
}
