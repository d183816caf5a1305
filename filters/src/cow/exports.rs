//! Which export names have been opened and where the table of each begins.
//!
//! Names come from clients, so their number is bounded. A worker that dies while it adds a name
//! leaves the count as it was.

use std::hash::{DefaultHasher, Hash, Hasher};

use nbdkit_api::exports::{MAX_EXPORTS, MAX_STRING};
use nbdkit_api::shared::{SharedFile, SharedMutex};
use nbdkit_api::{Errno, Error, Result};

use super::table::{Table, WINDOW_BYTES};

/// Bytes that all tables together may take, nearly all of them hole.
pub(super) const ALL_TABLES: u64 = 1 << 62;

/// Words of the mutex: how many names there are, and how many windows their tables take.
const COUNT: usize = 0;
const WINDOWS: usize = 1;

/// Bytes of an entry: hash of the name, its length, size of the disk, beginning of the table.
const ENTRY: usize = 32;
/// Where the names begin in the file, [`MAX_STRING`] bytes for each.
const NAMES: u64 = (MAX_EXPORTS * ENTRY) as u64;

/// The list of exports that have a table, in shared memory.
#[derive(Debug)]
pub(super) struct ExportTables {
    state: SharedMutex<2>,
    file: SharedFile,
}

impl ExportTables {
    /// # Errors
    /// The kernel's.
    pub(super) fn new() -> Result<ExportTables> {
        Ok(ExportTables {
            state: SharedMutex::new([0, 0])?,
            file: SharedFile::in_memory("cow-exports", 0)?,
        })
    }

    /// The number of `export` and where its table begins; a new name gets them. The disk has `size`
    /// bytes in `blocks` blocks.
    ///
    /// # Errors
    /// EINVAL if the export was opened with another size before; ENOSPC if there are too many
    /// names.
    pub(super) fn find(&self, export: &str, size: u64, blocks: u64) -> Result<(usize, u64)> {
        if export.len() > MAX_STRING {
            return Err(Error::new(Errno::EINVAL, "cow: the export name is too long"));
        }
        let bytes = Table::bytes(blocks).filter(|&bytes| bytes <= ALL_TABLES);
        let too_large = || Error::new(Errno::ENOSPC, "cow: no room for another table of blocks");
        let bytes = bytes.ok_or_else(too_large)?;

        let mut state = self.state.lock();
        let count = state[COUNT].min(MAX_EXPORTS as u64) as usize;
        let mut entries = vec![0; count * ENTRY];
        self.file.read_at(&mut entries, 0)?;
        let wanted = (hash(export), export.len() as u64);
        for (number, entry) in entries.chunks_exact(ENTRY).enumerate() {
            let [hash, length, known_size, base] = words(entry);
            if (hash, length) != wanted || !self.has_name(number, export)? {
                continue;
            }
            if known_size != size {
                return Err(Error::new(
                    Errno::EINVAL,
                    format!("cow: the disk was resized from {known_size} to {size} bytes"),
                ));
            }
            return fits(base, bytes).then_some((number, base)).ok_or_else(corrupt);
        }
        if count == MAX_EXPORTS {
            return Err(Error::new(
                Errno::ENOSPC,
                format!("cow: more than {MAX_EXPORTS} different exports have been opened"),
            ));
        }
        let base = state[WINDOWS].checked_mul(WINDOW_BYTES).ok_or_else(too_large)?;
        let end = base.checked_add(bytes).filter(|&end| end <= ALL_TABLES).ok_or_else(too_large)?;
        self.file.write_at(export.as_bytes(), NAMES + (count * MAX_STRING) as u64)?;
        let entry = [wanted.0, wanted.1, size, base].map(u64::to_ne_bytes).concat();
        self.file.write_at(&entry, (count * ENTRY) as u64)?;
        state[COUNT] = count as u64 + 1;
        state[WINDOWS] = end / WINDOW_BYTES;
        Ok((count, base))
    }

    /// How many names there are.
    pub(super) fn count(&self) -> usize {
        self.state.lock()[COUNT].min(MAX_EXPORTS as u64) as usize
    }

