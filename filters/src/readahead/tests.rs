//! What is prefetched, by a plugin in memory that notes what it is asked.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::*;
use crate::testing::{self, Disk};
use nbdkit_api::{Errno, Error};

/// The ranges that are prefetched for reads of 512 bytes at these offsets.
fn windows(offsets: &[u64], size: u64) -> Vec<(u64, u64)> {
    let mut window = Window::default();
    let range = |offset: &u64| window.advance(512, *offset, size);
    offsets.iter().map(range).map(|range| (range.offset, range.count)).collect()
}

fn lengths(offsets: &[u64]) -> Vec<u64> {
    windows(offsets, 1 << 40).into_iter().map(|(_, count)| count).collect()
}

/// The numbers are those of Debian's nbdkit 1.32.5.
#[test]
fn the_window_grows_with_jumps_ahead_and_shrinks_with_steps_back() {
    let (small, double) = (0x8000, 0x10000);
    let sequential: Vec<_> = (0..100).map(|i| i * 512).collect();
    assert_eq!(lengths(&sequential), [small; 100]);
    assert_eq!(windows(&[0, 512], 1 << 40), [(512, small), (1024, small)]);
    // At the last byte of the window, and behind it.
    assert_eq!(lengths(&[0, 33280, 0]), [small; 3]);
    assert_eq!(lengths(&[0, 33281, 0]), [small, small, double]);
    // The window that counts is the one that was prefetched, not the one that is next.
    assert_eq!(lengths(&[1_000_000, 1_033_280, 0]), [small, double, double]);
    assert_eq!(lengths(&[1_000_000, 1_033_281, 0]), [small, double, 2 * double]);
    assert_eq!(lengths(&[1_000_000, 1_000_000, 0]), [small, double, small]);
    assert_eq!(lengths(&[1_000_000, 1_000_001, 0]), [small, double, double]);
    let jumps: Vec<_> = (1..11).map(|i| i * 10_000_000).collect();
    let doubled: Vec<_> = (0..10).map(|i| (small << i).min(0x40_0000)).collect();
    assert_eq!(lengths(&jumps), doubled);
}

#[test]
fn the_window_ends_with_the_disk() {
    let prefetched = windows(&[0, 80_000, 99_488], 100_000);
    assert_eq!(prefetched, [(512, 0x8000), (80_512, 0x4c20), (100_000, 0)]);
    assert_eq!(windows(&[u64::MAX - 512], u64::MAX), [(u64::MAX, 0)]);
}

/// Waits until the plugin has been asked for this.
fn wait_for(disk: &Disk, call: &str) -> Vec<String> {
    let start = Instant::now();
    loop {
        let calls = disk.calls.lock().unwrap().clone();
        if calls.iter().any(|known| known == call) {
            return calls;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "{call} is not among {calls:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn reads_are_followed_by_prefetching_until_the_connection_ends() {
    let disk = Arc::new(Disk::pattern(1 << 20));
    let backend = testing::backend(&disk, &["readahead"], &[]);
    let expected = disk.data.lock().unwrap()[1000..1512].to_vec();
    assert_eq!(testing::read(&backend, 512, 1000), expected);
    wait_for(&disk, "cache 32768@1512");
    let mut buf = [0; 512];
    backend.try_pread(&mut buf, 4096).unwrap().unwrap();
    let calls = wait_for(&disk, "cache 65536@4608");
    assert_eq!(calls.iter().filter(|call| call.starts_with("pread")).count(), 2);
    backend.finalize().unwrap();
    disk.take_calls();
    // A request that comes after all is carried out, and starts no thread.
    testing::read(&backend, 512, 0);
    assert_eq!(disk.take_calls(), ["pread 512@0"]);
}

#[test]
fn a_connection_that_is_not_finalized_ends_its_thread_too() {
    let disk = Arc::new(Disk::new(1 << 20));
    let backend = testing::backend(&disk, &["readahead"], &[]);
    testing::read(&backend, 1, 0);
    wait_for(&disk, "cache 32768@1");
    let handles = Arc::strong_count(&disk);
    drop(backend);
    // The plugin's handle is closed by now: its thread has let go of it.
    assert!(Arc::strong_count(&disk) < handles);
}

/// A plugin below that is stuck must hold up neither reads nor memory.
#[test]
fn reads_do_not_wait_for_prefetching_and_what_is_queued_is_bounded() {
    let disk = Arc::new(Disk::new(1 << 20));
    let prefetcher = Prefetcher::default();
    *prefetcher.thread() = Thread::Ended;
    let below = testing::backend(&disk, &[], &[]);
    for i in 0..1000 {
        prefetcher.read(&below, 512, i * 512).unwrap();
    }
    let state = prefetcher.shared.lock();
    assert_eq!(state.queue.len(), MAX_QUEUED);
    assert_eq!(state.queue.back(), Some(&Range { offset: 512_000, count: 0x8000 }));
}

#[test]
fn where_the_filter_does_nothing_all_requests_pass_and_no_thread_is_started() {
    for cache in [Cache::None, Cache::Emulate] {
        let disk = Arc::new(Disk { cache, ..Disk::new(1 << 20) });
        let backend = testing::backend(&disk, &["readahead"], &[]);
        assert_eq!(backend.passes_to(Direction::Read, 512, 7), Some(7));
        assert_eq!(backend.can_cache().unwrap(), cache);
    }
    let disk = Arc::new(Disk::new(1 << 20));
    let stack = testing::try_stack(&disk, &["noparallel", "readahead"], &[]).unwrap();
    assert!(!stack.needs(false).threads);
    let layer = stack.freeze();
    let backend = testing::open(&layer);
    assert_eq!(backend.passes_to(Direction::Read, 512, 7), Some(7));
    assert!(testing::try_stack(&disk, &["readahead"], &[]).unwrap().needs(false).threads);
}

/// Fails the first cache request, and counts them.
#[derive(Default)]
struct Failing(Arc<AtomicUsize>);

impl Filter for Failing {
    fn name(&self) -> &str {
        "failing"
    }

    fn open(&self, below: &mut Slot<'_>, open: &Open<'_>) -> Result<Box<dyn OpenLayer>> {
        below.open(open)?;
        Ok(Box::new(Failing(Arc::clone(&self.0))))
    }
}

impl OpenLayer for Failing {
    fn cache(&self, next: &Next, count: u64, offset: u64) -> Result<()> {
        match self.0.fetch_add(1, Ordering::SeqCst) {
            0 => Err(Error::new(Errno::EIO, "made to fail")),
            _ => next.cache(count, offset),
        }
    }
}

#[test]
fn prefetching_that_fails_is_nothing_to_the_client_and_goes_on() {
    let disk = Arc::new(Disk::new(1 << 20));
    let failing = Failing::default();
    let cached = Arc::clone(&failing.0);
    let filters: Vec<Box<dyn Filter>> = vec![Box::new(ReadAhead::default()), Box::new(failing)];
    let layer = testing::try_stack_of(&disk, filters, &[]).unwrap().freeze();
    let backend = testing::open(&layer);
    testing::read(&backend, 512, 0);
    let start = Instant::now();
    while cached.load(Ordering::SeqCst) == 0 {
        assert!(start.elapsed() < Duration::from_secs(60), "nothing was prefetched");
        std::thread::sleep(Duration::from_millis(1));
    }
    testing::read(&backend, 512, 512);
    wait_for(&disk, "cache 32768@1024");
}
