//! The file of a client that is idle, from one worker of it to the next.
//!
//! A worker that parks its client closes its file, and the next one opens it again. That must be
//! the same file, even if it was replaced at its path or removed meanwhile: so a client is parked
//! only if the template has its file open, too ([`Kept`](super::Kept)), and its number cannot
//! become another file's.

#![forbid(unsafe_code)]

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::UNIX_EPOCH;

use super::Kept;

/// Which file it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileId {
    /// The file system, st_dev.
    pub device: u64,
    /// The file's number there, st_ino.
    pub inode: u64,
    /// When it was made, in nanoseconds since 1970, if the file system knows: another template has
    /// not had it open all the time.
    pub birth: Option<u64>,
}

impl FileId {
    pub(super) fn of(file: &File) -> Option<FileId> {
        let stat = file.metadata().ok()?;
        let birth = stat.created().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        let birth = birth.and_then(|time| u64::try_from(time.as_nanos()).ok());
        Some(FileId { device: stat.dev(), inode: stat.ino(), birth })
    }
}

/// The files that this process has opened for its client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenFiles {
    /// None, or none was noted.
    None,
    /// One, which the template has open, too.
    One(FileId),
    /// Several, or one that nobody else has open.
    Others,
}

struct State {
    /// Whether files are noted.
    noting: bool,
    open: OpenFiles,
    /// The file that this client had on its last worker.
    expected: Option<FileId>,
}

static STATE: Mutex<State> =
    Mutex::new(State { noting: false, open: OpenFiles::None, expected: None });

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From now on it is noted which files this process, a worker, opens for its client. `expected`:
/// the file that it had on its last worker, if it had one; no other is opened.
pub fn note_files(expected: Option<FileId>) {
    *state() = State { noting: true, open: OpenFiles::None, expected };
}

/// The files that were opened since [`note_files`].
pub fn open_files() -> OpenFiles {
    state().open
}

pub(super) fn expected() -> Option<FileId> {
    state().expected
}

/// A file was opened.
pub(super) fn opened(file: &File, kept: Option<&Kept>) {
    let mut state = state();
    if !state.noting {
        return;
    }
    let id = kept.and_then(|kept| FileId::of(file).filter(|id| kept.has(*id)));
    state.open = match (state.open, id) {
        (OpenFiles::None, Some(id)) => OpenFiles::One(id),
        _ => OpenFiles::Others,
    };
}
