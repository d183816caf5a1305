//! The maps of blocks of all exports: which export names have been opened, how large each disk is,
//! and where the map of each begins.
//!
//! An export and its size may become known long after the fork, to any worker: the first one that
//! opens it adds it, and all others find it. Names come from clients, so their number is bounded. A
//! worker that is killed while it adds a name leaves the list as it was.

#![forbid(unsafe_code)]

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use crate::error::{Errno, Error, Result};
use crate::exports::{MAX_EXPORTS, MAX_STRING};
use crate::shared::blocks::{self, BlockState, SharedBlockMap, WINDOW_BYTES};
use crate::shared::{SharedFile, SharedMutex};

/// Bytes that all maps together may take, nearly all of them hole.
const ALL_MAPS: u64 = 1 << 62;

/// Words of the mutex: how many names there are, and how many windows their maps take.
const COUNT: usize = 0;
const WINDOWS: usize = 1;

/// Bytes of an entry: hash of the name, its length, size of the disk, beginning of the map.
const ENTRY: usize = 32;
/// Where the names begin in the file, [`MAX_STRING`] bytes for each.
const NAMES: u64 = (MAX_EXPORTS * ENTRY) as u64;

/// The maps of all exports that were opened. Made in the template, used by every worker.
#[derive(Debug)]
pub struct SharedBlockMaps {
    /// Whose maps they are, for messages and names in /proc.
    owner: &'static str,
    block_size: u64,
    /// The list.
    state: SharedMutex<2>,
    list: SharedFile,
    maps: Arc<SharedFile>,
}

impl SharedBlockMaps {
    /// For exports in blocks of `block_size` bytes, not 0. Nothing is allocated but two memfds.
    ///
    /// # Errors
    /// EMFILE, ENOMEM.
    pub fn new(owner: &'static str, block_size: u64) -> Result<SharedBlockMaps> {
        if block_size == 0 {
            return Err(Error::new(Errno::EINVAL, format!("{owner}: blocks of 0 bytes")));
        }
        Ok(SharedBlockMaps {
            owner,
            block_size,
            state: SharedMutex::new([0, 0])?,
            list: SharedFile::in_memory(&format!("{owner}-exports"), 0)?,
            // As long as it will ever be, so that no worker ever changes its length.
            maps: Arc::new(SharedFile::in_memory(&format!("{owner}-tables"), ALL_MAPS)?),
        })
    }

    /// Bytes of a block.
    pub fn block_size(&self) -> u64 {
        self.block_size
    }

    /// The map of `export`, whose disk has `size` bytes, and the number of the export, below
    /// [`MAX_EXPORTS`]. All workers get the same map for the same name.
    ///
    /// # Errors
    /// EINVAL if the export was opened with another size before; ENOSPC if there are too many
    /// names, or no room for so large a map; EIO if the list is corrupt.
    pub fn open<S: BlockState>(
        &self,
        export: &str,
        size: u64,
    ) -> Result<(usize, SharedBlockMap<S>)> {
        let (number, base) = self.find(export, size)?;
        Ok((number, self.map(size, base)))
    }

    /// The map of an export that was opened before, by its number.
    ///
    /// # Errors
    /// EIO: there is no such export, or the list is corrupt.
    pub fn get<S: BlockState>(&self, number: usize) -> Result<SharedBlockMap<S>> {
        let (size, base) = self.entry(number)?;
        Ok(self.map(size, base))
    }

    /// The name of an export that was opened before, by its number.
    ///
    /// # Errors
    /// EIO: there is no such export, or the list is corrupt.
    pub fn name(&self, number: usize) -> Result<String> {
        if number >= self.count() {
            return Err(self.corrupt());
        }
        let mut entry = [0; ENTRY];
        self.list.read_at(&mut entry, (number * ENTRY) as u64)?;
        let [_, length, ..] = words(&entry);
        let length = usize::try_from(length).ok().filter(|it| *it <= MAX_STRING);
        let mut name = vec![0; length.ok_or_else(|| self.corrupt())?];
        self.list.read_at(&mut name, NAMES + (number * MAX_STRING) as u64)?;
        String::from_utf8(name).map_err(|_| self.corrupt())
    }

    /// How many exports were opened.
    pub fn count(&self) -> usize {
        self.state.lock()[COUNT].min(MAX_EXPORTS as u64) as usize
    }

    /// The word at a [position](SharedBlockMap::position) of a map, which another worker has left
    /// and which may be any; `None` if it cannot be read.
    pub fn word_at(&self, position: u64) -> Option<u64> {
        let mut bytes = [0; size_of::<u64>()];
        let at = position.checked_mul(bytes.len() as u64)?;
        self.maps.read_at(&mut bytes, at).ok()?;
        Some(u64::from_ne_bytes(bytes))
    }

