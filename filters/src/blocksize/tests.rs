use super::*;
use crate::testing::{self, Disk};

const MINBLOCK: (&str, &str) = ("minblock", "4k");
const MAXDATA: (&str, &str) = ("maxdata", "16k");
const MAXLEN: (&str, &str) = ("maxlen", "64k");

fn disk() -> (Arc<Disk>, Next) {
    let disk = Arc::new(Disk::pattern((1 << 20) + 100));
    let filter = testing::backend(&disk, &["blocksize"], &[MINBLOCK, MAXDATA, MAXLEN]);
    disk.take_calls();
    (disk, filter)
}

#[test]
fn reads_are_rounded_and_cut() {
    let (disk, filter) = disk();
    assert_eq!(filter.size().unwrap(), 1 << 20);
    let expected: Vec<u8> = (50..40050).map(|i| (i % 251) as u8).collect();
    assert_eq!(testing::read(&filter, 40_000, 50), expected);
    assert_eq!(
        disk.take_calls(),
        ["pread 4096@0", "pread 16384@4096", "pread 16384@20480", "pread 4096@36864"]
    );
    testing::read(&filter, 4096, 4096);
    assert_eq!(disk.take_calls(), ["pread 4096@4096"]);
    testing::read(&filter, 1, (1 << 20) - 1);
    assert_eq!(disk.take_calls(), ["pread 4096@1044480"]);
}

#[test]
fn a_part_of_one_block_need_not_wait_for_more_than_the_layer_below() {
    for (blocking, calls) in [(Blocking::Short, 0), (Blocking::Never, 2)] {
        let disk = Arc::new(Disk { blocking, ..Disk::pattern(1 << 20) });
        let filter = testing::backend(&disk, &["blocksize"], &[MINBLOCK, MAXDATA]);
        let now = |count: usize, offset: usize| {
            disk.take_calls();
            let mut buf = vec![0xee; count];
            let result = filter.try_pread(&mut buf, offset as u64);
            if result.is_some() {
                let expected: Vec<u8> = (offset..offset + count).map(|i| (i % 251) as u8).collect();
                assert!(buf == expected, "{count}@{offset}");
            }
            disk.take_calls()
        };
        assert_eq!(now(100, 50), ["pread 4096@0"]);
        assert_eq!(now(1, (1 << 20) - 1), ["pread 4096@1044480"]);
        assert_eq!(now(8192, 4096), ["pread 8192@4096"]);
        assert_eq!(now(4096, 4000).len(), calls, "two requests");
        assert_eq!(now(32_768, 4096).len(), calls, "more than maxdata");
    }
}

#[test]
fn only_writers_of_parts_of_blocks_wait_for_each_other() {
    let disk = Arc::new(Disk::new(8192));
    for (minblock, blocking) in [("1", Blocking::Never), ("2", Blocking::Short)] {
        let filter = testing::backend(&disk, &["blocksize"], &[("minblock", minblock)]);
        filter.size().unwrap();
        assert_eq!(filter.blocking(), blocking, "{minblock}");
    }
}

#[test]
fn writes_of_parts_leave_the_neighbours_as_they_are() {
    let (disk, filter) = disk();
    let mut expected = disk.data.lock().unwrap().clone();
    for (count, offset) in [(100, 50), (100, 4090), (40_000, 4090), (16_384, 8192), (1, 1048575)] {
        filter.pwrite(&vec![7; count], offset as u64, Flags::empty()).unwrap();
        expected[offset..offset + count].fill(7);
        assert!(*disk.data.lock().unwrap() == expected, "{count}@{offset}");
    }
    for (count, offset) in [(100, 500), (8192, 50), (200_000, 150), (4096, 0)] {
        filter.zero(count as u64, offset as u64, Flags::empty()).unwrap();
        expected[offset..offset + count].fill(0);
        assert!(*disk.data.lock().unwrap() == expected, "zero {count}@{offset}");
    }
}

#[test]
fn fua_is_in_every_write_or_one_flush_behind_them() {
    let (disk, filter) = disk();
    filter.pwrite(&[0; 8192], 50, Flags::FUA).unwrap();
    let writes = ["pread 4096@0", "pwrite 4096@0 FUA", "pwrite 4096@4096 FUA"];
    assert_eq!(disk.take_calls()[..3], writes);

    let disk = Arc::new(Disk { fua: Fua::Emulate, ..Disk::new(1 << 20) });
    let filter = testing::backend(&disk, &["blocksize"], &[MINBLOCK, MAXDATA, MAXLEN]);
    disk.take_calls();
    filter.trim(100_000, 50, Flags::FUA).unwrap();
    assert_eq!(disk.take_calls(), ["trim 65536@4096", "trim 28672@69632", "flush"]);
}

