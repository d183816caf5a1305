//! The last list of extents, in memory that all workers map.
//!
//! There are two areas in a file. A new list is written to the one that is not in use, and then the
//! words under the mutex are changed: a worker that is killed meanwhile has changed nothing.
//! What another worker has written is checked.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use nbdkit_api::shared::{SharedFile, SharedMutex, SharedWords};
use nbdkit_api::{Client, Errno, Error, Extent, ExtentKind, Extents, Flags, Result};

/// Most extents that are kept; what is behind them is asked for again.
const MAX_KEPT: usize = if cfg!(test) { 100 } else { 64 << 10 };
/// Longest export name, bytes. NBD protocol, "Strings".
const MAX_NAME: usize = 4096;
/// Bytes of an extent in the file: its end, and its kind.
const ENTRY: usize = 16;
/// An area: the name of the export, where the list begins, the extents.
const START_AT: u64 = MAX_NAME as u64;
const ENTRIES_AT: u64 = START_AT + 8;
const AREA: u64 = ENTRIES_AT + (MAX_KEPT * ENTRY) as u64;

/// Words of the mutex. The version counts what makes lists invalid.
const VERSION: usize = 0;
/// The version for which the list is valid, plus one; 0 if there is no list.
const VALID_FOR: usize = 1;
/// How many lists there were; the lowest bit is the area of the last one.
const NUMBER: usize = 2;
const COUNT: usize = 3;
const NAME_LENGTH: usize = 4;

/// The last list of all clients.
#[derive(Debug)]
pub(super) struct LastList {
    words: SharedMutex<5>,
    areas: SharedFile,
    /// How many requests change the disk now, those of killed workers included.
    changing: SharedWords,
    /// This process's copy.
    copy: Mutex<Option<Arc<Copied>>>,
}

/// The list with this number.
#[derive(Debug)]
struct Copied {
    number: u64,
    export: Vec<u8>,
    /// Contiguous.
    extents: Vec<Extent>,
}

impl LastList {
    /// No list yet. Made in the template.
    ///
    /// # Errors
    /// ENOMEM, EMFILE.
    pub(super) fn new() -> Result<LastList> {
        Ok(LastList {
            words: SharedMutex::new([0; 5])?,
            areas: SharedFile::in_memory("cacheextents", 2 * AREA)?,
            changing: SharedWords::new(1)?,
            copy: Mutex::default(),
        })
    }

    /// Runs a request that changes the disk. The list is invalid after it, and so is every list
    /// that was asked for before, also if it fails: part of it may have been carried out.
    ///
    /// # Errors
    /// Those of `change`. ESHUTDOWN: the client has gone.
    pub(super) fn change(
        &self,
        client: Option<&Client>,
        change: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        self.changing[0].fetch_add(1, Ordering::SeqCst);
        let result = change();
        self.invalidate(client)?;
        self.changing[0].fetch_sub(1, Ordering::SeqCst);
        result
    }

    /// For the template, when a worker has ended: if it was killed, it may have changed the disk
    /// and left the list as it was.
    pub(super) fn worker_ended(&self) {
        if self.changing[0].load(Ordering::SeqCst) != 0 {
            // Without a client, this waits until it has the mutex.
            let _ = self.invalidate(None);
        }
    }

    fn invalidate(&self, client: Option<&Client>) -> Result<()> {
        let mut words = self.words.lock_for(client)?;
        words[VERSION] = words[VERSION].wrapping_add(1);
        Ok(())
    }

    /// Adds what is known of the disk of `export` from `offset` on. If that is nothing, returns the
    /// version for [`store`](Self::store).
    ///
    /// # Errors
    /// ESHUTDOWN: the client has gone.
    pub(super) fn find(
        &self,
        client: Option<&Client>,
        export: &str,
        offset: u64,
        flags: Flags,
        extents: &mut Extents,
    ) -> Result<Option<u64>> {
        let (version, copied) = self.current(client)?;
        let Some(copied) = copied.filter(|it| it.export == export.as_bytes()) else {
            return Ok(Some(version));
        };
        let index = copied.extents.partition_point(|extent| extent.end() <= offset);
        let known = &copied.extents[index..];
        if known.first().is_none_or(|extent| extent.offset > offset) {
            return Ok(Some(version));
        }
        let wanted = if flags.contains(Flags::REQ_ONE) { 1 } else { known.len() };
        for extent in &known[..wanted] {
            extents.add(extent.offset, extent.length, extent.kind)?;
        }
        Ok(None)
    }

    /// The version, and the list if it is valid.
    fn current(&self, client: Option<&Client>) -> Result<(u64, Option<Arc<Copied>>)> {
        let words = self.words.lock_for(client)?;
        let version = words[VERSION];
        if words[VALID_FOR] != version.wrapping_add(1) {
            return Ok((version, None));
        }
        let mut copy = self.copy.lock().unwrap_or_else(PoisonError::into_inner);
        if copy.as_ref().is_none_or(|copy| copy.number != words[NUMBER]) {
            // Read under the mutex: no worker overwrites the list meanwhile. A list
            // that makes no sense is none.
            *copy = self.read(&words).ok().map(Arc::new);
        }
        Ok((version, copy.clone()))
    }