    fn map<S: BlockState>(&self, size: u64, base: u64) -> SharedBlockMap<S> {
        SharedBlockMap::new(Arc::clone(&self.maps), base, size.div_ceil(self.block_size))
    }

    /// The number of an export, and where its map begins; a new name gets both.
    fn find(&self, export: &str, size: u64) -> Result<(usize, u64)> {
        let owner = self.owner;
        if export.len() > MAX_STRING {
            let why = format!("{owner}: the export name is too long");
            return Err(Error::new(Errno::EINVAL, why));
        }
        let too_large =
            || Error::new(Errno::ENOSPC, format!("{owner}: no room for another table of blocks"));
        let bytes = self.bytes(size).ok_or_else(too_large)?;

        let mut state = self.state.lock();
        let count = state[COUNT].min(MAX_EXPORTS as u64) as usize;
        let mut entries = vec![0; count * ENTRY];
        self.list.read_at(&mut entries, 0)?;
        let wanted = (hash(export), export.len() as u64);
        for (number, entry) in entries.chunks_exact(ENTRY).enumerate() {
            let [hash, length, known_size, base] = words(entry);
            if (hash, length) != wanted || !self.has_name(number, export)? {
                continue;
            }
            if known_size != size {
                let why =
                    format!("{owner}: the disk was resized from {known_size} to {size} bytes");
                return Err(Error::new(Errno::EINVAL, why));
            }
            return fits(base, bytes).then_some((number, base)).ok_or_else(|| self.corrupt());
        }
        if count == MAX_EXPORTS {
            let why =
                format!("{owner}: more than {MAX_EXPORTS} different exports have been opened");
            return Err(Error::new(Errno::ENOSPC, why));
        }
        let base = state[WINDOWS].checked_mul(WINDOW_BYTES).ok_or_else(too_large)?;
        let end = base.checked_add(bytes).filter(|&end| end <= ALL_MAPS).ok_or_else(too_large)?;
        self.list.write_at(export.as_bytes(), NAMES + (count * MAX_STRING) as u64)?;
        let entry = [wanted.0, wanted.1, size, base].map(u64::to_ne_bytes).concat();
        self.list.write_at(&entry, (count * ENTRY) as u64)?;
        state[COUNT] = count as u64 + 1;
        state[WINDOWS] = end / WINDOW_BYTES;
        Ok((count, base))
    }

    /// Of an export by its number: the size of the disk, and where its map begins.
    fn entry(&self, number: usize) -> Result<(u64, u64)> {
        if number >= MAX_EXPORTS {
            return Err(self.corrupt());
        }
        let mut entry = [0; ENTRY];
        self.list.read_at(&mut entry, (number * ENTRY) as u64)?;
        let [_, _, size, base] = words(&entry);
        let bytes = self.bytes(size);
        let known = bytes.filter(|bytes| fits(base, *bytes));
        known.map(|_| (size, base)).ok_or_else(|| self.corrupt())
    }

    /// Bytes of the map of a disk of `size` bytes.
    fn bytes(&self, size: u64) -> Option<u64> {
        blocks::bytes(size.div_ceil(self.block_size)).filter(|&bytes| bytes <= ALL_MAPS)
    }

    fn corrupt(&self) -> Error {
        Error::new(Errno::EIO, format!("{}: the list of exports is corrupt", self.owner))
    }

    /// For the fuzz targets, which are hostile workers: a word of the list of exports, at this
    /// byte.
    ///
    /// # Errors
    /// The kernel's.
    #[cfg(any(test, feature = "fuzz"))]
    #[doc(hidden)]
    pub fn scribble_list(&self, at: u64, word: u64) -> Result<()> {
        self.list.write_at(&word.to_ne_bytes(), at)
    }

    /// The number of exports (0) or of windows (1).
    #[doc(hidden)]
    pub fn scribble_counts(&self, index: usize, word: u64) {
        self.state.lock()[index % 2] = word;
    }

    /// The word at a position of a map.
    ///
    /// # Errors
    /// The kernel's.
    #[doc(hidden)]
    pub fn scribble_map(&self, position: u64, word: u64) -> Result<()> {
        self.maps.write_at(&word.to_ne_bytes(), position.saturating_mul(size_of::<u64>() as u64))
    }

    fn has_name(&self, number: usize, export: &str) -> Result<bool> {
        let mut name = vec![0; export.len()];
        self.list.read_at(&mut name, NAMES + (number * MAX_STRING) as u64)?;
        Ok(name == export.as_bytes())
    }
}

