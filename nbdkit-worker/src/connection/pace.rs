//! What the reading thread may do itself. It guesses from what it has seen: neither the kernel's page cache nor the
//! client tells beforehand.

#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};

/// A write that took longer, apart from the copying, may not have been one to memory.
const QUICK: Duration = Duration::from_micros(500);
/// Copying goes at half a GB/s at least: nanoseconds a byte.
const COPYING: u64 = 2;
/// So many writes after a long one are watched: what kept that one may have been another process on our processor.
const WATCHED: u32 = 16;
/// After a slow write others are done elsewhere for so many times as long as that one took.
const PENANCE: u32 = 10;

/// Where a write should be carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// By the reader.
    Inline,
    /// By the reader, once the requests in the pool are done: otherwise the reader would wait for
    /// them behind the same locks of the kernel, and take that for a slow disk.
    InlineAfterDrain,
    /// By the pool, if there is one.
    Elsewhere,
}

/// Whether writes are quick here: a page cache takes most at once, until it is full of what a disk has still to take,
/// and a disk without one never does. Handing over costs more than a quick write takes.
#[derive(Debug, Default)]
pub(super) struct Writes {
    /// Writes still to be watched.
    watch: u32,
    slow_until: Option<Instant>,
}

impl Writes {
    /// Where the next write should be carried out. Reads the clock only while writes go elsewhere.
    #[inline]
    pub(super) fn verdict(&self) -> Verdict {
        match self.slow_until {
            None => Verdict::Inline,
            Some(until) if Instant::now() < until => Verdict::Elsewhere,
            Some(_) => Verdict::InlineAfterDrain,
        }
    }

    /// Carries writes out inline again.
    pub(super) fn resume(&mut self) {
        *self = Writes::default();
    }

    /// Carries out a write of `count` bytes and remembers how that went.
    pub(super) fn time<T>(&mut self, count: usize, write: impl FnOnce() -> T) -> T {
        let before = if self.watch > 0 { waits() } else { 0 };
        let start = Instant::now();
        let result = write();
        let time = start.elapsed();
        let long = time > QUICK + Duration::from_nanos(COPYING * count as u64);
        if self.watch > 0 {
            self.watch -= 1;
            if long && before != waits() {
                self.slow_until = start.checked_add(time * (PENANCE + 1));
            }
        } else if long {
            self.watch = WATCHED;
        }
        result
    }
}

/// How often this thread has waited for something, which is not to say for a processor.
fn waits() -> i64 {
    getrusage(UsageWho::RUSAGE_THREAD).map_or(0, |usage| usage.voluntary_context_switches())
}

/// How long to look for another request. Clients like libnbd and the kernel's send one by one and need a few
/// microseconds for each.
const GLANCE: Duration = Duration::from_micros(12);
/// How long to leave the socket alone in between.
const BLINK: Duration = Duration::from_micros(1);
/// So many requests are a batch that need not wait for more.
const ENOUGH: usize = 12;

/// Whether to look for another request before the replies at hand are sent: a client that keeps many under way has
/// often sent the next by now, or is about to, and one batch takes fewer calls than two, of the client too; one that waits
/// for each reply has not, and is not kept waiting.
#[derive(Debug, Default)]
pub(super) struct Looking {
    /// Times in a row that there was none, and times left not to look.
    misses: u32,
    rest: u32,
}

impl Looking {
    /// The longest rest, in batches.
    const MAX_REST: u32 = 256;

    /// Whether to look this time.
    pub(super) fn is_worth_it(&mut self) -> bool {
        if self.rest > 0 {
            self.rest -= 1;
            return false;
        }
        true
    }

    /// Looks by `look` until it finds something, for a moment if there is another processor for the client to run on and
    /// the batch is small.
    ///
    /// # Errors
    /// Those of `look`.
    pub(super) fn look<E>(
        &mut self,
        batch: usize,
        alone: bool,
        mut look: impl FnMut() -> Result<bool, E>,
    ) -> Result<(), E> {
        let mut found = look()?;
        if !found && !alone && batch < ENOUGH {
            let start = Instant::now();
            let mut next = BLINK;
            while !found && next < GLANCE {
                if start.elapsed() < next {
                    std::hint::spin_loop();
                    continue;
                }
                found = look()?;
                next = start.elapsed() + BLINK;
            }
        }
        self.found(found);
        Ok(())
    }

    /// Whether there was something.
    fn found(&mut self, any: bool) {
        self.misses = if any { 0 } else { self.misses + 1 };
        // The end of every burst is a miss, which says nothing; several in a row do.
        self.rest =
            if self.misses > 2 { (1 << (self.misses - 2).min(16)).min(Self::MAX_REST) } else { 0 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait(millis: u64) {
        std::thread::sleep(Duration::from_millis(millis));
    }

    #[test]
    fn writes_that_wait_send_the_next_ones_elsewhere_for_a_while() {
        let mut writes = Writes::default();
        writes.time(4096, || wait(20));
        assert_eq!(writes.verdict(), Verdict::Inline, "one may be chance");
        writes.time(4096, || wait(20));
        assert_eq!(writes.verdict(), Verdict::Elsewhere);
        wait(400);
        assert_eq!(writes.verdict(), Verdict::InlineAfterDrain);
    }

    #[test]
    fn writes_that_copy_much_or_lose_their_processor_are_not_slow() {
        let mut writes = Writes::default();
        for _ in 0..3 {
            writes.time(64 << 20, || wait(1));
            // It takes long, but waits for nothing.
            let end = Instant::now() + Duration::from_millis(2);
            writes.time(4096, || while Instant::now() < end {});
        }
        assert_eq!(writes.verdict(), Verdict::Inline);
    }

    /// How often it looks for something that comes at the look number `found`.
    fn looks(batch: usize, alone: bool, found: u32) -> u32 {
        let mut looks = 0;
        Looking::default()
            .look(batch, alone, || {
                looks += 1;
                Ok::<_, ()>(looks == found)
            })
            .unwrap();
        looks
    }

    #[test]
    fn a_small_batch_waits_a_moment_for_more_if_the_client_can_run_meanwhile() {
        assert_eq!(looks(1, false, 1), 1);
        // Whoever is kept from its processor may look less often.
        let in_vain = (0..100).map(|_| looks(1, false, u32::MAX)).max().unwrap();
        assert!((2..=13).contains(&in_vain), "{in_vain}");
        assert!((0..100).any(|_| looks(1, false, 2) == 2));
        assert_eq!(looks(1, true, u32::MAX), 1);
        assert_eq!(looks(ENOUGH, false, u32::MAX), 1);
    }

    #[test]
    fn looking_in_vain_becomes_rare_and_success_makes_it_usual_again() {
        let mut looking = Looking::default();
        let mut looked = 0;
        for _ in 0..1000 {
            if looking.is_worth_it() {
                looked += 1;
                looking.found(false);
            }
        }
        assert!((10..40).contains(&looked), "{looked}");
        while !looking.is_worth_it() {}
        looking.found(true);
        assert!(looking.is_worth_it());
    }
}
