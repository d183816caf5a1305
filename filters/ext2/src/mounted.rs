//! The file system of a client: its own, or, where clients write, one that all of them share.
//!
//! A file system has one writer. So where clients may write they are all in one process (the
//! declaration of this filter sees to that), and the first of them opens the file system, the
//! last one closes it.

#![expect(unsafe_code, reason = "passes on what the server promises")]

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nbdkit_abi::filter::BackendPointer;
use nbdkit_api::Result;

use crate::below::Below;
use crate::ffi::Inode;
use crate::filesystem::FileSystem;

/// The file system that clients share, while there are any.
static SHARED: Mutex<Option<Shared>> = Mutex::new(None);

struct Shared {
    file_system: Arc<Mutex<FileSystem>>,
    clients: usize,
}

fn shared() -> MutexGuard<'static, Option<Shared>> {
    SHARED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A file in a file system, open for one client.
pub(crate) struct OpenFile {
    file_system: Arc<Mutex<FileSystem>>,
    is_shared: bool,
    inode: Inode,
    /// For messages.
    path: String,
}

impl OpenFile {
    /// Opens the file at `path` of the file system on `below`, which is the client's own, for
    /// reading.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn own(below: Below, path: &str) -> Result<OpenFile> {
        let file_system = FileSystem::open(below, false)?;
        OpenFile::of(Arc::new(Mutex::new(file_system)), false, path)
    }

    /// Opens the file at `path` of the file system that clients share.
    ///
    /// # Errors
    /// Those of the file system and of the layer below.
    ///
    /// # Safety
    /// `backend` is the server's for this filter.
    pub(crate) unsafe fn shared(backend: BackendPointer, path: &str) -> Result<OpenFile> {
        let mut shared = shared();
        let file_system = match &mut *shared {
            Some(shared) => {
                shared.clients += 1;
                Arc::clone(&shared.file_system)
            }
            None => {
                // SAFETY: the backend, as the caller promises.
                let below = unsafe { Below::open(backend) }?;
                let file_system = FileSystem::open(below, true).inspect_err(|_| {
                    // SAFETY: it came from `open`, and the file system that would use it is not
                    // there.
                    unsafe { below.close() };
                })?;
                let file_system = Arc::new(Mutex::new(file_system));
                *shared = Some(Shared { file_system: Arc::clone(&file_system), clients: 1 });
                file_system
            }
        };
        drop(shared);
        OpenFile::of(file_system, true, path)
    }

    fn of(file_system: Arc<Mutex<FileSystem>>, is_shared: bool, path: &str) -> Result<OpenFile> {
        let opened = lock(&file_system).open_file(path);
        match opened {
            Ok(inode) => Ok(OpenFile { file_system, is_shared, inode, path: path.to_owned() }),
            Err(error) => {
                drop(file_system);
                if is_shared {
                    leave();
                }
                Err(error)
            }
        }
    }

    /// Calls `body` with the file system.
    fn with<T>(&self, body: impl FnOnce(&mut FileSystem, &str, Inode) -> Result<T>) -> Result<T> {
        body(&mut lock(&self.file_system), &self.path, self.inode)
    }

    pub(crate) fn size(&self) -> Result<u64> {
        self.with(|file_system, _, inode| file_system.size(inode))
    }

    pub(crate) fn is_writable(&self) -> Result<bool> {
        self.with(|file_system, _, inode| file_system.is_writable(inode))
    }

    /// The layer that the file system is on.
    pub(crate) fn below(&self) -> Below {
        lock(&self.file_system).below()
    }

    pub(crate) fn read(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.with(|file_system, path, inode| file_system.read(path, inode, buf, offset))
    }

    pub(crate) fn write(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.with(|file_system, path, inode| file_system.write(path, inode, buf, offset))
    }

    pub(crate) fn flush(&self) -> Result<()> {
        self.with(|file_system, path, _| file_system.flush(path))
    }

    /// Closes the file, and the file system if this is its last user.
    ///
    /// # Errors
    /// What was written last cannot be.
    pub(crate) fn close(self) -> Result<()> {
        let closed = self.with(|file_system, _, inode| {
            let flushed = file_system.flush(&self.path);
            flushed.and(file_system.close_file(inode))
        });
        let OpenFile { file_system, is_shared, .. } = self;
        drop(file_system);
        if is_shared {
            leave();
        }
        closed
    }
}

fn lock(file_system: &Mutex<FileSystem>) -> MutexGuard<'_, FileSystem> {
    file_system.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A client less. The last one closes the file system, and then the layer below.
fn leave() {
    let mut shared = shared();
    let Some(now) = &mut *shared else { return };
    now.clients -= 1;
    if now.clients > 0 {
        return;
    }
    let Some(Shared { file_system, .. }) = shared.take() else { return };
    let below = lock(&file_system).below();
    // Nobody else has it: clients drop theirs before they leave.
    drop(file_system);
    // SAFETY: it came from `Below::open`, and the file system that used it has been closed. The
    // next client waits for the lock, and opens another.
    unsafe { below.close() };
}
