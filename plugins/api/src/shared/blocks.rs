//! A word of state per block of a disk, in memory that all workers map: which blocks are cached,
//! copied, or written, and where.
//!
//! The map of a large disk is larger than any memory; it is sparse, mapped a window at a time,
//! and pages of it that nobody wrote are not touched: reading a disk must not cost memory. A
//! hostile worker may have scribbled on any word, so the user's [`BlockState::decode`] checks each.

#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::marker::PhantomData;
use std::os::fd::AsFd;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};

use nix::unistd::{Whence, lseek64};

use crate::error::{Errno, Error, Result, ResultExt};
use crate::shared::access;
use crate::shared::{SharedFile, SharedWords};

const WORD: u64 = size_of::<u64>() as u64;
/// Words in a page, the unit in which a map is sparse.
const PAGE_WORDS: u64 = 4096 / WORD;
/// Words in a window.
const WINDOW_WORDS: u64 = 1 << 17;
/// Bytes of a window; maps begin at multiples of it.
pub(super) const WINDOW_BYTES: u64 = WINDOW_WORDS * WORD;
const WINDOW_PAGES: usize = (WINDOW_WORDS / PAGE_WORDS) as usize;
/// Most windows that a connection keeps mapped. Processes may have some 65000 mappings.
const MAX_WINDOWS: usize = 1024;

/// What a user of a [`SharedBlockMap`] knows about a block, as a word. The word 0 is a block that
/// nobody has stored: [`ABSENT`](Self::ABSENT).
pub trait BlockState: Copy + Eq {
    /// The state of a block before the first store. Encoded as 0, and nothing else is.
    const ABSENT: Self;

    /// The word that stands for this state.
    fn encode(self) -> u64;

    /// The state that a word stands for. The word may be any: another worker may be hostile.
    ///
    /// # Errors
    /// EIO: the word stands for nothing.
    fn decode(word: u64) -> Result<Self>;
}

/// The map of one export, in a file that several maps share. Made by
/// [`SharedBlockMaps`](crate::shared::SharedBlockMaps), by every worker that opens the export.
#[derive(Debug)]
pub struct SharedBlockMap<S> {
    file: Arc<SharedFile>,
    base: u64,
    blocks: u64,
    windows: Mutex<HashMap<u64, Arc<Window>>>,
    state: PhantomData<fn() -> S>,
}

#[derive(Debug)]
struct Window {
    words: SharedWords,
    /// A bit per page that is known to exist. A page that a hostile worker frees reads as zeroes.
    pages: [AtomicU64; WINDOW_PAGES.div_ceil(64)],
}

/// Bytes of the map of a disk of `blocks` blocks; `None` if there cannot be such a map.
pub(super) fn bytes(blocks: u64) -> Option<u64> {
    blocks.div_ceil(WINDOW_WORDS).checked_mul(WINDOW_BYTES)
}

impl<S: BlockState> SharedBlockMap<S> {
    /// The map that begins at byte `base` of `file`, which is long enough.
    pub(super) fn new(file: Arc<SharedFile>, base: u64, blocks: u64) -> SharedBlockMap<S> {
        SharedBlockMap { file, base, blocks, windows: Mutex::default(), state: PhantomData }
    }

    /// The number of blocks of the disk.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Where the word of a block stands in the file of all maps, in words: tells blocks apart, also
    /// those of different maps. For [`SharedBlockMaps::word_at`](super::SharedBlockMaps::word_at).
    pub fn position(&self, block: u64) -> u64 {
        self.base / WORD + block
    }

    /// For looking at several blocks in a row.
    pub fn cursor(&self) -> BlockCursor<'_, S> {
        BlockCursor { map: self, window: None }
    }

    /// The blocks that are not absent, and their states, in ascending order. Costs a system call
    /// for each run of pages that nobody wrote, and one for each other page when it is first seen.
    pub fn present(&self) -> Present<'_, S> {
        Present { cursor: self.cursor(), at: 0 }
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
            Err(errno) => Err(errno).or_error(|| "lseek SEEK_DATA: table of blocks"),
        }
    }
}