    /// The list of these words.
    fn read(&self, words: &[u64; 5]) -> Result<Copied> {
        let corrupt = || Error::new(Errno::EIO, "cacheextents: the list is corrupt");
        let length = |word: u64, max: usize| {
            usize::try_from(word).ok().filter(|it| *it <= max).ok_or_else(corrupt)
        };
        let area = words[NUMBER] % 2 * AREA;
        let mut export = vec![0; length(words[NAME_LENGTH], MAX_NAME)?];
        self.areas.read_at(&mut export, area)?;
        let mut bytes = vec![0; 8 + length(words[COUNT], MAX_KEPT)? * ENTRY];
        self.areas.read_at(&mut bytes, area + START_AT)?;
        let (start, entries) = bytes.split_at(8);
        let mut at = number(start);
        let mut extents = Vec::with_capacity(entries.len() / ENTRY);
        for entry in entries.chunks_exact(ENTRY) {
            let (end, kind) = entry.split_at(8);
            let end = number(end);
            let length = end.checked_sub(at).filter(|length| *length > 0).ok_or_else(corrupt)?;
            let kind = u32::try_from(number(kind)).ok().and_then(ExtentKind::from_bits);
            extents.push(Extent { offset: at, length, kind: kind.ok_or_else(corrupt)? });
            at = end;
        }
        Ok(Copied { number: words[NUMBER], export, extents })
    }

    /// Keeps a list for all clients, unless something has changed the disk since `version`.
    ///
    /// # Errors
    /// ESHUTDOWN: the client has gone. The kernel's.
    pub(super) fn store(
        &self,
        client: Option<&Client>,
        version: u64,
        export: &str,
        list: &Extents,
    ) -> Result<()> {
        if export.len() > MAX_NAME {
            return Ok(());
        }
        let count = list.len().min(MAX_KEPT);
        let mut bytes = list.start().to_ne_bytes().to_vec();
        for extent in &list.as_slice()[..count] {
            bytes.extend(extent.end().to_ne_bytes());
            bytes.extend(u64::from(extent.kind.bits()).to_ne_bytes());
        }
        let mut words = self.words.lock_for(client)?;
        if words[VERSION] != version {
            return Ok(());
        }
        let number = words[NUMBER].wrapping_add(1);
        let area = number % 2 * AREA;
        self.areas.write_at(export.as_bytes(), area)?;
        self.areas.write_at(&bytes, area + START_AT)?;
        words[NUMBER] = number;
        words[COUNT] = count as u64;
        words[NAME_LENGTH] = export.len() as u64;
        words[VALID_FOR] = version.wrapping_add(1);
        Ok(())
    }
}

/// Of 8 bytes.
fn number(bytes: &[u8]) -> u64 {
    bytes.try_into().map_or(0, u64::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(offset: u64, count: usize) -> Extents {
        let mut list = Extents::new(offset, u64::MAX);
        for i in 0..count as u64 {
            let kind = [ExtentKind::DATA, ExtentKind::SPARSE][i as usize % 2];
            list.add(offset + 10 * i, 10, kind).unwrap();
        }
        list
    }

    /// What is known from `offset` on, in bytes, or the version.
    fn find(last: &LastList, offset: u64) -> Result<u64, u64> {
        let mut extents = Extents::new(offset, u64::MAX);
        match last.find(None, "", offset, Flags::empty(), &mut extents).unwrap() {
            None => Ok(extents.covered_to() - offset),
            Some(version) => Err(version),
        }
    }

    #[test]
    fn an_answer_that_was_on_its_way_when_the_disk_changed_is_not_kept() {
        let last = LastList::new().unwrap();
        let version = find(&last, 0).unwrap_err();
        last.invalidate(None).unwrap();
        last.store(None, version, "", &list(0, 5)).unwrap();
        let version = find(&last, 0).unwrap_err();
        last.store(None, version, "", &list(0, 5)).unwrap();
        assert_eq!(find(&last, 7), Ok(43));
        find(&last, 50).unwrap_err();
    }

    #[test]
    fn a_worker_that_ends_in_a_change_makes_the_list_invalid() {
        let last = LastList::new().unwrap();
        last.change(None, || Ok(())).unwrap();
        last.store(None, 1, "", &list(0, 5)).unwrap();
        last.worker_ended();
        assert_eq!(find(&last, 0), Ok(50));
        // As if it had been killed.
        last.changing[0].fetch_add(1, Ordering::SeqCst);
        last.worker_ended();
        find(&last, 0).unwrap_err();
    }

    #[test]
    fn of_a_long_list_the_beginning_is_kept() {
        let last = LastList::new().unwrap();
        last.store(None, 0, "", &list(30, MAX_KEPT + 10)).unwrap();
        assert_eq!(find(&last, 30), Ok(10 * MAX_KEPT as u64));
        find(&last, 29).unwrap_err();
    }

    #[test]
    fn what_a_hostile_worker_writes_is_no_list() {
        let last = LastList::new().unwrap();
        for (index, word) in [(COUNT, u64::MAX), (COUNT, 1 << 20), (NAME_LENGTH, u64::MAX)] {
            last.store(None, find(&last, 0).unwrap_or(0), "", &list(0, 5)).unwrap();
            last.words.lock()[index] = word;
            find(&last, 0).unwrap_err();
        }
        for (at, word) in [(0, u64::MAX), (8, 0), (16, 4), (16, u64::MAX), (24, 10)] {
            last.store(None, 0, "", &list(0, 5)).unwrap();
            assert_eq!(find(&last, 0), Ok(50));
            last.store(None, 0, "", &list(0, 5)).unwrap();
            let area = last.words.lock()[NUMBER] % 2 * AREA;
            last.areas.write_at(&u64::to_ne_bytes(word), area + START_AT + at).unwrap();
            find(&last, 0).unwrap_err();
        }
    }
}
