//! nbdkit-scan-filter(1): prefetches the whole disk, a block at a time, by cache requests that a
//! thread of the filter's sends to the layer below.
//!
//! One thread for each connection, started when the connection is prepared and joined before the
//! layer below is finalized. The threads of all workers take blocks from one shared position, so
//! that each block is prefetched once. A hostile worker can move the position, and nothing else.

mod position;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use nbdkit_api::{
    Cache, DataPath, Direction, Error, Filter, Needs, Next, NextConfig, Open, OpenLayer, Result,
    Slot, ThreadModel, Value, debug, error,
};

use position::Position;

/// The filter: its parameters and, once ready, the position of all workers.
#[derive(Debug)]
pub struct Scan {
    /// Reads beyond the position move it.
    ahead: bool,
    /// Connections go on where others were.
    clock: bool,
    /// From the end to the beginning again.
    forever: bool,
    /// Bytes of a block.
    block: u32,
    is_parallel: bool,
    shared: Option<Arc<Position>>,
}

impl Default for Scan {
    fn default() -> Scan {
        let (ahead, clock, forever, block) = (true, true, false, 2 << 20);
        Scan { ahead, clock, forever, block, is_parallel: false, shared: None }
    }
}

impl Filter for Scan {
    fn name(&self) -> &str {
        "scan"
    }

    fn longname(&self) -> Option<&str> {
        Some("nbdkit scan filter")
    }

    fn config_help(&self) -> Option<&str> {
        Some(
            "scan-ahead=false         Skip ahead when client reads faster.\n\
             scan-clock=false         Always start prefetching from beginning.\n\
             scan-forever=true        Scan in a loop while clients connected.\n\
             scan-size=NN             Set scan block size.",
        )
    }

    fn config(&mut self, next: NextConfig<'_>, key: &str, value: Value<'_>) -> Result<()> {
        match key {
            "scan-ahead" => self.ahead = value.boolean()?,
            "scan-clock" => self.clock = value.boolean()?,
            "scan-forever" => self.forever = value.boolean()?,
            "scan-size" => {
                self.block = u32::try_from(value.size()?)
                    .ok()
                    .filter(|size| size.is_power_of_two() && (512..=32 << 20).contains(size))
                    .ok_or_else(|| {
                        Error::msg("scan-size parameter should be [512..32M] and a power of two")
                    })?;
            }
            _ => return next.config(key, value),
        }
        Ok(())
    }

    fn get_ready(&mut self, model: ThreadModel) -> Result<()> {
        self.is_parallel = model == ThreadModel::Parallel;
        if self.clock {
            self.shared = Some(Arc::new(Position::shared()?));
        }
        Ok(())
    }

    fn needs(&self, below: Needs) -> Needs {
        if self.is_parallel { below.threads() } else { below }
    }

    fn open(&self, below: &mut Slot<'_>, open: &Open<'_>) -> Result<Box<dyn OpenLayer>> {
        let is_default = open.export.is_empty()
            || match open.client {
                Some(client) => {
                    let name = below.layer().default_export(client, open.readonly)?;
                    name.as_deref() == Some(open.export)
                }
                None => false,
            };
        below.open(open)?;
        let position = self.shared.as_ref().map_or_else(|| Arc::new(Position::own()), Arc::clone);
        Ok(Box::new(Handle {
            scans: is_default,
            is_parallel: self.is_parallel,
            ahead: self.ahead,
            scanner: Arc::new(Scanner {
                position,
                block: self.block.into(),
                forever: self.forever,
                stopped: AtomicBool::new(false),
            }),
            is_started: AtomicBool::new(false),
            thread: Mutex::default(),
        }))
    }
}

struct Handle {
    /// It is the default export.
    scans: bool,
    is_parallel: bool,
    ahead: bool,
    scanner: Arc<Scanner>,
    /// There is, or was, a thread.
    is_started: AtomicBool,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What a connection shares with its thread.
struct Scanner {
    position: Arc<Position>,
    block: u64,
    forever: bool,
    stopped: AtomicBool,
}

impl Scanner {
    fn scan(&self, below: &Next, size: u64) {
        while !self.stopped.load(Ordering::Relaxed) {
            let Some((offset, count)) = self.position.take(self.block, size, self.forever) else {
                debug!("scan: the whole disk was prefetched");
                return;
            };
            // The client has not asked for it; if it reads there, it gets the error then.
            if let Err(error) = below.cache(count, offset) {
                debug!("scan: cache count={count} offset={offset}: {error}");
            }
        }
    }
}

impl Handle {
    fn start(&self, next: &Next) -> Result<()> {
        let (scanner, below, size) = (Arc::clone(&self.scanner), next.clone(), next.size()?);
        let thread = std::thread::Builder::new()
            .name("scan".to_owned())
            .spawn(move || scanner.scan(&below, size))
            .map_err(|error| Error::io("scan: thread", &error))?;
        *self.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        self.is_started.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Waits for the thread to drop the layer below: for at most one cache request.
    fn stop(&self) {
        self.scanner.stopped.store(true, Ordering::Relaxed);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            debug!("scan: the thread panicked");
        }
    }

