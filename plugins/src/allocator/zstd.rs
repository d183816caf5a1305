//! `allocator=zstd`: a sparse array of compressed pages.
//!
//! The pages live in ordinary memory of one process, so the server serves all clients from that
//! process. What is decompressed was compressed here and never comes from a client.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nbdkit_api::{Errno, Error, ExtentKind, Extents, Isolation, Result};
use zstd::bulk::{Compressor, Decompressor};

use super::Allocator;

/// Bytes of a page, and the preferred block size.
const PAGE: usize = 32 << 10;

/// What a stored page uses besides its content, about: its entry in the map, malloc's header.
/// Bytes.
const OVERHEAD: u64 = 64;

/// Locks among which the pages are divided, so that requests for different pages can be served at
/// once.
const SHARDS: usize = 16;

/// A disk of compressed pages, in this process's memory.
pub(super) struct Zstd {
    shards: [Mutex<Shard>; SHARDS],
}

impl std::fmt::Debug for Zstd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Zstd").finish_non_exhaustive()
    }
}

/// Every [`SHARDS`]th page.
struct Shard {
    /// By number. A page that is not there is a hole; an empty one is all zeroes; one of [`PAGE`]
    /// bytes did not become smaller by compression and is stored as it is.
    pages: BTreeMap<u64, Box<[u8]>>,
    /// Bytes that they take.
    used: u64,
    compressor: Compressor<'static>,
    decompressor: Decompressor<'static>,
}

/// The share of one page in a request.
struct Piece {
    page: u64,
    /// First byte within the page.
    from: usize,
    /// The byte after the last one within the page.
    to: usize,
}

/// Divides `count` bytes from `offset` among pages. They lie within the disk, which ends before
/// 2^63.
fn pieces(count: usize, offset: u64) -> impl Iterator<Item = Piece> {
    let end = offset + count as u64;
    let mut at = offset;
    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let from = (at % PAGE as u64) as usize;
        let length = (end - at).min((PAGE - from) as u64);
        let piece = Piece { page: at / PAGE as u64, from, to: from + length as usize };
        at += length;
        Some(piece)
    })
}

fn failed(error: &std::io::Error) -> Error {
    Error::new(Errno::EIO, format!("allocator=zstd: {error}"))
}

impl Shard {
    fn new() -> Result<Shard> {
        Ok(Shard {
            pages: BTreeMap::new(),
            used: 0,
            compressor: Compressor::new(zstd::DEFAULT_COMPRESSION_LEVEL)
                .map_err(|error| failed(&error))?,
            decompressor: Decompressor::new().map_err(|error| failed(&error))?,
        })
    }

    /// Fills `page` with the content of page `number`.
    fn load(&mut self, number: u64, page: &mut [u8]) -> Result<()> {
        match self.pages.get(&number) {
            None => page.fill(0),
            Some(stored) if stored.is_empty() => page.fill(0),
            Some(stored) if stored.len() == PAGE => page.copy_from_slice(stored),
            Some(stored) => {
                let length = self
                    .decompressor
                    .decompress_to_buffer(stored, page)
                    .map_err(|error| failed(&error))?;
                if length != page.len() {
                    return Err(Error::new(Errno::EIO, "allocator=zstd: short page"));
                }
            }
        }
        Ok(())
    }

    /// What is stored for `page`.
    fn compress(&mut self, page: &[u8]) -> Result<Box<[u8]>> {
        if page.iter().all(|byte| *byte == 0) {
            return Ok(Box::default());
        }
        let compressed = self.compressor.compress(page).map_err(|error| failed(&error))?;
        Ok(if compressed.len() < page.len() { &compressed[..] } else { page }.into())
    }

    /// Makes `page` the content of page `number`.
    fn store(&mut self, number: u64, page: &[u8]) -> Result<()> {
        let stored = self.compress(page)?;
        self.used += stored.len() as u64 + OVERHEAD;
        let before = self.pages.insert(number, stored);
        self.used -= used_by(before.as_deref());
        Ok(())
    }

    fn remove(&mut self, number: u64) {
        let before = self.pages.remove(&number);
        self.used -= used_by(before.as_deref());
    }
}

/// Bytes that a page takes, if there is one.
fn used_by(stored: Option<&[u8]>) -> u64 {
    stored.map_or(0, |bytes| bytes.len() as u64 + OVERHEAD)
}

