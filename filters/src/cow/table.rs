//! The table of an export: a word per block, in memory that all workers map.
//!
//! The table of a large disk is larger than any memory; it is sparse, mapped a window at a time,
//! and pages of it that nobody wrote are not touched: reading a disk must not cost memory. Words
//! may have been scribbled on by a hostile worker, so what they say is checked.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use nbdkit_api::shared::{SharedFile, SharedWords};
use nbdkit_api::{Errno, Error, Result, ResultExt};
use nix::unistd::{Whence, lseek64};

const WORD: u64 = size_of::<u64>() as u64;
/// Words in a page, the unit in which a table is sparse.
const PAGE_WORDS: u64 = 4096 / WORD;
/// Words in a window.
const WINDOW_WORDS: u64 = 1 << 17;
/// Bytes of a window; tables begin at multiples of it.
pub(super) const WINDOW_BYTES: u64 = WINDOW_WORDS * WORD;
const WINDOW_PAGES: usize = (WINDOW_WORDS / PAGE_WORDS) as usize;
/// Most windows that a connection keeps mapped. Processes may have some 65000 mappings.
const MAX_WINDOWS: usize = 1024;

/// Where a block stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Block {
    /// In the layer below.
    Absent,
    /// In this cluster of the overlay.
    Present(u64),
    /// Nowhere; it is zeroes. If it had a cluster, that is still its own, and holds no space.
    Trimmed(Option<u64>),
    /// The same, but the cluster holds space: the file system cannot punch holes.
    Unfreed(u64),
}

const PRESENT: u64 = 1;
const TRIMMED: u64 = 2;
const UNFREED: u64 = 3;

impl Block {
    /// The state in the lowest two bits, above it the cluster's number plus one.
    fn encode(self) -> u64 {
        match self {
            Block::Absent => 0,
            Block::Present(cluster) => (cluster + 1) << 2 | PRESENT,
            Block::Trimmed(cluster) => cluster.map_or(0, |c| c + 1) << 2 | TRIMMED,
            Block::Unfreed(cluster) => (cluster + 1) << 2 | UNFREED,
        }
    }

    /// Whether its cluster holds space.
    pub(super) fn holds_space(self) -> bool {
        match self {
            Block::Present(_) | Block::Unfreed(_) => true,
            Block::Absent | Block::Trimmed(_) => false,
        }
    }

    pub(super) fn decode(word: u64) -> Result<Block> {
        let cluster = (word >> 2).checked_sub(1);
        match (word & 3, cluster) {
            (0, None) => Ok(Block::Absent),
            (PRESENT, Some(cluster)) => Ok(Block::Present(cluster)),
            (TRIMMED, cluster) => Ok(Block::Trimmed(cluster)),
            (UNFREED, Some(cluster)) => Ok(Block::Unfreed(cluster)),
            _ => Err(Error::new(Errno::EIO, "cow: the table of blocks is corrupt")),
        }
    }
}

/// The table of one export: where each block is. In `file` from byte `base` on.
#[derive(Debug)]
pub(super) struct Table {
    file: Arc<SharedFile>,
    base: u64,
    blocks: u64,
    windows: Mutex<HashMap<u64, Arc<Window>>>,
}

#[derive(Debug)]
struct Window {
    words: SharedWords,
    /// A bit per page that is known to exist; pages never go away.
    pages: [AtomicU64; WINDOW_PAGES.div_ceil(64)],
}

impl Table {
    pub(super) fn new(file: Arc<SharedFile>, base: u64, blocks: u64) -> Table {
        Table { file, base, blocks, windows: Mutex::default() }
    }

    /// Bytes of the table of a disk of `blocks` blocks; `None` if there cannot be such a table.
    pub(super) fn bytes(blocks: u64) -> Option<u64> {
        blocks.div_ceil(WINDOW_WORDS).checked_mul(WINDOW_BYTES)
    }

    /// Where the table is: tells tables apart.
    pub(super) fn base(&self) -> u64 {
        self.base
    }

    /// Where the word of a block stands in the file, in words.
    pub(super) fn word(&self, block: u64) -> u64 {
        self.base / WORD + block
    }

    /// The number of blocks that hold space.
    ///
    /// # Errors
    /// EIO: it is corrupt.
    pub(super) fn count(&self) -> Result<u64> {
        let mut cursor = self.cursor();
        let (mut block, mut count) = (0, 0);
        while block < self.blocks {
            let (state, holds) = cursor.load(block)?;
            count += u64::from(state.holds_space());
            block += holds;
        }
        Ok(count)
    }

