//! The connections that are flushed together.
//!
//! Each has a place, which the kernel frees when its process dies, and words in shared memory: what
//! it has done since its last flush, and which flushes it was asked for and has done. One
//! connection at a time flushes the others: a flush that is under way is not taken for one that is
//! done.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::JoinHandle;

use nbdkit_api::shared::{SharedEvent, SharedMutex, SharedWords};
use nbdkit_api::{Client, Errno, Error, Next, Result, ResultExt, debug};

use super::Track;
use super::dirty::{self, WRITTEN};
use crate::presence::{Place, Places};

/// Most connections.
const MAX_MEMBERS: usize = 16 << 10;

/// Words of a place: the number of the export plus one, or 0 for no connection; what it has done;
/// the number of the last flush that it was asked for; and that of the last one that it has done,
/// with the error's number.
const EXPORT: usize = 0;
const DIRTY: usize = 1;
const ASKED: usize = 2;
const DONE: usize = 3;
const RESULT: usize = 4;
const WORDS: usize = 5;

/// Numbers of errors. errno(3)
const ERRNOS: RangeInclusive<u64> = 1..=4095;

/// All connections. Made in the template.
#[derive(Debug, Clone)]
pub(super) struct Group(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    places: Arc<Places>,
    words: SharedWords,
    /// Locked by the connection that flushes.
    flushing: SharedMutex<0>,
    /// A connection was asked for a flush, or has to stop.
    asked: SharedEvent,
    /// A connection has done a flush.
    done: SharedEvent,
    /// Those of this process.
    local: Mutex<HashMap<usize, Arc<Local>>>,
}

/// A connection of this process.
#[derive(Debug)]
struct Local {
    next: Next,
    /// Keeps flushes that others ask for apart from requests, if there may be one at a time only.
    gate: Option<RwLock<()>>,
    stopped: AtomicBool,
}

impl Local {
    fn flush(&self) -> Result<()> {
        let _alone =
            self.gate.as_ref().map(|it| it.write().unwrap_or_else(PoisonError::into_inner));
        self.next.flush()
    }
}

/// A connection in the group.
pub(super) struct Member {
    group: Group,
    index: usize,
    local: Arc<Local>,
    /// If others are in other processes.
    thread: Mutex<Option<JoinHandle<()>>>,
    place: Mutex<Option<Place>>,
}

impl Group {
    /// # Errors
    /// ENOMEM, EMFILE.
    pub(super) fn new() -> Result<Group> {
        Ok(Group(Arc::new(Inner {
            places: Places::new("multi-conn", MAX_MEMBERS as u64)?,
            words: SharedWords::new(WORDS * MAX_MEMBERS)?,
            flushing: SharedMutex::new([])?,
            asked: SharedEvent::new()?,
            done: SharedEvent::new()?,
            local: Mutex::default(),
        })))
    }

    fn word(&self, index: usize, which: usize) -> &AtomicU64 {
        &self.0.words[WORDS * index + which]
    }

    fn local(&self) -> MutexGuard<'_, HashMap<usize, Arc<Local>>> {
        self.0.local.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a connection. `is_serial`: the layer below takes one request at a time. `is_alone`: the
    /// other connections are in other processes.
    ///
    /// # Errors
    /// EBUSY: there are too many. EAGAIN: there is no thread.
    pub(super) fn join(
        &self,
        next: &Next,
        export: usize,
        is_serial: bool,
        is_alone: bool,
    ) -> Result<Member> {
        let place = self.0.places.take()?;
        let place =
            place.ok_or_else(|| Error::new(Errno::EBUSY, "multi-conn: too many connections"))?;
        let index = place.number() as usize;
        // What an earlier connection has left here.
        self.word(index, DIRTY).store(0, Ordering::SeqCst);
        self.word(index, RESULT).store(0, Ordering::SeqCst);
        let asked = self.word(index, ASKED).load(Ordering::SeqCst);
        self.word(index, DONE).store(asked, Ordering::SeqCst);
        let local = Arc::new(Local {
            next: next.clone(),
            gate: is_serial.then(RwLock::default),
            stopped: AtomicBool::new(false),
        });
        self.local().insert(index, Arc::clone(&local));
        let member = Member {
            group: self.clone(),
            index,
            local,
            thread: Mutex::default(),
            place: Mutex::new(Some(place)),
        };
        if is_alone {
            let (group, local) = (self.clone(), Arc::clone(&member.local));
            let thread = std::thread::Builder::new()
                .name("multi-conn".to_owned())
                .spawn(move || group.serve(index, &local))
                .or_error(|| "multi-conn: thread")?;
            *member.thread() = Some(thread);
        }
        self.word(index, EXPORT).store(export as u64 + 1, Ordering::SeqCst);
        Ok(member)
    }

    /// Does the flushes that other processes ask for, until the connection ends.
    fn serve(&self, index: usize, local: &Local) {
        let word = |which| self.word(index, which).load(Ordering::SeqCst);
        loop {
            let asked = self.0.asked.wait_until(None, || {
                let (asked, stopped) = (word(ASKED), local.stopped.load(Ordering::SeqCst));
                Ok((stopped || asked != word(DONE)).then_some((asked, stopped)))
            });
            let Ok((asked, false)) = asked else { return };
            let result = local.flush().map_or_else(|error| error.errno() as u64, |()| 0);
            self.word(index, RESULT).store(result, Ordering::SeqCst);
            self.word(index, DONE).store(asked, Ordering::SeqCst);
            self.0.done.signal();
        }
    }

