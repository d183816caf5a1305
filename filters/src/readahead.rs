//! nbdkit-readahead-filter(1): prefetches what a client will read next, by cache requests that a
//! thread of the filter's sends to the layer below while the client's reads go on.
//!
//! One thread for each connection, started by its first read and joined before the layer below is
//! finalized. Reads never wait for it: what it is too slow to prefetch is dropped.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;

use nbdkit_api::{
    Cache, DataPath, Direction, Filter, Needs, Next, Open, OpenLayer, Result, Slot, ThreadModel,
    debug, error,
};

/// Most ranges that wait to be prefetched. The oldest is dropped for one more: the client has read
/// it by then.
const MAX_QUEUED: usize = 16;

/// The filter: whether the thread model permits prefetching.
#[derive(Debug, Default)]
pub struct ReadAhead {
    is_parallel: bool,
}

impl Filter for ReadAhead {
    fn name(&self) -> &str {
        "readahead"
    }

    fn longname(&self) -> Option<&str> {
        Some("nbdkit readahead filter")
    }

    fn get_ready(&mut self, model: ThreadModel) -> Result<()> {
        self.is_parallel = model == ThreadModel::Parallel;
        Ok(())
    }

    fn needs(&self, below: Needs) -> Needs {
        if self.is_parallel { below.threads() } else { below }
    }

    fn can_park(&self) -> bool {
        true
    }

    fn open(&self, below: &mut Slot<'_>, open: &Open<'_>) -> Result<Box<dyn OpenLayer>> {
        below.open(open)?;
        Ok(Box::new(Handle { is_parallel: self.is_parallel, prefetcher: OnceLock::new() }))
    }
}

struct Handle {
    is_parallel: bool,
    /// Set by `prepare` if this filter does anything.
    prefetcher: OnceLock<Prefetcher>,
}

impl OpenLayer for Handle {
    fn prepare(&self, next: &Next, _: bool) -> Result<()> {
        let is_cached = next.can_cache()? == Cache::Native;
        if self.is_parallel && is_cached {
            let _ = self.prefetcher.set(Prefetcher::default());
            return Ok(());
        }
        // Error messages, so that they are seen without -v. As in nbdkit.
        error!(
            "readahead: warning: underlying plugin does not support NBD_CMD_CACHE or PARALLEL \
             thread model, so the filter won't do anything"
        );
        if self.is_parallel {
            error!("readahead: try adding --filter=cache after this filter");
        }
        Ok(())
    }

    fn finalize(&self, _: &Next) -> Result<()> {
        if let Some(prefetcher) = self.prefetcher.get() {
            prefetcher.stop();
        }
        Ok(())
    }

    fn pread(&self, next: &Next, buf: &mut [u8], offset: u64) -> Result<()> {
        // First, so that the layer below has both to do at once.
        if let Some(prefetcher) = self.prefetcher.get() {
            prefetcher.read(next, buf.len() as u64, offset)?;
        }
        next.pread(buf, offset)
    }

    fn data_path(&self, direction: Direction) -> DataPath {
        match direction {
            Direction::Read if self.prefetcher.get().is_some() => DataPath::Opaque,
            Direction::Read | Direction::Write => DataPath::Transparent,
        }
    }

    /// What cannot block is read at once; the prefetching is for the reads after it.
    fn try_pread(&self, next: &Next, buf: &mut [u8], offset: u64) -> Option<Result<()>> {
        let result = next.try_pread(buf, offset)?;
        if let Some(prefetcher) = self.prefetcher.get()
            && let Err(error) = prefetcher.read(next, buf.len() as u64, offset)
        {
            return Some(Err(error));
        }
        Some(result)
    }
}

/// How far to read ahead. As nbdkit 1.32.5 was seen to do: the window doubles each time that a
/// client goes on beyond what was prefetched last, and begins anew when it goes back.
#[derive(Debug)]
struct Window {
    /// Bytes to prefetch behind the next read.
    length: u64,
    /// Where the last read began.
    last: u64,
    /// Where the last prefetching ended.
    end: u64,
}

