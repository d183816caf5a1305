//! Locks on ranges of a disk, shared or exclusive, between all processes.
//!
//! A table of fixed size has a line for each range that is locked. A line names the process that
//! holds it, which is found dead as the holder of a [`SharedMutex`] is.

#![forbid(unsafe_code)]

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::client::Client;
use crate::error::Result;
use crate::shared::presence::{self, Presence};
use crate::shared::{SharedEvent, SharedMutex, SharedWords, access};

/// Ranges that may be locked at the same time. A worker has 16 threads by default (`-t`); a
/// locker that finds the table full waits. Few in tests, which kill a process at every access to
/// each.
const LINES: usize = if cfg!(test) { 8 } else { 256 };

/// Ranges of one disk. Made before the first fork.
#[derive(Debug)]
pub struct RangeLock {
    /// Held while the table is searched and a line is written.
    table: SharedMutex<0>,
    /// For each line the [`Holder`], then for each line where its range begins and ends.
    words: SharedWords,
    /// A line is free again.
    released: SharedEvent,
    presence: &'static Presence,
    /// The lines of this process: others in its name are those of an earlier process of its number.
    own: Mutex<Own>,
}

/// The lines of a process. A fork finds its parent's here, and none of them is its own.
#[derive(Debug)]
struct Own {
    process: u32,
    lines: [bool; LINES],
}

/// Who else may have a range at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// Readers.
    Shared,
    /// No owner.
    Exclusive,
}

/// Who holds a line, or 0. Any value may stand there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Holder(u64);

impl Holder {
    const FREE: Holder = Holder(0);
    const EXCLUSIVE: u64 = 1 << 32;

    fn new(process: u32, sharing: Sharing) -> Holder {
        let exclusive = if sharing == Sharing::Exclusive { Holder::EXCLUSIVE } else { 0 };
        Holder(u64::from(process) | exclusive)
    }

    fn process(self) -> u32 {
        self.0 as u32
    }

    fn is_exclusive(self) -> bool {
        self.0 & Holder::EXCLUSIVE != 0
    }
}

impl RangeLock {
    /// # Errors
    /// ENOMEM, EMFILE.
    pub fn new() -> Result<RangeLock> {
        Ok(RangeLock {
            table: SharedMutex::new([])?,
            words: SharedWords::new(3 * LINES)?,
            released: SharedEvent::new()?,
            presence: presence::of_mutexes()?,
            own: Mutex::new(Own { process: 0, lines: [false; LINES] }),
        })
    }

    /// Waits until no other holder has a part of `range` that does not go together with this, and
    /// until there is room in the table. In the name of `client`. Bytes or blocks, as the caller
    /// likes; an empty range is in nobody's way.
    ///
    /// Nobody is ahead of others by having waited longer: where readers follow each other without a
    /// gap, a writer waits. A thread that has a range waits for itself if it locks part of it.
    ///
    /// # Errors
    /// ESHUTDOWN: the client has gone, or the server stops.
    pub fn lock(
        &self,
        client: Option<&Client>,
        range: Range<u64>,
        sharing: Sharing,
    ) -> Result<LockedRange<'_>> {
        self.released.wait_until(client, || {
            let _table = self.table.lock_for(client)?;
            Ok(self.take(&range, sharing))
        })
    }

    /// Writes a line for `range`, unless another range is in the way. The caller has the table.
    fn take(&self, range: &Range<u64>, sharing: Sharing) -> Option<LockedRange<'_>> {
        let me = self.presence.enter();
        let mut own = self.own(me);
        let mut free = None;
        for (line, is_own) in own.lines.iter().enumerate() {
            let holder = self.holder(line);
            if !is_own && (holder == Holder::FREE || holder.process() == me) {
                free = Some(line);
            } else if self.conflicts(line, holder, range, sharing) {
                if *is_own || self.presence.is_here(holder.process()) {
                    return None;
                }
                free = Some(line);
            }
        }
        let line = free.or_else(|| self.abandoned(&own.lines))?;
        let holder = Holder::new(me, sharing);
        // The holder last: a line whose holder is 0 or dead is free, whatever its range is.
        let [begin, end] = range_of(line);
        access::put(&self.words[begin], range.start);
        access::put(&self.words[end], range.end);
        access::store(&self.words[line], holder.0);
        own.lines[line] = true;
        Some(LockedRange { lock: self, line, holder })
    }

    fn own(&self, me: u32) -> MutexGuard<'_, Own> {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        if own.process != me {
            *own = Own { process: me, lines: [false; LINES] };
        }
        own
    }

    fn holder(&self, line: usize) -> Holder {
        Holder(access::load(&self.words[line]))
    }

    fn conflicts(&self, line: usize, holder: Holder, range: &Range<u64>, sharing: Sharing) -> bool {
        let [begin, end] = range_of(line).map(|word| access::peek(&self.words[word]));
        let overlaps = begin < range.end && range.start < end;
        let is_empty = range.is_empty() || begin >= end;
        overlaps && !is_empty && (sharing == Sharing::Exclusive || holder.is_exclusive())
    }

    /// A line of a process that has died, in a table without a free one. The caller has the table.
    fn abandoned(&self, own: &[bool; LINES]) -> Option<usize> {
        let is_dead = |line: usize| !self.presence.is_here(self.holder(line).process());
        (0..LINES).find(|line| !own[*line] && is_dead(*line))
    }

    /// For the fuzz targets, which are hostile workers: any of the words.
    #[cfg(any(test, feature = "fuzz"))]
    #[doc(hidden)]
    pub fn scribble(&self, index: usize, word: u64) {
        access::store(&self.words[index % self.words.len()], word);
    }
}