/// See [`SharedBlockMap::cursor`]. Keeps the last window at hand.
#[derive(Debug)]
pub struct BlockCursor<'a, S> {
    map: &'a SharedBlockMap<S>,
    window: Option<(u64, Arc<Window>)>,
}

impl<S: BlockState> BlockCursor<'_, S> {
    /// The word of a block, and the window it is in.
    fn window(&mut self, block: u64) -> Result<&Window> {
        if block >= self.map.blocks {
            return Err(Error::new(Errno::EIO, format!("there is no block {block}")));
        }
        let number = block / WINDOW_WORDS;
        let window = match self.window.take() {
            Some((current, window)) if current == number => window,
            _ => self.map.window(number)?,
        };
        Ok(&self.window.insert((number, window)).1)
    }

    /// The state of a block, and for how many blocks from it on that holds, at least 1.
    ///
    /// Who sees a state sees all that was written to other shared memory and files before it was
    /// stored.
    ///
    /// # Errors
    /// EIO: no such block, or its word stands for nothing. ENOMEM: the window cannot be mapped.
    pub fn load(&mut self, block: u64) -> Result<(S, u64)> {
        let map = self.map;
        let window = self.window(block)?;
        let page = (block % WINDOW_WORDS / PAGE_WORDS) as usize;
        let (known, bit) = (&window.pages[page / 64], 1 << (page % 64));
        if access::peek(known) & bit == 0 {
            let first = block / PAGE_WORDS * PAGE_WORDS;
            let unwritten = map.unwritten(first)?.saturating_sub(block - first);
            if unwritten > 0 {
                return Ok((S::ABSENT, unwritten));
            }
            access::mark(known, bit);
        }
        let word = &window.words[(block % WINDOW_WORDS) as usize];
        Ok((S::decode(access::load(word))?, 1))
    }

    /// Stores the state of a block, without regard to what it was: for the holder of the block's
    /// [`BlockLock`](super::BlockLock). What it stands for must be so already.
    ///
    /// # Errors
    /// EIO: no such block. ENOMEM: the window cannot be mapped.
    pub fn store(&mut self, block: u64, state: S) -> Result<()> {
        let word = &self.window(block)?.words[(block % WINDOW_WORDS) as usize];
        access::store(word, state.encode());
        Ok(())
    }

    /// Stores `to` if the state of the block is `from`: for states that change without a lock.
    /// Returns whether it was.
    ///
    /// # Errors
    /// EIO: no such block. ENOMEM: the window cannot be mapped.
    pub fn exchange(&mut self, block: u64, from: S, to: S) -> Result<bool> {
        let word = &self.window(block)?.words[(block % WINDOW_WORDS) as usize];
        Ok(access::exchange(word, from.encode(), to.encode()).is_ok())
    }
}

/// See [`SharedBlockMap::present`].
#[derive(Debug)]
pub struct Present<'a, S> {
    cursor: BlockCursor<'a, S>,
    at: u64,
}