impl Zstd {
    pub(super) fn new() -> Result<Zstd> {
        let shards: Vec<_> =
            (0..SHARDS).map(|_| Shard::new().map(Mutex::new)).collect::<Result<_>>()?;
        let shards = shards
            .try_into()
            .map_err(|_| Error::new(Errno::ENOMEM, "allocator=zstd: cannot make the shards"))?;
        Ok(Zstd { shards })
    }

    fn shard(&self, page: u64) -> MutexGuard<'_, Shard> {
        // A page is replaced in one step, so a shard is sound wherever its user stopped.
        self.shards[(page % SHARDS as u64) as usize].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The numbers of the stored pages in `first ..= last`, ascending, and whether they have data
    /// or zeroes.
    fn stored(&self, first: u64, last: u64) -> Vec<(u64, ExtentKind)> {
        let mut found = Vec::new();
        for shard in 0..SHARDS as u64 {
            let shard = self.shard(shard);
            let pages = shard.pages.range(first..=last).map(|(number, page)| {
                let kind = if page.is_empty() { ExtentKind::ZERO } else { ExtentKind::DATA };
                (*number, kind)
            });
            found.extend(pages);
        }
        found.sort_unstable_by_key(|(number, _)| *number);
        found
    }
}

impl Allocator for Zstd {
    fn set_size(&mut self, _size: u64) -> Result<()> {
        Ok(())
    }

    fn read(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let mut scratch = [0; PAGE];
        let mut rest = buf;
        for piece in pieces(rest.len(), offset) {
            let (now, later) = rest.split_at_mut(piece.to - piece.from);
            if now.len() == PAGE {
                self.shard(piece.page).load(piece.page, now)?;
            } else {
                self.shard(piece.page).load(piece.page, &mut scratch)?;
                now.copy_from_slice(&scratch[piece.from..piece.to]);
            }
            rest = later;
        }
        Ok(())
    }

    fn write(&self, buf: &[u8], offset: u64) -> Result<()> {
        let mut scratch = [0; PAGE];
        let mut rest = buf;
        for piece in pieces(rest.len(), offset) {
            let (now, later) = rest.split_at(piece.to - piece.from);
            let mut shard = self.shard(piece.page);
            if now.len() == PAGE {
                shard.store(piece.page, now)?;
            } else {
                shard.load(piece.page, &mut scratch)?;
                scratch[piece.from..piece.to].copy_from_slice(now);
                shard.store(piece.page, &scratch)?;
            }
            rest = later;
        }
        Ok(())
    }

    fn zero(&self, count: u64, offset: u64) -> Result<()> {
        if count == 0 {
            return Ok(());
        }
        let size = PAGE as u64;
        let end = offset + count;
        let (first, last) = (offset / size, (end - 1) / size);
        // The range may be much larger than what is stored.
        for (number, _) in self.stored(first, last) {
            let from = offset.saturating_sub(number * size);
            let to = (end - number * size).min(size);
            let mut shard = self.shard(number);
            if from == 0 && to == size {
                shard.remove(number);
            } else {
                let mut scratch = [0; PAGE];
                shard.load(number, &mut scratch)?;
                scratch[from as usize..to as usize].fill(0);
                shard.store(number, &scratch)?;
            }
        }
        Ok(())
    }

    fn extents(&self, count: u64, offset: u64, one: bool, extents: &mut Extents) -> Result<()> {
        if count == 0 {
            return Ok(());
        }
        let size = PAGE as u64;
        let end = offset + count;
        let mut at = offset;
        for (number, kind) in self.stored(offset / size, (end - 1) / size) {
            let start = (number * size).max(offset);
            extents.add(at, start - at, ExtentKind::SPARSE)?;
            // Once there is a hole, the first extent is known: the hole, or what was before it.
            if one && (start > at || extents.len() > 1) {
                return Ok(());
            }
            at = ((number + 1) * size).min(end);
            extents.add(start, at - start, kind)?;
        }
        extents.add(at, end - at, ExtentKind::SPARSE)
    }