/// The words of a line's range.
fn range_of(line: usize) -> [usize; 2] {
    [LINES + 2 * line, LINES + 2 * line + 1]
}

/// A range that is locked until this is dropped.
#[derive(Debug)]
pub struct LockedRange<'a> {
    lock: &'a RangeLock,
    line: usize,
    holder: Holder,
}

impl Drop for LockedRange<'_> {
    fn drop(&mut self) {
        let me = std::process::id();
        if me != self.holder.process() {
            return; // A fork that has a copy of this, and not the range.
        }
        let mut own = self.lock.own(me);
        // If it is not as this process has left it, a hostile one has changed it.
        let _ = access::exchange(&self.lock.words[self.line], self.holder.0, Holder::FREE.0);
        own.lines[self.line] = false;
        drop(own);
        self.lock.released.signal();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Errno;
    use crate::shared::deaths::{self, Child};
    use crate::shared::event::tests::client;
    use std::sync::Arc;
    use std::sync::atomic::Ordering;

    use Sharing::{Exclusive, Shared};

    /// Takes a range if no other is in the way.
    fn take(lock: &RangeLock, range: Range<u64>, sharing: Sharing) -> Option<LockedRange<'_>> {
        let _table = lock.table.lock();
        lock.take(&range, sharing)
    }

    #[test]
    fn exclusive_ranges_keep_all_others_out_and_shared_ones_writers() {
        let lock = RangeLock::new().unwrap();
        let reader = take(&lock, 10..20, Shared).unwrap();
        let another = take(&lock, 15..25, Shared).unwrap();
        assert!(take(&lock, 19..21, Exclusive).is_none());
        assert!(take(&lock, 0..u64::MAX, Exclusive).is_none());
        // Ranges that only touch, and empty ones.
        let below = take(&lock, 0..10, Exclusive).unwrap();
        let above = take(&lock, 25..u64::MAX, Exclusive).unwrap();
        assert!(take(&lock, 9..10, Shared).is_none());
        let empty = take(&lock, 5..5, Exclusive).unwrap();
        drop((reader, below, above));
        assert!(take(&lock, 10..15, Exclusive).is_some());
        assert!(take(&lock, 10..16, Exclusive).is_none());
        drop((another, empty));
        assert!(take(&lock, 0..u64::MAX, Exclusive).is_some());
    }

    /// Slots that are changed in two steps, so that two writers of one slot lose an increment.
    #[test]
    fn writers_of_several_processes_and_threads_exclude_each_other() {
        const SLOTS: u64 = 16;
        const ROUNDS: u64 = 2000;
        let lock = RangeLock::new().unwrap();
        let slots = SharedWords::new(SLOTS as usize).unwrap();
        let increment = |seed: u64| {
            for round in 0..ROUNDS {
                let begin = (seed * 7 + round * 5) % SLOTS;
                let end = (begin + 1 + round % 4).min(SLOTS);
                if round % 8 == 7 {
                    let _locked = lock.lock(None, begin..end, Shared).unwrap();
                    let read = || slots[begin as usize].load(Ordering::Relaxed);
                    let before = read();
                    std::thread::yield_now();
                    assert_eq!(read(), before, "a writer beside a reader");
                    continue;
                }
                let _locked = lock.lock(None, begin..end, Exclusive).unwrap();
                for slot in begin..end {
                    let value = slots[slot as usize].load(Ordering::Relaxed);
                    if round % 16 == 0 {
                        std::thread::yield_now();
                    }
                    slots[slot as usize].store(value + 1, Ordering::Relaxed);
                }
            }
        };
        let wanted: u64 = (0..6_u64)
            .flat_map(|seed| (0..ROUNDS).map(move |round| (seed, round)))
            .filter(|(_, round)| round % 8 != 7)
            .map(|(seed, round)| (1 + round % 4).min(SLOTS - (seed * 7 + round * 5) % SLOTS))
            .sum();
        let processes: Vec<_> = (0..4).map(|seed| Child::new(move || increment(seed))).collect();
        std::thread::scope(|scope| {
            scope.spawn(|| increment(4));
            scope.spawn(|| increment(5));
        });
        processes.into_iter().for_each(Child::join);
        let sum: u64 = slots.iter().map(|slot| slot.load(Ordering::Relaxed)).sum();
        assert_eq!(sum, wanted);
    }

    #[test]
    fn whoever_finds_the_table_full_waits() {
        let lock = RangeLock::new().unwrap();
        let mut held: Vec<_> =
            (0..LINES as u64).map(|line| take(&lock, line..line + 1, Exclusive).unwrap()).collect();
        assert!(take(&lock, 1000..1001, Shared).is_none());
        let waiter = Child::new(|| drop(lock.lock(None, 1000..1001, Shared).unwrap()));
        while !lock.released.is_waited_for() {
            std::thread::yield_now();
        }
        held.pop();
        waiter.join();
    }

    #[test]
    fn the_lines_of_the_dead_are_free_also_in_a_full_table() {
        let lock = RangeLock::new().unwrap();
        let all = Child::new(|| {
            for line in 0..LINES as u64 {
                std::mem::forget(lock.lock(None, line..line + 1, Exclusive).unwrap());
            }
        });
        all.join();
        drop(lock.lock(None, 1000..1001, Exclusive).unwrap());
        drop(lock.lock(None, 0..1000, Exclusive).unwrap());
        // An earlier process of this one's number.
        lock.scribble(3, Holder::new(std::process::id(), Exclusive).0);
        lock.scribble(range_of(3)[1], u64::MAX);
        drop(lock.lock(None, 0..1000, Exclusive).unwrap());
    }

    #[test]
    fn a_wait_ends_with_its_client_and_a_holder_that_dies_is_noticed() {
        let lock = RangeLock::new().unwrap();
        let ready = SharedWords::new(1).unwrap();
        let holder = Child::new(|| {
            let _locked = lock.lock(None, 0..10, Shared).unwrap();
            ready[0].store(1, Ordering::SeqCst);
            loop {
                std::thread::park();
            }
        });
        while ready[0].load(Ordering::SeqCst) == 0 {
            std::thread::yield_now();
        }
        // Made behind the fork, which would keep the client's end open.
        let (client, socket) = client();
        drop(socket);
        let gave_up = lock.lock(Some(&client), 5..6, Exclusive).map(drop);
        assert_eq!(gave_up.unwrap_err().errno(), Errno::ESHUTDOWN);
        holder.kill();
        drop(lock.lock(Some(&client), 5..6, Exclusive).unwrap());
    }

    #[test]
    fn a_holder_that_dies_at_any_step_holds_up_nobody() {
        deaths::alone(
            "shared::ranges::tests::a_holder_that_dies_at_any_step_holds_up_nobody",
            || {
                // The dead one takes the line of one that died before it.
                let make = || {
                    let lock = RangeLock::new().unwrap();
                    let dead = Child::new(|| {
                        std::mem::forget(lock.lock(None, 0..10, Exclusive).unwrap());
                    });
                    dead.join();
                    lock
                };
                let lock_and_release =
                    |lock: &RangeLock| drop(lock.lock(None, 5..15, Exclusive).unwrap());
                deaths::at_every_step(make, lock_and_release, |lock, how| {
                    let other = Child::new(|| drop(lock.lock(None, 0..100, Exclusive).unwrap()));
                    drop(lock.lock(None, 0..100, Exclusive).unwrap());
                    other.join();
                    let held = (0..LINES).filter(|line| lock.holder(*line) != Holder::FREE);
                    assert_eq!(held.count(), 0, "{how}: lines of the dead are left");
                });
                // A waiter dies, while a reader has the range.
                let make = || {
                    let lock = Arc::new(RangeLock::new().unwrap());
                    let ready = SharedWords::new(1).unwrap();
                    let reader = Child::new(|| {
                        let _locked = lock.lock(None, 0..10, Shared).unwrap();
                        ready[0].store(1, Ordering::SeqCst);
                        std::thread::sleep(std::time::Duration::from_millis(30));
                    });
                    while ready[0].load(Ordering::SeqCst) == 0 {
                        std::thread::yield_now();
                    }
                    (lock, reader)
                };
                deaths::at_every_step(
                    make,
                    |(lock, _)| lock_and_release(lock),
                    |(lock, reader), how| {
                        drop(lock.lock(None, 0..100, Exclusive).unwrap());
                        reader.join();
                        let held = (0..LINES).filter(|line| lock.holder(*line) != Holder::FREE);
                        assert_eq!(held.count(), 0, "{how}: lines of the dead are left");
                    },
                );
            },
        );
    }
}