/// Whether there may be a map of so many bytes.
fn fits(base: u64, bytes: u64) -> bool {
    base.is_multiple_of(WINDOW_BYTES) && base.checked_add(bytes).is_some_and(|end| end <= ALL_MAPS)
}

/// Equal in every worker.
fn hash(name: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    hasher.finish()
}

fn words(entry: &[u8]) -> [u64; 4] {
    std::array::from_fn(|i| {
        let mut word = [0; 8];
        word.copy_from_slice(&entry[i * 8..][..8]);
        u64::from_ne_bytes(word)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared::deaths;

    fn maps(block_size: u64) -> SharedBlockMaps {
        SharedBlockMaps::new("test", block_size).unwrap()
    }

    #[test]
    fn each_name_has_its_own_map_and_keeps_it() {
        let maps = maps(1 << 16);
        let (_, a) = maps.find("a", 1 << 40).unwrap();
        let (_, b) = maps.find("b", 512).unwrap();
        assert_eq!(b, a + (1 << 27));
        assert_eq!(maps.find("", 0).unwrap(), (2, b + WINDOW_BYTES));
        assert_eq!(maps.find("a", 1 << 40).unwrap(), (0, a));
        assert_eq!(maps.find("b", 512).unwrap(), (1, b));
        assert_eq!(maps.entry(0).unwrap(), (1 << 40, a));
        assert_eq!(maps.find("b", 513).unwrap_err().errno(), Errno::EINVAL);
        assert_eq!(maps.count(), 3);
        assert_eq!([0, 1, 2].map(|it| maps.name(it).unwrap()), ["a", "b", ""]);
        assert_eq!(maps.name(3).unwrap_err().errno(), Errno::EIO);
        assert!(SharedBlockMaps::new("test", 0).is_err());
    }

    #[test]
    fn the_number_of_names_and_the_size_of_maps_are_bounded() {
        let many = maps(4096);
        for i in 0..MAX_EXPORTS {
            // As if the names before had been found elsewhere, which takes long to do.
            many.state.lock()[COUNT] = i as u64;
            if i % 1000 == 0 || i == MAX_EXPORTS - 1 {
                many.find(&format!("export {i}"), 512).unwrap();
            }
        }
        assert_eq!(many.find("one more", 512).unwrap_err().errno(), Errno::ENOSPC);
        many.find("export 9999", 512).unwrap();
        let large = maps(4096);
        let largest = i64::MAX as u64;
        let fitting = (0..1000).take_while(|i| large.find(&i.to_string(), largest).is_ok());
        assert_eq!(fitting.count(), 256);
    }

    #[test]
    fn a_corrupt_list_is_noticed() {
        let maps = maps(4096);
        maps.find("a", 512).unwrap();
        for base in [1, 1 << 62, u64::MAX] {
            maps.scribble_list(24, base).unwrap();
            assert_eq!(maps.find("a", 512).unwrap_err().errno(), Errno::EIO);
            assert_eq!(maps.entry(0).unwrap_err().errno(), Errno::EIO);
        }
        assert_eq!(maps.entry(usize::MAX).unwrap_err().errno(), Errno::EIO);
        for length in [u64::MAX, MAX_STRING as u64 + 1] {
            maps.scribble_list(8, length).unwrap();
            assert_eq!(maps.name(0).unwrap_err().errno(), Errno::EIO);
        }
        *maps.state.lock() = [u64::MAX, u64::MAX];
        maps.find("b", 512).unwrap_err();
    }

    /// A worker dies while it opens an export that nobody has opened.
    #[test]
    fn a_death_while_an_export_is_added_leaves_no_two_with_one_map() {
        deaths::alone(
            "shared::exports::tests::a_death_while_an_export_is_added_leaves_no_two_with_one_map",
            || {
                let make = || {
                    let maps = maps(4096);
                    maps.find("first", 1 << 30).unwrap();
                    maps
                };
                deaths::at_every_step(
                    make,
                    |maps| drop(maps.find("dying", 1 << 40)),
                    |maps, how| {
                        let exports = ["another", "dying", "first"].map(|name| {
                            let size = if name == "first" { 1 << 30 } else { 1 << 40 };
                            let (number, base) = maps.find(name, size).unwrap();
                            (number, base..base + maps.bytes(size).unwrap())
                        });
                        for (i, (number, map)) in exports.iter().enumerate() {
                            for (other, others) in &exports[..i] {
                                let overlap = map.start < others.end && others.start < map.end;
                                assert!(number != other && !overlap, "{how}: {exports:?}");
                            }
                        }
                        assert_eq!(maps.count(), 3, "{how}");
                    },
                );
            },
        );
    }
}
