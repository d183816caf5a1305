//! Policy: whether the reader carries out writes to a local device itself.
//!
//! A page cache takes most writes at once, until it is full of data that the disk has still to
//! write; a disk without a page cache never does. Handing a write off to the pool costs two
//! wake-ups, more than a write to memory. Neither the kernel nor the client announces which kind a
//! write will be, so the policy goes by how long the last ones took and whether the thread slept.

#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};

use super::pin::{self, Pin};

/// A write that took longer, apart from copying, may have waited for a device. Ten times what a
/// hand-off to the pool costs on a slow machine, and less than a scheduler's time slice. It only
/// decides which writes are examined: whether one waited is in the kernel's counters.
const LONG: Duration = Duration::from_micros(500);
/// Time allowed for copying, nanoseconds per byte: half a GB/s, several times slower than the
/// memory of any machine.
const COPY: u64 = 2;
/// After a long write, this many are examined: what delayed the first may have been another process
/// on this processor.
const EXAMINED: u32 = 16;
/// After a slow write, writes go to the pool for this many times as long as the slow one took: to
/// try again costs the reader at most a tenth of its time.
const PAUSE: u32 = 10;

/// Where a write should be carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// By the reader.
    Inline,
    /// By the reader, once the requests in the pool are done: otherwise the reader would wait for
    /// them behind the same locks of the kernel, and take that for a slow disk.
    InlineAfterDrain,
    /// By the pool, if there is one.
    Pool,
}

/// How the last writes of a connection went.
#[derive(Debug)]
pub(super) struct InlineWrites {
    /// Writes still to be examined.
    examine: u32,
    /// When writes may be carried out inline again, after a slow one.
    slow_until: Option<Instant>,
    pin: Option<Pin>,
}

impl Default for InlineWrites {
    fn default() -> InlineWrites {
        InlineWrites { examine: 0, slow_until: None, pin: Pin::of(pin::WRITES) }
    }
}

impl InlineWrites {
    /// Where the next write should be carried out. Reads the clock only while writes go to the
    /// pool.
    #[inline]
    pub(super) fn verdict(&self) -> Verdict {
        self.verdict_at(Instant::now)
    }

    #[inline]
    fn verdict_at(&self, now: impl FnOnce() -> Instant) -> Verdict {
        match self.slow_until {
            _ if self.pin == Some(Pin::Always) => Verdict::Inline,
            _ if self.pin == Some(Pin::Never) => Verdict::Pool,
            None => Verdict::Inline,
            Some(until) if now() < until => Verdict::Pool,
            Some(_) => Verdict::InlineAfterDrain,
        }
    }

    /// Carries writes out inline again.
    pub(super) fn resume(&mut self) {
        (self.examine, self.slow_until) = (0, None);
    }

    /// Carries out a write of `count` bytes inline and records how it went.
    pub(super) fn time<T>(&mut self, count: usize, write: impl FnOnce() -> T) -> T {
        let before = if self.examine > 0 { sleeps() } else { 0 };
        let start = Instant::now();
        let result = write();
        self.record(count, start, start.elapsed(), || before != sleeps());
        result
    }

    /// Records that a write of `count` bytes took `time`; `slept` is asked only about a long write
    /// that is examined.
    fn record(
        &mut self,
        count: usize,
        start: Instant,
        time: Duration,
        slept: impl FnOnce() -> bool,
    ) {
        let long = time > LONG + Duration::from_nanos(COPY.saturating_mul(count as u64));
        if self.examine > 0 {
            self.examine -= 1;
            if long && slept() {
                self.slow_until = start.checked_add(time * (PAUSE + 1));
            }
        } else if long {
            self.examine = EXAMINED;
        }
    }
}

/// How often this thread has slept, as opposed to being preempted. getrusage(2), `ru_nvcsw`.
pub(super) fn sleeps() -> i64 {
    getrusage(UsageWho::RUSAGE_THREAD).map_or(0, |usage| usage.voluntary_context_switches())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const BLOCK: usize = 4096;

    #[test]
    fn a_pinned_policy_does_not_look_at_what_writes_take() {
        for (pin, verdict) in [(Pin::Always, Verdict::Inline), (Pin::Never, Verdict::Pool)] {
            let mut writes = InlineWrites { pin: Some(pin), ..InlineWrites::default() };
            assert_eq!(writes.verdict(), verdict);
            for _ in 0..3 {
                writes.record(4096, Instant::now(), Duration::from_secs(1), || true);
                assert_eq!(writes.verdict(), verdict);
            }
            writes.resume();
            assert_eq!(writes.verdict(), verdict);
        }
    }

    #[test]
    fn a_long_write_that_slept_sends_writes_to_the_pool_for_ten_times_as_long() {
        let start = Instant::now();
        let mut writes = InlineWrites::default();
        writes.record(BLOCK, start, 20 * MS, || unreachable!("not examined"));
        assert_eq!(writes.verdict_at(|| start), Verdict::Inline, "one may be chance");
        writes.record(BLOCK, start, 20 * MS, || true);
        let verdict = |after| writes.verdict_at(|| start + after);
        assert_eq!(verdict(20 * MS), Verdict::Pool);
        assert_eq!(verdict(219 * MS), Verdict::Pool);
        assert_eq!(verdict(220 * MS), Verdict::InlineAfterDrain);
        writes.resume();
        assert_eq!(writes.verdict_at(|| unreachable!("no clock")), Verdict::Inline);
    }

    #[test]
    fn a_write_that_was_preempted_or_copies_much_is_not_slow() {
        let start = Instant::now();
        let mut writes = InlineWrites::default();
        for _ in 0..3 {
            writes.record(BLOCK, start, 20 * MS, || false);
            writes.record(64 << 20, start, 100 * MS, || unreachable!("not long"));
        }
        assert_eq!(writes.verdict_at(|| start), Verdict::Inline);
    }

    #[test]
    fn a_long_write_is_chance_unless_another_follows_soon() {
        let start = Instant::now();
        for (between, expected) in [(EXAMINED - 1, Verdict::Pool), (EXAMINED, Verdict::Inline)] {
            let mut writes = InlineWrites::default();
            writes.record(BLOCK, start, MS, || unreachable!("not examined"));
            for _ in 0..between {
                writes.record(BLOCK, start, LONG, || unreachable!("not long"));
            }
            writes.record(BLOCK, start, MS, || true);
            assert_eq!(writes.verdict_at(|| start + MS), expected, "{between} writes between");
        }
    }

    /// The kernel's count behind it.
    #[test]
    fn a_write_that_sleeps_is_told_from_one_that_computes() {
        let mut slept = InlineWrites { examine: 1, ..InlineWrites::default() };
        slept.time(BLOCK, || std::thread::sleep(20 * MS));
        assert_eq!(slept.verdict(), Verdict::Pool);
        let mut computed = InlineWrites { examine: 1, ..InlineWrites::default() };
        let end = Instant::now() + 2 * MS;
        computed.time(BLOCK, || while Instant::now() < end {});
        assert_eq!(computed.verdict(), Verdict::Inline);
    }
}
