//! The blocks of an image that one client has had read or decompressed, the most recently used
//! ones.

#![forbid(unsafe_code)]

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::error::Result;

/// At most `depth` blocks, those that are being decompressed counted.
#[derive(Debug)]
pub struct BlockCache {
    depth: usize,
    state: Mutex<State>,
    /// A block is ready, or could not be made.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    entries: Vec<Entry>,
    /// Counts uses.
    clock: u64,
}

#[derive(Debug)]
struct Entry {
    number: u64,
    used: u64,
    /// `None` while a thread decompresses it.
    data: Option<Arc<Vec<u8>>>,
}

impl BlockCache {
    /// An empty one for `depth` blocks, at least 1.
    pub fn new(depth: usize) -> BlockCache {
        BlockCache { depth, state: Mutex::default(), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The block with this number, if it is in the cache.
    pub fn kept(&self, number: u64) -> Option<Arc<Vec<u8>>> {
        let mut state = self.lock();
        state.clock += 1;
        let clock = state.clock;
        let entry = state.entries.iter_mut().find(|entry| entry.number == number)?;
        let data = entry.data.clone()?;
        entry.used = clock;
        Some(data)
    }

    /// The block with this number: from the cache, from the thread that decompresses it now, or by
    /// `decode`, in place of the block that was not used for longest.
    ///
    /// # Errors
    /// Those of `decode`.
    pub fn get(
        &self,
        number: u64,
        decode: impl FnOnce() -> Result<Vec<u8>>,
    ) -> Result<Arc<Vec<u8>>> {
        let mut state = self.lock();
        loop {
            state.clock += 1;
            let clock = state.clock;
            let found = state.entries.iter_mut().find(|entry| entry.number == number);
            if let Some(entry) = found {
                if let Some(data) = &entry.data {
                    entry.used = clock;
                    return Ok(Arc::clone(data));
                }
            } else if state.has_room(self.depth) {
                state.entries.push(Entry { number, used: clock, data: None });
                break;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        drop(state);
        let decoding = Decoding { cache: self, number };
        let data = Arc::new(decode()?);
        let found = |entry: &&mut Entry| entry.number == number;
        if let Some(entry) = self.lock().entries.iter_mut().find(found) {
            entry.data = Some(Arc::clone(&data));
        }
        drop(decoding);
        Ok(data)
    }
}

impl State {
    /// Whether there is room for one more entry, if need be after evicting one.
    fn has_room(&mut self, depth: usize) -> bool {
        if self.entries.len() < depth {
            return true;
        }
        let ready = self.entries.iter().enumerate().filter(|(_, entry)| entry.data.is_some());
        let Some((oldest, _)) = ready.min_by_key(|(_, entry)| entry.used) else { return false };
        self.entries.swap_remove(oldest);
        true
    }
}

/// The attempt to make a block. Its entry is removed unless it has succeeded by the end, also if
/// that is a panic.
struct Decoding<'a> {
    cache: &'a BlockCache,
    number: u64,
}

impl Drop for Decoding<'_> {
    fn drop(&mut self) {
        self.cache
            .lock()
            .entries
            .retain(|entry| entry.number != self.number || entry.data.is_some());
        self.cache.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Errno, Error};
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn the_block_that_was_not_used_for_longest_is_evicted() {
        let cache = BlockCache::new(2);
        let made = AtomicU64::new(0);
        let get = |number: u64| {
            let data = cache.get(number, || {
                made.fetch_add(1, Ordering::Relaxed);
                Ok(vec![number as u8])
            });
            assert_eq!(*data.unwrap(), [number as u8]);
            made.load(Ordering::Relaxed)
        };
        assert_eq!([1, 2, 1, 3, 1, 2].map(get), [1, 2, 2, 3, 3, 4]);
        // A look is a use, too, and makes nothing.
        assert!(cache.kept(3).is_none());
        assert_eq!(*cache.kept(1).unwrap(), [1]);
        assert_eq!([3, 1, 2].map(get), [5, 5, 6]);
    }

    #[test]
    fn one_thread_makes_a_block_and_others_wait_for_it() {
        let cache = BlockCache::new(1);
        let (made, begun) = (AtomicU64::new(0), Barrier::new(2));
        std::thread::scope(|scope| {
            let first = scope.spawn(|| {
                cache.get(7, || {
                    begun.wait();
                    made.fetch_add(1, Ordering::Relaxed);
                    Ok(vec![7])
                })
            });
            // The entry is there once the first has begun, and the second finds it.
            while cache.lock().entries.is_empty() {
                std::thread::yield_now();
            }
            assert!(cache.kept(7).is_none(), "it is being made");
            let second = scope.spawn(|| cache.get(7, || panic!("made twice")));
            begun.wait();
            assert_eq!(*first.join().unwrap().unwrap(), [7]);
            assert_eq!(*second.join().unwrap().unwrap(), [7]);
        });
        assert_eq!(made.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_block_that_failed_is_tried_again() {
        let cache = BlockCache::new(1);
        let failed = cache.get(1, || Err(Error::silent(Errno::EIO)));
        assert_eq!(failed.unwrap_err().errno(), Errno::EIO);
        assert!(cache.kept(1).is_none());
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            cache.get(1, || panic!("in the middle"))
        }));
        assert!(panicked.is_err());
        assert_eq!(*cache.get(1, || Ok(vec![5])).unwrap(), [5]);
    }
}
