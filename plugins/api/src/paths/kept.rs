//! Files that the template has opened before it was confined, so that usually nobody has to be
//! asked: a client's worker looks what the path leads to now, and if it is what was kept, uses
//! that.
//!
//! An open file description carries state: its position, read-ahead, and above all which write
//! error fsync(2) has reported and which it has still to report. Two clients that shared one could
//! lose an error. So several descriptions of each file are kept, numbered alike (a *slot*), and a
//! slot belongs to one client at a time; who finds none free asks the broker for a description of
//! its own.
//!
//! Only regular files are kept: one that keeps a block device open keeps the machine from
//! reconfiguring it. And none with O_DIRECT, which only `--swap` and `cache=direct` want.

#![forbid(unsafe_code)]

use std::fs::File;
use std::ops::{Deref, RangeInclusive};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::sys::stat::{FileStat, fstat, fstatat};

use super::parking::FileId;
use super::{Declared, Found, direct, find};

/// Most descriptions of one file.
pub const MOST_KEPT: usize = 16;
/// More descriptors than a process has open that has just been configured.
const FILLERS: usize = 32;
/// Most of all files together; a disk made of more files keeps fewer of each.
const MOST_OF_ALL: usize = 256;

/// What the answer of open(2) depends on, as far as stat(2) tells: which file, and who may do what
/// with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    mode: u32,
    user: u32,
    group: u32,
}

impl From<FileStat> for Identity {
    fn from(stat: FileStat) -> Identity {
        Identity {
            device: stat.st_dev,
            inode: stat.st_ino,
            mode: stat.st_mode,
            user: stat.st_uid,
            group: stat.st_gid,
        }
    }
}

/// One file.
#[derive(Debug)]
struct Entry {
    path: PathBuf,
    identity: Identity,
    /// For clients that are parked. Asked when all of `files` were open: a worker closes others'.
    id: Option<FileId>,
    writable: bool,
    /// A description for each slot.
    files: Vec<File>,
    /// Bits of the slots that are in use.
    taken: AtomicU64,
}

/// Declared files that the template keeps open, with a description for each client.
#[derive(Debug)]
pub struct Kept {
    entries: RwLock<Vec<Arc<Entry>>>,
    /// What is not at its path any more, and may be a parked client's.
    replaced: RwLock<Vec<Arc<Entry>>>,
    /// Bits of the slots that this process may use.
    ours: AtomicU64,
}

impl Kept {
    /// Nothing.
    pub fn nothing() -> Kept {
        Kept::from(Vec::new())
    }

    fn from(entries: Vec<Arc<Entry>>) -> Kept {
        Kept {
            entries: RwLock::new(entries),
            replaced: RwLock::default(),
            ours: AtomicU64::new(u64::MAX),
        }
    }

    /// Opens what is declared and can be kept. What cannot be opened now is left to the broker,
    /// later.
    pub fn new(declared: &[Declared]) -> Kept {
        let mut entries: Vec<Entry> = Vec::new();
        let slots = (MOST_OF_ALL / declared.len().max(1)).min(MOST_KEPT);
        // Takes the numbers that are free among others, so that what follows gets one after the
        // other, and those of other slots are closed by few calls.
        let stdin = std::io::stdin();
        let _fillers: Vec<_> =
            (0..FILLERS).map_while(|_| stdin.as_fd().try_clone_to_owned().ok()).collect();
        // Slot by slot, so that the descriptors of one are neighbours.
        for slot in 0..slots {
            for declared in declared.iter().filter(|declared| !declared.direct) {
                match entries.iter_mut().find(|entry| entry.path == declared.path) {
                    Some(entry) if entry.files.len() == slot => entry.add(declared),
                    None if slot == 0 => entries.extend(Entry::new(declared)),
                    Some(_) | None => {}
                }
            }
        }
        Kept::from(entries.into_iter().map(Arc::new).collect())
    }

    /// The descriptors, as ranges of numbers, that are not of `slot`. Empty if there are so many
    /// ranges that closing them is not worth it.
    pub fn of_other_slots(&self, slot: Option<u32>) -> Vec<RangeInclusive<RawFd>> {
        const MOST_RANGES: usize = 8;
        let (entries, replaced) = (self.read(), self.read_replaced());
        let numbers = entries.iter().chain(replaced.iter()).flat_map(|entry| {
            let others = entry.files.iter().zip(0..).filter(|(_, its)| Some(*its) != slot);
            others.map(|(file, _)| file.as_raw_fd())
        });
        let mut numbers: Vec<RawFd> = numbers.collect();
        numbers.sort_unstable();
        let ranges = numbers.chunk_by(|one, next| next - one == 1);
        let ranges: Vec<_> = ranges.filter_map(|it| Some(*it.first()?..=*it.last()?)).collect();
        if ranges.len() > MOST_RANGES { Vec::new() } else { ranges }
    }