    fn as_file(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn preferred_block_size(&self) -> u32 {
        PAGE as u32
    }

    fn isolation(&self) -> Isolation {
        Isolation::Shared
    }

    fn used(&self) -> Result<u64> {
        Ok((0..SHARDS as u64).map(|shard| self.shard(shard).used).sum())
    }

    fn max_cost(&self, count: u64) -> u64 {
        (count / PAGE as u64).saturating_add(2).saturating_mul(PAGE as u64 + OVERHEAD)
    }

    fn cost(&self, buf: &[u8], offset: u64) -> Result<u64> {
        let mut scratch = [0; PAGE];
        let mut rest = buf;
        let (mut more, mut less) = (0, 0);
        for piece in pieces(buf.len(), offset) {
            let (now, later) = rest.split_at(piece.to - piece.from);
            let mut shard = self.shard(piece.page);
            shard.load(piece.page, &mut scratch)?;
            scratch[piece.from..piece.to].copy_from_slice(now);
            more += used_by(Some(&shard.compress(&scratch)?));
            less += used_by(shard.pages.get(&piece.page).map(|stored| &stored[..]));
            rest = later;
        }
        Ok(more.saturating_sub(less))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_of_zeroes_takes_no_memory_and_is_no_hole_until_it_is_trimmed() {
        let zstd = Zstd::new().unwrap();
        let (data, zero) = (ExtentKind::DATA, ExtentKind::ZERO);
        zstd.write(&[1; 3 * PAGE], 0).unwrap();
        zstd.write(&[0; PAGE], PAGE as u64).unwrap();
        zstd.write(&[0; PAGE / 2], 2 * PAGE as u64).unwrap();
        assert_eq!(zstd.stored(0, 10), [(0, data), (1, zero), (2, data)]);
        zstd.zero(PAGE as u64 / 2, 2 * PAGE as u64 + PAGE as u64 / 2).unwrap();
        assert_eq!(zstd.stored(0, 10), [(0, data), (1, zero), (2, zero)]);
        assert!(zstd.shard(2).pages[&2].is_empty());
        let mut back = vec![1; PAGE];
        zstd.read(&mut back, 2 * PAGE as u64).unwrap();
        assert!(back.iter().all(|byte| *byte == 0));
        zstd.zero(2 * PAGE as u64, PAGE as u64).unwrap();
        assert_eq!(zstd.stored(0, 10), [(0, data)]);
    }

    #[test]
    fn pages_are_compressed_or_stored_as_they_are() {
        let zstd = Zstd::new().unwrap();
        zstd.write(&[7; PAGE], 0).unwrap();
        assert!(zstd.shard(0).pages[&0].len() < 100);
        let mut state = 1_u64;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            (state >> 56) as u8
        })
        .take(PAGE)
        .collect();
        zstd.write(&noise, PAGE as u64).unwrap();
        assert_eq!(zstd.shard(1).pages[&1].len(), PAGE);
        let mut back = vec![0; PAGE];
        zstd.read(&mut back, PAGE as u64).unwrap();
        assert!(back == noise);
    }

    #[test]
    fn the_largest_disk_is_zeroed_and_described_at_once() {
        let zstd = Zstd::new().unwrap();
        let size = i64::MAX as u64;
        zstd.write(b"x", size - 1).unwrap();
        let mut extents = Extents::new(0, size);
        zstd.extents(size, 0, false, &mut extents).unwrap();
        assert_eq!(extents.len(), 2);
        assert_eq!(extents.covered_to(), size);
        zstd.zero(size, 0).unwrap();
        // The last page is short, so it is zeroed like a part of one, as in nbdkit.
        assert_eq!(zstd.stored(0, u64::MAX), [(size / PAGE as u64, ExtentKind::ZERO)]);
    }

    #[test]
    fn one_extent_is_enough_if_only_one_is_wanted() {
        let zstd = Zstd::new().unwrap();
        zstd.write(&[1; 2 * PAGE], PAGE as u64).unwrap();
        zstd.write(&[1; PAGE], 5 * PAGE as u64).unwrap();
        for (offset, length) in [(0, PAGE), (PAGE, 2 * PAGE), (PAGE + 1, 2 * PAGE - 1)] {
            let mut extents = Extents::new(offset as u64, 1 << 30);
            let count = (1 << 30) - offset as u64;
            zstd.extents(count, offset as u64, true, &mut extents).unwrap();
            assert_eq!(extents.as_slice()[0].length, length as u64);
            assert!(extents.len() <= 2);
        }
    }
}