    /// Flushes all connections, or those of an export, as far as `track` says that it is needed.
    /// Goes on after errors.
    ///
    /// # Errors
    /// The first one. ESHUTDOWN: the client has gone.
    pub(super) fn flush(
        &self,
        client: Option<&Client>,
        export: Option<usize>,
        track: Track,
    ) -> Result<()> {
        let lock = self.0.flushing.lock_for(client)?;
        let of = |index| self.word(index, EXPORT).load(Ordering::SeqCst).checked_sub(1);
        let is_wanted = |it: u64| export.is_none_or(|export| it == export as u64);
        let members: Vec<usize> =
            (0..MAX_MEMBERS).filter(|index| of(*index).is_some_and(is_wanted)).collect();
        if lock.recovered() {
            // The last flusher was killed: what it marked as clean may not be flushed.
            for index in self.all() {
                dirty::note(self.word(index, DIRTY), WRITTEN);
            }
        }
        let bits = |index: &usize| self.word(*index, DIRTY).load(Ordering::SeqCst);
        if track != Track::Off && !members.iter().any(|index| bits(index) & WRITTEN != 0) {
            return Ok(());
        }
        let mut result = Ok(());
        for index in members {
            if track == Track::Connection && bits(&index) == 0 {
                continue;
            }
            let taken = self.word(index, DIRTY).swap(0, Ordering::SeqCst);
            let flushed = self.flush_member(client, index);
            if flushed.is_err() {
                dirty::note(self.word(index, DIRTY), taken);
            }
            result = result.and(flushed);
        }
        result
    }

    /// Those that are there, or were there when they were killed.
    fn all(&self) -> Vec<usize> {
        let is_there = |index: &usize| self.word(*index, EXPORT).load(Ordering::SeqCst) != 0;
        (0..MAX_MEMBERS).filter(is_there).collect()
    }

    /// As a process that is killed while it flushes.
    #[cfg(test)]
    pub(super) fn abandon_flush(&self) {
        let group = self.clone();
        let panicked = std::thread::spawn(move || {
            let _lock = group.0.flushing.lock();
            panic!("a test");
        });
        panicked.join().unwrap_err();
    }

    fn flush_member(&self, client: Option<&Client>, index: usize) -> Result<()> {
        let local = self.local().get(&index).cloned();
        if let Some(local) = local {
            return local.flush();
        }
        let asked = self.word(index, ASKED).fetch_add(1, Ordering::SeqCst).wrapping_add(1);
        self.0.asked.signal();
        self.0.done.wait_until(client, || {
            if self.word(index, DONE).load(Ordering::SeqCst) == asked {
                return Ok(Some(()));
            }
            // What a connection that has ended had not flushed is as lost as if it were alone.
            Ok((!self.0.places.is_taken_elsewhere(index as u64)?).then_some(()))
        })?;
        match self.word(index, RESULT).load(Ordering::SeqCst) {
            0 => Ok(()),
            errno if self.word(index, DONE).load(Ordering::SeqCst) != asked => {
                debug!("multi-conn: the connection has ended; its last error was {errno}");
                Ok(())
            }
            errno => {
                let errno = if ERRNOS.contains(&errno) { errno } else { Errno::EIO as u64 };
                let why = "multi-conn: flush of another connection";
                Err(Error::os(why, Errno::from_raw(errno as i32)))
            }
        }
    }
}

impl Member {
    fn thread(&self) -> MutexGuard<'_, Option<JoinHandle<()>>> {
        self.thread.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn note(&self, bits: u64) {
        dirty::note(self.group.word(self.index, DIRTY), bits);
    }

    pub(super) fn is_serial(&self) -> bool {
        self.local.gate.is_some()
    }

    /// Runs a request of this connection, which must not flush others.
    pub(super) fn run(&self, request: impl FnOnce() -> Result<()>) -> Result<()> {
        let gate = self.local.gate.as_ref();
        let _shared = gate.map(|it| it.read().unwrap_or_else(PoisonError::into_inner));
        request()
    }

    /// Ends the thread, which has the layer below, and frees the place.
    pub(super) fn leave(&self) {
        let place = self.place.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(place) = place else { return };
        self.local.stopped.store(true, Ordering::SeqCst);
        self.group.0.asked.signal();
        if let Some(thread) = self.thread().take()
            && thread.join().is_err()
        {
            debug!("multi-conn: the thread panicked");
        }
        self.group.word(self.index, EXPORT).store(0, Ordering::SeqCst);
        self.group.local().remove(&self.index);
        drop(place);
        // Another connection may wait for a flush of this one.
        self.group.0.done.signal();
    }
}

impl Drop for Member {
    /// A layer that another one failed to prepare is closed without being finalized.
    fn drop(&mut self) {
        self.leave();
    }
}
