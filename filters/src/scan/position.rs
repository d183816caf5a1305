//! Where the scan goes on: one word, in shared memory or of one connection. Any value may stand in
//! shared memory.

use std::sync::atomic::{AtomicU64, Ordering};

use nbdkit_api::Result;
use nbdkit_api::shared::SharedWords;

/// The offset of the next block.
#[derive(Debug)]
pub(super) enum Position {
    Shared(SharedWords),
    Own(AtomicU64),
}

impl Position {
    /// One for all workers, made before the first fork.
    ///
    /// # Errors
    /// ENOMEM.
    pub(super) fn shared() -> Result<Position> {
        Ok(Position::Shared(SharedWords::new(1)?))
    }

    /// One of a connection.
    pub(super) fn own() -> Position {
        Position::Own(AtomicU64::new(0))
    }

    fn word(&self) -> &AtomicU64 {
        match self {
            Position::Shared(words) => &words[0],
            Position::Own(word) => word,
        }
    }

    /// Takes the next block of a disk, which nobody else gets: its offset and length. `None` at the
    /// end, unless it goes on from the beginning `forever`.
    pub(super) fn take(&self, block: u64, size: u64, forever: bool) -> Option<(u64, u64)> {
        if size == 0 {
            return None;
        }
        let mut seen = self.word().load(Ordering::Relaxed);
        loop {
            let offset = if seen < size {
                seen
            } else if forever {
                0
            } else {
                return None;
            };
            let count = block.min(size - offset);
            let next = offset + count;
            match self.word().compare_exchange(seen, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Some((offset, count)),
                Err(now) => seen = now,
            }
        }
    }

    /// Skips what is before `offset`.
    pub(super) fn skip_to(&self, offset: u64) {
        self.word().fetch_max(offset, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_taken_in_order_and_may_be_skipped() {
        for position in [Position::shared().unwrap(), Position::own()] {
            let take = |forever| position.take(100, 1050, forever);
            assert_eq!(take(false), Some((0, 100)));
            position.skip_to(50);
            assert_eq!(take(false), Some((100, 100)));
            position.skip_to(933);
            assert_eq!(take(false), Some((933, 100)));
            assert_eq!(take(false), Some((1033, 17)));
            assert_eq!(take(false), None);
            assert_eq!(take(true), Some((0, 100)));
        }
    }

    #[test]
    fn a_position_of_any_value_gives_blocks_within_the_disk() {
        let position = Position::shared().unwrap();
        for word in [1049, 1050, 1051, u64::MAX - 1, u64::MAX] {
            for (size, forever) in [(1050, true), (1050, false), (0, true), (u64::MAX, true)] {
                position.word().store(word, Ordering::Relaxed);
                if let Some((offset, count)) = position.take(1 << 20, size, forever) {
                    assert!(
                        count > 0 && offset.checked_add(count).unwrap() <= size,
                        "{word} {size}"
                    );
                }
            }
        }
    }
}
