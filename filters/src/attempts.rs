//! Compares reads that are tried on the thread that reads requests, [`OpenLayer::try_pread`], with
//! those that are not, for every filter in the configurations of [`data_paths`](crate::data_paths).
//!
//! A filter that gives up although the layer below has the data sends every read to another thread,
//! which costs several system calls; one that gives up and has counted the read counts it twice.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nbdkit_api::shared::SharedFile;
use nbdkit_api::{Blocking, Direction, Next, page_cache};

use crate::data_paths::{FILTERS, Parameters, Random, Share, calls};
use crate::testing::{self, Disk};

const SIZE: usize = 256 << 10;
const COUNT: usize = 512;

/// Which filters do not answer although the layer below would, and why.
const SLEEPERS: [(&str, &str); 2] = [
    ("delay", "sleeps before each read"),
    ("retry", "waits for the layer below to be opened anew; requests come one at a time"),
];

/// Filters with a file of their own that is not in memory, as far as the kernel tells.
const OF_FILES: [&str; 7] = ["bzip2", "cache", "cow", "gzip", "lzip", "xz", "zstd"];

/// Filters whose disk below has to be one that they can read, that have none, or that fail every
/// read as they are configured here.
const PARTICULAR: [&str; 13] = [
    "bzip2",
    "ddrescue",
    "gzip",
    "indexed-gzip",
    "luks",
    "lzip",
    "partition",
    "qcow2dec",
    "tar",
    "time-limit",
    "tls-fallback",
    "xz",
    "zstd",
];

type Configuration = (&'static str, Vec<(&'static str, String)>);

/// The configurations, with files of this test.
fn configurations(
    test: &str,
    wanted: impl Fn(&str, Parameters, Share) -> bool,
) -> Vec<Configuration> {
    let wanted = FILTERS.iter().filter(|(name, params, reads, _)| wanted(name, params, *reads));
    let own = |params: &[(&'static str, &str)]| {
        params.iter().map(|(key, value)| (*key, value.replace("data-paths", test))).collect()
    };
    wanted.map(|(name, params, ..)| (*name, own(params))).collect()
}

/// A layer that may have to wait for a device, with `filters` on it.
fn open(disk: &Arc<Disk>, filters: &[&Configuration]) -> Next {
    let names: Vec<&str> = filters.iter().map(|(name, _)| *name).collect();
    let params = filters.iter().flat_map(|(_, params)| params);
    let params: Vec<(&str, &str)> = params.map(|(key, value)| (*key, value.as_str())).collect();
    testing::backend(disk, &names, &params)
}

/// Whether a read is answered at once, all along. It was read before, so that what filters keep is
/// kept.
fn answers(next: &Next) -> bool {
    let (mut buf, offset) = ([0; COUNT], 4 * COUNT as u64);
    // Some filters fail now and then, or always.
    let _ = (0..20).find(|_| next.pread(&mut buf, offset).is_ok());
    (0..5).all(|_| next.try_pread(&mut buf, offset).is_some())
}

/// Whether the kernel tells what of a temporary file is in memory: not on every file system.
fn can_tell() -> bool {
    let file = SharedFile::temporary("attempts", 1).unwrap();
    let can_tell = page_cache::is_in_memory(file.as_fd(), 0);
    if !can_tell {
        eprintln!("SKIPPED: filters with files in a directory that cannot tell what is in memory");
    }
    can_tell
}

#[test]
fn every_filter_that_does_not_sleep_answers_where_the_layer_below_does() {
    let can_tell = can_tell();
    for filter in configurations("attempts-1", |_, _, _| true) {
        let (name, params) = &filter;
        let Some(disk) = testing::device_for(name, SIZE) else { continue };
        let next = open(&disk, &[&filter]);
        let sleeps = SLEEPERS.iter().any(|(sleeper, _)| sleeper == name)
            && next.passes_to(Direction::Read, 1, 0).is_none();
        if can_tell || !OF_FILES.contains(name) {
            assert_eq!(answers(&next), !sleeps, "{name} {params:?}");
        }
        // The close of exitlast stops the server.
        std::mem::forget(next);
    }
    let _ = std::fs::remove_file("/tmp/nbdkit-index-attempts-1");
}

#[test]
fn filters_answer_in_every_order() {
    let can_tell = can_tell();
    let sees_reads = configurations("attempts-2", |name, params, reads| {
        reads != Share::All
            // After a failure, retry-request sleeps.
            && params != [("error-rate", "50%")]
            && !SLEEPERS.iter().any(|(sleeper, _)| *sleeper == name)
            && !PARTICULAR.contains(&name)
            && (can_tell || !OF_FILES.contains(&name))
    });
    assert!(sees_reads.len() > 10);
    for outer in &sees_reads {
        for inner in sees_reads.iter().filter(|inner| inner.0 != outer.0) {
            let disk = Arc::new(Disk { blocking: Blocking::Short, ..Disk::pattern(SIZE) });
            let next = open(&disk, &[outer, inner]);
            assert!(answers(&next), "{outer:?} on {inner:?}");
        }
    }
}

/// What a read returned, and what it asked of the layer below.
type Outcome = (Result<Vec<u8>, i32>, Vec<String>);

/// Two stacks that get the same reads, one of them after an attempt that cannot be answered below.
#[test]
fn an_attempt_in_vain_changes_nothing() {
    for filter in configurations("attempts-3", |_, _, _| true) {
        let (name, params) = &filter;
        let read = |tries: bool| -> Option<Vec<Outcome>> {
            let disk = testing::device_for(name, SIZE)?;
            disk.cached.store(false, Ordering::Relaxed);
            let next = open(&disk, &[&filter]);
            let (random, size) = (Random::new(), next.size().unwrap());
            let one = || {
                let count = 1 + random.below(size.min(5000));
                let offset = random.below(size - count + 1);
                let mut buf = vec![0; count as usize];
                disk.take_calls();
                let attempt = if tries { next.try_pread(&mut buf, offset) } else { None };
                let result = attempt.unwrap_or_else(|| next.pread(&mut buf, offset));
                (result.map(|()| buf).map_err(|error| error.errno() as i32), calls(&disk))
            };
            let made = (0..100).map(|_| one()).collect();
            std::mem::forget(next);
            Some(made)
        };
        assert!(read(true) == read(false), "{name} {params:?}");
    }
    let _ = std::fs::remove_file("/tmp/nbdkit-index-attempts-3");
}