    fn notes_reads(&self) -> bool {
        self.ahead && self.is_started.load(Ordering::Relaxed)
    }

    fn note_read(&self, count: u64, offset: u64) {
        if self.notes_reads() {
            self.scanner.position.skip_to(offset.saturating_add(count));
        }
    }
}

impl Drop for Handle {
    /// A layer that another one failed to prepare is closed without being finalized.
    fn drop(&mut self) {
        self.stop();
    }
}

impl OpenLayer for Handle {
    fn prepare(&self, next: &Next, _: bool) -> Result<()> {
        // Error messages, so that they are seen without -v. As in nbdkit.
        if !self.scans {
            error!("scan: warning: not the default export, not scanning");
            return Ok(());
        }
        if !self.is_parallel {
            error!(
                "scan: warning: underlying plugin does not support the PARALLEL thread model, not \
                 scanning"
            );
            return Ok(());
        }
        if next.can_cache()? != Cache::Native {
            error!(
                "scan: warning: underlying plugin does not support NBD_CMD_CACHE, not scanning; \
                 try adding --filter=cache after this filter"
            );
            return Ok(());
        }
        self.start(next)
    }

    fn finalize(&self, _: &Next) -> Result<()> {
        self.stop();
        Ok(())
    }

    fn pread(&self, next: &Next, buf: &mut [u8], offset: u64) -> Result<()> {
        self.note_read(buf.len() as u64, offset);
        next.pread(buf, offset)
    }

    /// Asked after `prepare`.
    fn data_path(&self, direction: Direction) -> DataPath {
        match direction {
            Direction::Read if self.notes_reads() => DataPath::PerRequest,
            Direction::Read | Direction::Write => DataPath::Transparent,
        }
    }

    fn passes(&self, _: &Next, direction: Direction, count: u64, offset: u64) -> bool {
        if direction == Direction::Read {
            self.note_read(count, offset);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, Disk};
    use std::time::{Duration, Instant};

    /// The cache requests, once there are so many.
    fn prefetched(disk: &Disk, count: usize) -> Vec<String> {
        let start = Instant::now();
        loop {
            let mut calls = disk.calls.lock().unwrap().clone();
            calls.retain(|call| call.starts_with("cache"));
            if calls.len() >= count {
                return calls;
            }
            assert!(start.elapsed() < Duration::from_secs(60), "{calls:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn the_disk_is_prefetched_once_for_all_connections_of_a_clock() {
        let disk = Arc::new(Disk::new(2500));
        let expected = ["cache 1024@0", "cache 1024@1024", "cache 452@2048"];
        for clock in ["true", "false"] {
            let params = [("scan-size", "1024"), ("scan-clock", clock)];
            let layer = testing::layer(&disk, &["scan"], &params);
            for number in 0..3 {
                disk.take_calls();
                let backend = testing::open(&layer);
                if number == 0 || clock == "false" {
                    assert_eq!(prefetched(&disk, 3), expected);
                }
                backend.finalize().unwrap();
                let count = if number == 0 || clock == "false" { 3 } else { 0 };
                assert_eq!(prefetched(&disk, 0).len(), count, "{clock} {number}");
            }
        }
    }

    #[test]
    fn a_scan_forever_ends_with_its_connection() {
        let disk = Arc::new(Disk::new(1024));
        let params = [("scan-size", "512"), ("scan-forever", "true")];
        let backend = testing::backend(&disk, &["scan"], &params);
        let calls = prefetched(&disk, 100);
        assert_eq!(calls[98..100], ["cache 512@0", "cache 512@512"]);
        backend.finalize().unwrap();
        let count = prefetched(&disk, 0).len();
        assert_eq!(prefetched(&disk, 0).len(), count);
        drop(backend);
        // Only the disk's own handles are left: the thread has dropped its one.
        assert_eq!(Arc::strong_count(&disk), 1);
    }

    #[test]
    fn nothing_is_scanned_where_that_is_no_use() {
        let disk = Arc::new(Disk { cache: Cache::Emulate, ..Disk::new(1024) });
        let backend = testing::backend(&disk, &["scan"], &[]);
        assert_eq!(backend.passes_to(Direction::Read, 1, 1), Some(1));
        let disk = Arc::new(Disk::new(1024));
        let other =
            testing::try_open(&testing::layer(&disk, &["scan"], &[]), "two", false).unwrap();
        other.finalize().unwrap();
        let serial = testing::backend(&disk, &["scan", "noparallel"], &[]);
        serial.finalize().unwrap();
        assert_eq!(prefetched(&disk, 0), [""; 0]);
        for bad in ["0", "511", "1000", "64M", "4G", "x"] {
            testing::config_error("scan", &[("scan-size", bad)]);
        }
    }
}