#[test]
fn a_fast_zero_of_parts_of_blocks_is_refused_before_anything_is_zeroed() {
    let (disk, filter) = disk();
    let error = filter.zero(200_000, 50, Flags::FAST_ZERO).unwrap_err();
    assert_eq!(error.errno(), Errno::EOPNOTSUPP);
    assert!(disk.take_calls().is_empty());
    filter.zero(8192, 4096, Flags::FAST_ZERO | Flags::MAY_TRIM).unwrap();
    assert_eq!(disk.take_calls(), ["zero 8192@4096 MAY_TRIM FAST_ZERO"]);
}

#[test]
fn extents_and_prefetching_are_rounded_to_blocks() {
    let (disk, filter) = disk();
    let extents = testing::extents_of(&filter, 200_000, 65_536 - 50);
    // The whole block before, then the hole, up to maxlen from the first block.
    assert_eq!(extents, [(65_486, 50, 0), (65_536, 61_440, 3)]);
    disk.take_calls();
    filter.cache(20_000, 50).unwrap();
    assert_eq!(disk.take_calls(), ["cache 16384@0", "cache 4096@16384"]);
}

/// nbdkit 1.32.5 computes the length in 32 bits, gets 0, and ends.
#[test]
fn extents_of_nearly_4_gib_from_an_unaligned_offset_are_found() {
    let layer = |minblock| Limits { minblock, maxdata: minblock, maxlen: 0xffff_0000 };
    let count = u64::from(u32::MAX);
    let limits = layer(65_536);
    assert_eq!(limits.round_up(1 + count) - limits.round_down(1), 1 << 32);
    let segments: Vec<_> = limits.segments(1 << 32, 0, limits.maxlen).map(|it| it.range).collect();
    assert_eq!(segments, [0..0xffff_0000, 0xffff_0000..1 << 32]);
}

#[test]
fn limits_follow_the_layer_below() {
    let below = BlockSize { minimum: 4096, preferred: 8192, maximum: 1 << 20 };
    let disk = Arc::new(Disk { block_size: below, ..Disk::new(4 << 20) });
    let filter = testing::backend(&disk, &["blocksize"], &[("minblock", "512")]);
    let own = BlockSize { minimum: 1, preferred: 8192, maximum: u32::MAX };
    assert_eq!(filter.block_size().unwrap(), own);
    disk.take_calls();
    testing::read(&filter, (1 << 20) + 1, 0);
    assert_eq!(disk.take_calls(), ["pread 1048576@0", "pread 4096@1048576"]);
    // A maximum that is no whole block.
    let disk = Arc::new(Disk { block_size: below, ..Disk::new(4 << 20) });
    let filter = testing::backend(&disk, &["blocksize"], &[("maxdata", "1000")]);
    disk.take_calls();
    testing::read(&filter, 8192, 0);
    assert_eq!(disk.take_calls(), ["pread 4096@0", "pread 4096@4096"]);
}

/// Each thread is a connection of its own, as two processes are, and writes its own bytes.
#[test]
fn clients_that_write_neighbours_in_one_block_lose_nothing() {
    const ROUNDS: usize = 2000;
    let disk = Arc::new(Disk::new(8192));
    let layer = testing::layer(&disk, &["blocksize"], &[MINBLOCK]);
    std::thread::scope(|scope| {
        // The last one writes the whole of the second block but a byte, and a whole block.
        for (count, offset) in [(16, 0), (16, 16), (16, 4095), (4, 32), (1, 8191)] {
            let filter = testing::open(&layer);
            let disk = &disk;
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    let byte = (round % 255) as u8 + 1;
                    filter.pwrite(&vec![byte; count], offset as u64, Flags::empty()).unwrap();
                    let now = disk.data.lock().unwrap()[offset..offset + count].to_vec();
                    assert_eq!(now, vec![byte; count], "round {round} of {count}@{offset}");
                    if round % 100 == 0 {
                        disk.take_calls();
                    }
                }
            });
        }
    });
}

#[test]
fn parameters_that_make_no_sense_are_refused() {
    for (params, why) in [
        (&[("minblock", "3")][..], "minblock must be a power of 2"),
        (&[("minblock", "128k")], "minblock must not exceed 65536"),
        (&[("maxlen", "0")], "parameter 'maxlen' must be non-zero if specified"),
        (&[("maxlen", "5G")], "parameter 'maxlen' too large"),
        (&[MINBLOCK, ("maxdata", "1000")], "maxdata must be a multiple of 4096"),
        (&[("maxlen", "1000"), MINBLOCK], "maxlen must be a multiple of 4096"),
    ] {
        assert_eq!(testing::config_error("blocksize", params), why);
    }
}