impl Window {
    const MIN: u64 = 32 << 10;
    const MAX: u64 = 4 << 20;

    /// The range to prefetch, for a read of `count` bytes at `offset` of a disk of `size` bytes. It
    /// may be empty.
    fn advance(&mut self, count: u64, offset: u64, size: u64) -> Range {
        let begin = offset.saturating_add(count).min(size);
        let range = Range { offset: begin, count: self.length.min(size - begin) };
        if offset <= self.last {
            self.length = Window::MIN;
        } else if offset > self.end {
            self.length = (self.length * 2).min(Window::MAX);
        }
        self.last = offset;
        self.end = range.offset + range.count;
        range
    }
}

impl Default for Window {
    fn default() -> Window {
        Window { length: Window::MIN, last: 0, end: 0 }
    }
}

/// Bytes of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    offset: u64,
    count: u64,
}

/// What one connection prefetches, and its thread.
#[derive(Debug, Default)]
struct Prefetcher {
    shared: Arc<Shared>,
    thread: Mutex<Thread>,
}

#[derive(Debug, Default)]
enum Thread {
    #[default]
    NotStarted,
    Running(JoinHandle<()>),
    /// It was stopped, or could not be started.
    Ended,
}

/// What the thread shares with those of the server that carry out reads.
#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// Something is queued, or the thread is to end.
    work: Condvar,
}

#[derive(Debug, Default)]
struct State {
    window: Window,
    queue: VecDeque<Range>,
    stopped: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a range to prefetch; `None` when the thread is to end.
    fn next(&self) -> Option<Range> {
        let idle = |state: &mut State| state.queue.is_empty() && !state.stopped;
        let waited = self.work.wait_while(self.lock(), idle);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        if state.stopped { None } else { state.queue.pop_front() }
    }

    fn prefetch(&self, below: &Next) {
        while let Some(Range { offset, count }) = self.next() {
            // The client has not asked for it; if it reads there, it gets the error then.
            if let Err(error) = below.cache(count, offset) {
                debug!("readahead: cache count={count} offset={offset}: {error}");
            }
        }
    }
}

impl Prefetcher {
    /// Queues what should be prefetched because of a read.
    ///
    /// # Errors
    /// Those of asking the layer below for its size.
    fn read(&self, below: &Next, count: u64, offset: u64) -> Result<()> {
        let size = below.size()?;
        let mut state = self.shared.lock();
        let range = state.window.advance(count, offset, size);
        if range.count == 0 || state.stopped {
            return Ok(());
        }
        if state.queue.len() >= MAX_QUEUED {
            state.queue.pop_front();
        }
        state.queue.push_back(range);
        drop(state);
        self.shared.work.notify_one();
        self.start(below);
        Ok(())
    }

    fn thread(&self) -> MutexGuard<'_, Thread> {
        self.thread.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the thread unless that has been done.
    fn start(&self, below: &Next) {
        let mut thread = self.thread();
        if !matches!(*thread, Thread::NotStarted) {
            return;
        }
        let (shared, below) = (Arc::clone(&self.shared), below.clone());
        let started = std::thread::Builder::new()
            .name("readahead".to_owned())
            .spawn(move || shared.prefetch(&below));
        *thread = match started {
            Ok(handle) => Thread::Running(handle),
            Err(error) => {
                debug!("readahead: no thread, so nothing is prefetched: {error}");
                Thread::Ended
            }
        };
    }

    /// Drops what is queued, and waits for the thread to let go of the layer below: for at most
    /// one cache request.
    fn stop(&self) {
        let mut state = self.shared.lock();
        state.stopped = true;
        state.queue.clear();
        drop(state);
        self.shared.work.notify_one();
        if let Thread::Running(handle) = std::mem::replace(&mut *self.thread(), Thread::Ended)
            && handle.join().is_err()
        {
            debug!("readahead: the thread panicked");
        }
    }
}

impl Drop for Prefetcher {
    /// A layer that another one failed to prepare is closed without being finalized.
    fn drop(&mut self) {
        self.stop();
    }
}

#[cfg(test)]
mod tests;