    /// For looking at several blocks in a row.
    pub(super) fn cursor(&self) -> Cursor<'_> {
        Cursor { table: self, window: None }
    }

    fn window(&self, number: u64) -> Result<Arc<Window>> {
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(window) = windows.get(&number) {
            return Ok(Arc::clone(window));
        }
        if windows.len() >= MAX_WINDOWS {
            windows.clear();
        }
        let at = self.base + number * WINDOW_BYTES;
        let words = SharedWords::in_file(&self.file, at, WINDOW_WORDS as usize)?;
        let window = Arc::new(Window { words, pages: Default::default() });
        windows.insert(number, Arc::clone(&window));
        Ok(window)
    }

    /// How many blocks from `block`, the first of a page, stand in pages that do not exist.
    fn unwritten(&self, block: u64) -> Result<u64> {
        let at = self.base + block * WORD;
        let all = self.blocks - block;
        match lseek64(self.file.as_fd(), at as i64, Whence::SeekData) {
            Ok(data) => Ok(all.min((data as u64).saturating_sub(at) / WORD)),
            Err(Errno::ENXIO) => Ok(all),
            Err(errno) => Err(errno).or_error(|| "lseek SEEK_DATA: cow table"),
        }
    }
}

/// See [`Table::cursor`].
#[derive(Debug)]
pub(super) struct Cursor<'a> {
    table: &'a Table,
    window: Option<(u64, Arc<Window>)>,
}

impl Cursor<'_> {
    fn window(&mut self, block: u64) -> Result<&Window> {
        let number = block / WINDOW_WORDS;
        let window = match self.window.take() {
            Some((current, window)) if current == number => window,
            _ => self.table.window(number)?,
        };
        Ok(&self.window.insert((number, window)).1)
    }

    fn check(&self, block: u64) -> Result<()> {
        if block >= self.table.blocks {
            return Err(Error::new(Errno::EIO, format!("cow: there is no block {block}")));
        }
        Ok(())
    }

    /// Where a block stands, and for how many blocks from it on that holds, at least 1.
    pub(super) fn load(&mut self, block: u64) -> Result<(Block, u64)> {
        self.check(block)?;
        let table = self.table;
        let window = self.window(block)?;
        let page = (block % WINDOW_WORDS / PAGE_WORDS) as usize;
        let (known, bit) = (&window.pages[page / 64], 1 << (page % 64));
        if known.load(Ordering::Relaxed) & bit == 0 {
            let first = block / PAGE_WORDS * PAGE_WORDS;
            let unwritten = table.unwritten(first)?.saturating_sub(block - first);
            if unwritten > 0 {
                return Ok((Block::Absent, unwritten));
            }
            known.fetch_or(bit, Ordering::Relaxed);
        }
        let word = &window.words[(block % WINDOW_WORDS) as usize];
        // Pairs with the release in `store`: who sees the word sees the data written before it.
        Ok((Block::decode(word.load(Ordering::Acquire))?, 1))
    }

    /// Says where a block stands from now on. What it says must be true already.
    pub(super) fn store(&mut self, block: u64, state: Block) -> Result<()> {
        self.check(block)?;
        let word = &self.window(block)?.words[(block % WINDOW_WORDS) as usize];
        word.store(state.encode(), Ordering::Release);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(blocks: u64) -> Table {
        let file = Arc::new(SharedFile::in_memory("test", 1 << 62).unwrap());
        Table::new(file, WINDOW_BYTES * 3, blocks)
    }

    #[test]
    fn states_survive_encoding_and_nonsense_is_refused() {
        for state in [
            Block::Absent,
            Block::Present(0),
            Block::Present((1 << 62) - 2),
            Block::Trimmed(None),
            Block::Trimmed(Some(7)),
            Block::Unfreed(0),
        ] {
            assert_eq!(Block::decode(state.encode()).unwrap(), state);
        }
        for nonsense in [4, PRESENT, UNFREED, u64::MAX << 2] {
            assert!(Block::decode(nonsense).is_err(), "{nonsense}");
        }
    }

    #[test]
    fn looking_at_a_huge_table_costs_no_memory() {
        let table = table(1 << 47);
        let mut cursor = table.cursor();
        for i in 0..2000_u64 {
            let block = i * ((1 << 47) / 2000) + i;
            assert_eq!(cursor.load(block).unwrap(), (Block::Absent, (1 << 47) - block));
        }
        let stat = nix::sys::stat::fstat(table.file.as_fd()).unwrap();
        assert_eq!(stat.st_blocks, 0);
    }

    #[test]
    fn what_one_stores_another_loads() {
        let one = table(1 << 40);
        let other = Table::new(Arc::clone(&one.file), one.base, one.blocks);
        let block = (1 << 39) + 1000;
        one.cursor().store(block, Block::Present(5)).unwrap();
        let mut cursor = other.cursor();
        assert_eq!(cursor.load(block).unwrap(), (Block::Present(5), 1));
        assert_eq!(cursor.load(block + 1).unwrap(), (Block::Absent, 1));
        // Up to the page in which the block is.
        assert_eq!(cursor.load(3).unwrap(), (Block::Absent, block / 512 * 512 - 3));
        one.cursor().store(7, Block::Unfreed(6)).unwrap();
        one.cursor().store(8, Block::Trimmed(Some(8))).unwrap();
        assert_eq!(other.count().unwrap(), 2);
        assert!(cursor.load(1 << 40).is_err());
        assert!(cursor.store(1 << 40, Block::Absent).is_err());
    }
}