impl<S: BlockState> Iterator for Present<'_, S> {
    type Item = Result<(u64, S)>;

    /// A word that stands for nothing is an error, and the iteration goes on behind it.
    fn next(&mut self) -> Option<Self::Item> {
        while self.at < self.cursor.map.blocks {
            let block = self.at;
            match self.cursor.load(block) {
                Ok((state, holds)) => {
                    self.at = block.saturating_add(holds);
                    if state != S::ABSENT {
                        return Some(Ok((block, state)));
                    }
                }
                Err(error) => {
                    self.at = block + 1;
                    return Some(Err(error));
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::stat::fstat;

    /// Of a write-back cache: when the block was last used, in the upper bits.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Cached {
        Absent,
        Clean(u32),
        Dirty(u32),
    }

    impl BlockState for Cached {
        const ABSENT: Cached = Cached::Absent;

        fn encode(self) -> u64 {
            match self {
                Cached::Absent => 0,
                Cached::Clean(used) => u64::from(used) << 2 | 1,
                Cached::Dirty(used) => u64::from(used) << 2 | 2,
            }
        }

        fn decode(word: u64) -> Result<Cached> {
            let used = u32::try_from(word >> 2);
            match (word & 3, used) {
                (0, Ok(0)) => Ok(Cached::Absent),
                (1, Ok(used)) => Ok(Cached::Clean(used)),
                (2, Ok(used)) => Ok(Cached::Dirty(used)),
                _ => Err(Error::new(Errno::EIO, "cache: the table of blocks is corrupt")),
            }
        }
    }

    fn map(blocks: u64) -> SharedBlockMap<Cached> {
        let file = Arc::new(SharedFile::in_memory("test", 1 << 62).unwrap());
        SharedBlockMap::new(file, WINDOW_BYTES * 3, blocks)
    }

    fn another(map: &SharedBlockMap<Cached>) -> SharedBlockMap<Cached> {
        SharedBlockMap::new(Arc::clone(&map.file), map.base, map.blocks)
    }

    #[test]
    fn looking_at_a_huge_map_costs_no_memory() {
        let map = map(1 << 47);
        let mut cursor = map.cursor();
        for i in 0..2000_u64 {
            let block = i * ((1 << 47) / 2000) + i;
            assert_eq!(cursor.load(block).unwrap(), (Cached::Absent, (1 << 47) - block));
        }
        assert!(map.present().next().is_none());
        assert_eq!(fstat(map.file.as_fd()).unwrap().st_blocks, 0);
    }

    /// The largest disk in the smallest blocks that any filter has.
    #[test]
    fn the_last_block_of_the_largest_disk_has_a_word() {
        let blocks = (i64::MAX as u64).div_ceil(512);
        let map = map(blocks);
        map.cursor().store(blocks - 1, Cached::Dirty(9)).unwrap();
        map.cursor().store(0, Cached::Clean(1)).unwrap();
        let present: Vec<_> = map.present().map(Result::unwrap).collect();
        assert_eq!(present, [(0, Cached::Clean(1)), (blocks - 1, Cached::Dirty(9))]);
        assert_eq!(fstat(map.file.as_fd()).unwrap().st_blocks, 2 * 4096 / 512);
    }

    #[test]
    fn what_one_stores_another_loads() {
        let one = map(1 << 40);
        let other = another(&one);
        let block = (1 << 39) + 1000;
        one.cursor().store(block, Cached::Clean(5)).unwrap();
        let mut cursor = other.cursor();
        assert_eq!(cursor.load(block).unwrap(), (Cached::Clean(5), 1));
        assert_eq!(cursor.load(block + 1).unwrap(), (Cached::Absent, 1));
        // Up to the page in which the block is.
        assert_eq!(cursor.load(3).unwrap(), (Cached::Absent, block / 512 * 512 - 3));
        assert!(cursor.load(1 << 40).is_err());
        assert!(cursor.store(1 << 40, Cached::Absent).is_err());
    }

    #[test]
    fn a_state_is_exchanged_only_for_the_one_that_was_expected() {
        let map = map(10);
        let mut cursor = map.cursor();
        assert!(cursor.exchange(7, Cached::Absent, Cached::Dirty(1)).unwrap());
        assert!(!cursor.exchange(7, Cached::Clean(1), Cached::Absent).unwrap());
        assert!(cursor.exchange(7, Cached::Dirty(1), Cached::Clean(2)).unwrap());
        assert_eq!(cursor.load(7).unwrap().0, Cached::Clean(2));
    }

    #[test]
    fn the_iteration_goes_on_behind_a_word_that_stands_for_nothing() {
        let map = map(5000);
        for block in [0, 1, 4, 4999] {
            map.cursor().store(block, Cached::Dirty(block as u32)).unwrap();
        }
        map.file.write_at(&u64::MAX.to_ne_bytes(), map.base + 3 * WORD).unwrap();
        let seen: Vec<_> = map.present().map(|it| it.ok().map(|(block, _)| block)).collect();
        assert_eq!(seen, [Some(0), Some(1), None, Some(4), Some(4999)]);
    }

    /// What the iteration skips it does not look at: the time is that of one page, not of 2^54.
    #[test]
    fn what_was_made_absent_again_is_passed_over() {
        let map = map(1 << 54);
        map.cursor().store(1 << 53, Cached::Dirty(1)).unwrap();
        map.cursor().store(1 << 53, Cached::Absent).unwrap();
        assert!(map.present().next().is_none());
    }
}