    /// The paths of the files that are kept.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.read().iter().map(|entry| entry.path.clone()).collect()
    }

    /// How many slots there are.
    pub fn slots(&self) -> usize {
        let (entries, replaced) = (self.read(), self.read_replaced());
        entries.iter().chain(replaced.iter()).map(|entry| entry.files.len()).max().unwrap_or(0)
    }

    /// In a process of one client: the slot that is its, if any is.
    pub fn use_slot(&self, slot: Option<u32>) {
        self.ours.store(slot.map_or(0, |slot| 1 << slot), Ordering::Relaxed);
    }

    /// Closes files that are not at their paths any more, so that a removed file does not take up
    /// space. With `any_parked` they stay open, for clients that are parked, until
    /// [`none_parked`](Self::none_parked). Must not be called in a process that has a slot.
    pub fn forget_replaced(&self, any_parked: bool) {
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        let (current, replaced) =
            std::mem::take(&mut *entries).into_iter().partition(|entry| entry.is_current());
        *entries = current;
        if any_parked {
            let all: Vec<_> = replaced;
            self.replaced.write().unwrap_or_else(PoisonError::into_inner).extend(all);
        }
    }

    /// No client is parked: closes the replaced files that were left open for them.
    pub fn none_parked(&self) {
        if !self.read_replaced().is_empty() {
            self.replaced.write().unwrap_or_else(PoisonError::into_inner).clear();
        }
    }

    /// Whether this file is among them, at its path or not.
    pub(super) fn has(&self, id: FileId) -> bool {
        self.read().iter().chain(self.read_replaced().iter()).any(|entry| entry.is(id))
    }

    /// This file, for one client, and whether it is writable; `None` if it is not among them or
    /// none is free.
    pub(super) fn lend_again(&self, id: FileId) -> Option<(Lent, bool)> {
        let (entries, replaced) = (self.read(), self.read_replaced());
        let entry = entries.iter().chain(replaced.iter()).find(|entry| entry.is(id))?;
        Some((entry.take(self.ours.load(Ordering::Relaxed))?, entry.writable))
    }

    /// This file, if it was replaced: the description of a slot, which another client that was
    /// parked may share. There is no other way left to open it.
    pub(super) fn replaced(&self, id: FileId) -> Option<Found> {
        let replaced = self.read_replaced();
        let entry = replaced.iter().find(|entry| entry.is(id))?;
        let file = entry.files.first()?.try_clone().ok()?;
        Some(Found { file, writable: entry.writable, is_block_device: false })
    }

    /// Whether there is anything that is only here.
    pub fn has_replaced(&self) -> bool {
        !self.read_replaced().is_empty()
    }

    fn read_replaced(&self) -> std::sync::RwLockReadGuard<'_, Vec<Arc<Entry>>> {
        self.replaced.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Vec<Arc<Entry>>> {
        self.entries.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    /// With one description.
    fn new(declared: &Declared) -> Option<Entry> {
        let stat = fstatat(AT_FDCWD, &declared.path, AtFlags::empty()).ok()?;
        if direct::type_of(&stat) != Some(direct::Type::Regular) || declared.directory.is_some() {
            return None;
        }
        let mut entry = Entry {
            path: declared.path.clone(),
            identity: Identity::from(stat),
            id: None,
            writable: true,
            files: Vec::new(),
            taken: AtomicU64::new(0),
        };
        entry.add(declared);
        entry.id = FileId::of(entry.files.first()?);
        Some(entry)
    }

    /// One description more, if that can be opened.
    fn add(&mut self, declared: &Declared) {
        let Ok(found) = find(declared, None, true) else { return };
        if fstat(&found.file).map(Identity::from) == Ok(self.identity) {
            self.writable &= found.writable;
            self.files.push(found.file);
        }
    }

    /// Whether its path leads to it, and it is as accessible as it was.
    fn is_current(&self) -> bool {
        let now = fstatat(AT_FDCWD, &self.path, AtFlags::empty());
        now.map(Identity::from) == Ok(self.identity)
    }

    fn is(&self, id: FileId) -> bool {
        self.id == Some(id)
    }

    /// Takes a slot, one of `ours`, if one is free.
    fn take(self: &Arc<Entry>, ours: u64) -> Option<Lent> {
        let all = u64::MAX >> (64 - self.files.len().clamp(1, 64));
        let mut taken = self.taken.load(Ordering::Relaxed);
        loop {
            let free = ours & all & !taken;
            if free == 0 {
                return None;
            }
            let slot = free.trailing_zeros();
            let with = taken | 1 << slot;
            match self.taken.compare_exchange_weak(
                taken,
                with,
                Ordering::Acquire,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Some(Lent::Kept { entry: Shared(Arc::clone(self)), slot }),
                Err(now) => taken = now,
            }
        }
    }
}

/// What was kept of `declared`, for one client, and whether it is writable; `None` if its path
/// leads elsewhere now, or if none is free.
pub(super) fn lend(kept: &Kept, declared: &Declared) -> Option<(Lent, bool)> {
    if declared.direct {
        return None;
    }
    let entries = kept.read();
    let entry = entries.iter().find(|entry| entry.path == declared.path)?;
    let lent = entry.take(kept.ours.load(Ordering::Relaxed))?;
    if entry.is_current() {
        return Some((lent, entry.writable));
    }
    let shared = kept.ours.load(Ordering::Relaxed) == u64::MAX;
    drop((lent, entries));
    if shared {
        kept.forget_replaced(false);
    }
    None
}

/// A file that is open for one client: its own, or one that was kept and is free again afterwards.
#[derive(Debug)]
pub enum Lent {
    /// Closed when it is dropped.
    Own(File),
    /// Given back when it is dropped.
    Kept {
        /// The file.
        entry: Shared,
        /// Which of its descriptions.
        slot: u32,
    },
}

/// A file of [`Kept`].
#[derive(Debug)]
pub struct Shared(Arc<Entry>);

impl Deref for Lent {
    type Target = File;

    fn deref(&self) -> &File {
        match self {
            Lent::Own(file) => file,
            Lent::Kept { entry, slot } => &entry.0.files[*slot as usize],
        }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Lent::Kept { entry, slot } = self {
            entry.0.taken.fetch_and(!(1 << *slot), Ordering::Release);
        }
    }
}
