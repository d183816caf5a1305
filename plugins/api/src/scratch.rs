//! Memory for what is read and thrown away: emulated NBD_CMD_CACHE.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Largest buffer, and the most that all buffers of a process have together beyond [`SMALL`] each,
/// bytes: the longest request that a plugin may get. nbdkit-plugin(3), `.pread`.
const LARGE: usize = 64 << 20;
/// What a buffer has when others have taken the rest, bytes.
const SMALL: usize = 256 << 10;

/// What is left of [`LARGE`].
static LEFT: AtomicUsize = AtomicUsize::new(LARGE);

/// A buffer that is as long as it helps and as the process can afford.
pub(crate) struct Scratch {
    pub(crate) buf: Vec<u8>,
    taken: usize,
}

impl Scratch {
    /// A buffer for reading a range of `count` bytes in pieces: of `count` bytes, or 64 MiB, or
    /// less if others are in use.
    pub(crate) fn new(count: u64) -> Scratch {
        let wanted = count.min(LARGE as u64) as usize;
        let mut taken = 0;
        if wanted > SMALL {
            let take = |left: usize| {
                taken = wanted.min(left);
                Some(left - taken)
            };
            let _ = LEFT.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
        }
        Scratch { buf: vec![0; taken.max(wanted.min(SMALL))], taken }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        LEFT.fetch_add(self.taken, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_large_while_there_is_enough_for_all() {
        let first = Scratch::new(48 << 20);
        assert_eq!(first.buf.len(), 48 << 20);
        let second = Scratch::new(u64::MAX);
        assert_eq!(second.buf.len(), 16 << 20);
        let third = Scratch::new(u64::MAX);
        assert_eq!(third.buf.len(), SMALL);
        assert_eq!(Scratch::new(1000).buf.len(), 1000);
        drop((first, second, third));
        assert_eq!(Scratch::new(u64::MAX).buf.len(), LARGE);
    }
}