    /// Of an export by its number: the size of the disk, and where its table begins.
    ///
    /// # Errors
    /// EIO.
    pub(super) fn get(&self, number: usize, block_size: u64) -> Result<(u64, u64)> {
        let mut entry = [0; ENTRY];
        self.file.read_at(&mut entry, (number * ENTRY) as u64)?;
        let [_, _, size, base] = words(&entry);
        let bytes = Table::bytes(size.div_ceil(block_size));
        bytes.filter(|bytes| fits(base, *bytes)).map(|_| (size, base)).ok_or_else(corrupt)
    }

    /// For the fuzz targets: a word in the list, as a hostile worker may put there.
    pub(super) fn scribble(&self, at: u64, word: u64) -> Result<()> {
        self.file.write_at(&word.to_ne_bytes(), at)
    }

    /// The same for the number of exports (0) and of windows (1).
    pub(super) fn scribble_counts(&self, index: usize, word: u64) {
        self.state.lock()[index % 2] = word;
    }

    fn has_name(&self, number: usize, export: &str) -> Result<bool> {
        let mut name = vec![0; export.len()];
        self.file.read_at(&mut name, NAMES + (number * MAX_STRING) as u64)?;
        Ok(name == export.as_bytes())
    }
}

/// Whether there may be a table of so many bytes.
fn fits(base: u64, bytes: u64) -> bool {
    base.is_multiple_of(WINDOW_BYTES)
        && base.checked_add(bytes).is_some_and(|end| end <= ALL_TABLES)
}

fn corrupt() -> Error {
    Error::new(Errno::EIO, "cow: the list of exports is corrupt")
}

/// The same in every worker.
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

    #[test]
    fn each_name_has_its_own_table_and_keeps_it() {
        let exports = ExportTables::new().unwrap();
        let (_, a) = exports.find("a", 1 << 40, 1 << 24).unwrap();
        let (_, b) = exports.find("b", 512, 1).unwrap();
        assert_eq!(b, a + (1 << 27));
        assert_eq!(exports.find("", 0, 0).unwrap(), (2, b + WINDOW_BYTES));
        assert_eq!(exports.find("a", 1 << 40, 1 << 24).unwrap(), (0, a));
        assert_eq!(exports.find("b", 512, 1).unwrap(), (1, b));
        assert_eq!(exports.get(0, 1 << 16).unwrap(), (1 << 40, a));
        assert_eq!(exports.find("b", 513, 1).unwrap_err().errno(), Errno::EINVAL);
    }

    #[test]
    fn the_number_of_names_and_the_size_of_tables_are_bounded() {
        let exports = ExportTables::new().unwrap();
        for i in 0..MAX_EXPORTS {
            // As if the names before had been found elsewhere, which takes long to do.
            exports.state.lock()[COUNT] = i as u64;
            if i % 1000 == 0 || i == MAX_EXPORTS - 1 {
                exports.find(&format!("export {i}"), 512, 1).unwrap();
            }
        }
        assert_eq!(exports.find("one more", 512, 1).unwrap_err().errno(), Errno::ENOSPC);
        exports.find("export 9999", 512, 1).unwrap();
        let exports = ExportTables::new().unwrap();
        let largest = i64::MAX as u64;
        let fitting = (0..1000)
            .take_while(|i| exports.find(&i.to_string(), largest, largest.div_ceil(4096)).is_ok());
        assert_eq!(fitting.count(), 256);
    }

    #[test]
    fn a_corrupt_list_is_noticed() {
        let exports = ExportTables::new().unwrap();
        exports.find("a", 512, 1).unwrap();
        for base in [1, 1 << 62, u64::MAX] {
            exports.file.write_at(&u64::to_ne_bytes(base), 24).unwrap();
            assert_eq!(exports.find("a", 512, 1).unwrap_err().errno(), Errno::EIO);
            assert_eq!(exports.get(0, 4096).unwrap_err().errno(), Errno::EIO);
        }
        *exports.state.lock() = [u64::MAX, u64::MAX];
        exports.find("b", 512, 1).unwrap_err();
    }
}
