//! Tests of the filter as a whole, on a plugin in memory.

use std::sync::Arc;

use nbdkit_api::{BlockSize, Cache, Errno, Flags, Fua, Next, Zero};

use crate::testing::{self, Disk};

const NONE: Flags = Flags::empty();
const BLOCK: u64 = 65536;

/// The plugin's calls but for `open`.
fn calls(disk: &Disk) -> Vec<String> {
    let mut calls = disk.take_calls();
    calls.retain(|call| !call.starts_with("open"));
    calls
}

#[test]
fn writes_are_seen_by_all_and_never_reach_the_plugin() {
    let disk = Arc::new(Disk::pattern(1 << 20));
    let before = disk.data.lock().unwrap().clone();
    let layer = testing::layer(&disk, &["cow"], &[]);
    let (one, other) = (testing::open(&layer), testing::open(&layer));
    assert_eq!(disk.take_calls()[0], "open \"one\" readonly=true");
    one.pwrite(&[1; 100], BLOCK - 50, Flags::FUA).unwrap();
    one.flush().unwrap();
    let mut expected = before[BLOCK as usize - 60..][..120].to_vec();
    expected[10..110].fill(1);
    assert_eq!(testing::read(&other, 120, BLOCK - 60), expected);
    assert_eq!(calls(&disk), ["pread 65536@0", "pread 65536@65536"]);
    // In the overlay by now: nothing is read from the plugin.
    other.pwrite(&[2; 10], BLOCK, NONE).unwrap();
    expected[60..70].fill(2);
    assert_eq!(testing::read(&one, 120, BLOCK - 60), expected);
    assert!(calls(&disk).is_empty());
    assert!(*disk.data.lock().unwrap() == before);
}

#[test]
fn whole_blocks_are_written_without_reading() {
    let disk = Arc::new(Disk::pattern(1 << 20));
    let backend = testing::backend(&disk, &["cow"], &[]);
    disk.take_calls();
    backend.pwrite(&vec![3; 3 * BLOCK as usize], BLOCK, NONE).unwrap();
    assert!(calls(&disk).is_empty());
    assert_eq!(testing::read(&backend, 4, 4 * BLOCK - 2)[..2], [3, 3]);
}

#[test]
fn reads_take_from_above_and_below_what_is_there() {
    let disk = Arc::new(Disk::pattern(1 << 20));
    let backend = testing::backend(&disk, &["cow"], &[("cow-block-size", "4k")]);
    let mut expected = disk.data.lock().unwrap().clone();
    let mut write = |offset: usize, count: usize, byte| {
        backend.pwrite(&vec![byte; count], offset as u64, NONE).unwrap();
        expected[offset..][..count].fill(byte);
    };
    write(100, 10, 1);
    write(4096 * 3 - 1, 4098, 2);
    write(4096 * 9, 4096 * 20, 3);
    write(4096 * 15 + 5, 7, 4);
    write((1 << 20) - 1, 1, 5);
    backend.trim(4096 * 3, 4096 * 10, NONE).unwrap();
    expected[4096 * 10..4096 * 13].fill(0);
    assert!(testing::read(&backend, 1 << 20, 0) == expected);
    for (count, offset) in [(1, 0), (5000, 4090), (100_000, 4096 * 8 + 1)] {
        assert!(testing::read(&backend, count, offset as u64) == expected[offset..][..count]);
    }
}

#[test]
fn each_export_has_an_overlay_of_its_own() {
    let disk = Arc::new(Disk::new(1 << 20));
    let layer = testing::layer(&disk, &["cow"], &[]);
    let open = |name| testing::try_open(&layer, name, false).unwrap();
    open("a").pwrite(b"a", 5, NONE).unwrap();
    open("b").pwrite(b"b", 5, NONE).unwrap();
    assert_eq!(testing::read(&open("a"), 1, 5), b"a");
    assert_eq!(testing::read(&open("b"), 1, 5), b"b");
    assert_eq!(testing::read(&open("c"), 1, 5), [0]);
}

/// As Debian's nbdkit does, see also the extents below.
#[test]
fn trimming_drops_blocks_and_zeroes_their_parts() {
    let disk = Arc::new(Disk { extents: false, ..Disk::pattern((1 << 20) + 100) });
    let backend = testing::backend(&disk, &["cow"], &[]);
    backend.pwrite(&[9; 10], 3 * BLOCK, NONE).unwrap();
    backend.trim(2 * BLOCK, 7 * BLOCK + 1, NONE).unwrap();
    assert_eq!(testing::read(&backend, 2 * BLOCK as usize, 7 * BLOCK + 1), vec![0; 131072]);
    assert_eq!(testing::read(&backend, 1, 7 * BLOCK), [(7 * BLOCK % 251) as u8]);
    assert_eq!(testing::read(&backend, 1, 9 * BLOCK + 1), [((9 * BLOCK + 1) % 251) as u8]);
    // The last block is short, and whole all the same.
    backend.trim(BLOCK + 100, 15 * BLOCK, NONE).unwrap();
    backend.trim(BLOCK, 3 * BLOCK, NONE).unwrap();
    assert_eq!(testing::read(&backend, 10, 3 * BLOCK), [0; 10]);
    assert_eq!(
        testing::extents_of(&backend, (1 << 20) + 100, 0),
        [
            (0, 3 * BLOCK, 0),
            (3 * BLOCK, BLOCK, 3),
            (4 * BLOCK, 4 * BLOCK, 0),
            (8 * BLOCK, BLOCK, 3),
            (9 * BLOCK, 6 * BLOCK, 0),
            (15 * BLOCK, BLOCK + 100, 3),
        ]
    );
    // What is written to a trimmed block finds zeroes around it, not what was there before.
    backend.pwrite(&[7], 3 * BLOCK + 5, NONE).unwrap();
    assert_eq!(testing::read(&backend, 10, 3 * BLOCK), [0, 0, 0, 0, 0, 7, 0, 0, 0, 0]);
}

/// Without waiting: what is in the overlay, trimmed, and in one place below.
#[test]
fn reads_of_what_is_in_memory_need_not_wait() {
    let disk = Arc::new(Disk::pattern(1 << 20));
    let backend = testing::backend(&disk, &["cow"], &[]);
    let now = |count: usize, offset: u64| {
        let mut buf = vec![0xee; count];
        backend.try_pread(&mut buf, offset).map(|result| result.map(|()| buf).unwrap())
    };
    backend.pwrite(&[7; 2 * BLOCK as usize], 2 * BLOCK, NONE).unwrap();
    backend.trim(BLOCK, 4 * BLOCK, NONE).unwrap();
    // Not every file system can tell what is in memory.
    let can_tell = now(10, 2 * BLOCK).is_some();
    for (count, offset) in [(4096, 3 * BLOCK), (4 * BLOCK as usize - 50, BLOCK + 50)] {
        let expected = testing::read(&backend, count, offset);
        disk.take_calls();
        assert_eq!(now(count, offset), can_tell.then_some(expected), "{count}@{offset}");
        let below = usize::from(can_tell && offset < 2 * BLOCK);
        assert_eq!(disk.take_calls().len(), below, "{count}@{offset}");
    }
    assert_eq!(now(10, 4 * BLOCK + 5), Some(vec![0; 10]));
    disk.take_calls();
    assert_eq!(now(6 * BLOCK as usize, 0), None, "two runs are below");
    assert!(disk.take_calls().is_empty(), "nothing was done");
}

#[test]
fn parts_of_large_blocks_are_zeroed_in_pieces() {
    let disk = Arc::new(Disk::pattern(4 << 20));
    let backend = testing::backend(&disk, &["cow"], &[("cow-block-size", "4M")]);
    let mut expected = disk.data.lock().unwrap().clone();
    backend.pwrite(&[1; 700_000], 300_000, NONE).unwrap();
    expected[300_000..1_000_000].fill(1);
    backend.trim(3_000_000, 400_000, NONE).unwrap();
    expected[400_000..3_400_000].fill(0);
    assert!(testing::read(&backend, 4 << 20, 0) == expected);
}

#[test]
fn extents_below_show_through() {
    let disk = Arc::new(Disk::new(1 << 20));
    let backend = testing::backend(&disk, &["cow"], &[]);
    backend.pwrite(&[1], 3 * BLOCK, NONE).unwrap();
    assert_eq!(
        testing::extents_of(&backend, 6 * BLOCK, 0),
        [(0, BLOCK, 0), (BLOCK, BLOCK, 3), (2 * BLOCK, 3 * BLOCK, 0), (5 * BLOCK, BLOCK, 3),]
    );
    let mut one = nbdkit_api::Extents::new(BLOCK + 5, 1 << 20);
    backend.extents(6 * BLOCK, BLOCK + 5, Flags::REQ_ONE, &mut one).unwrap();
    assert_eq!(one.len(), 1);
    assert_eq!(one.covered_to(), 2 * BLOCK);
}

#[test]
fn what_is_read_or_prefetched_is_kept_if_wanted() {
    let disk = Arc::new(Disk::pattern(1 << 20));
    let params = [("cow-on-read", "true"), ("cow-on-cache", "true")];
    let backend = testing::backend(&disk, &["cow"], &params);
    disk.take_calls();
    let first = testing::read(&backend, 10, BLOCK);
    assert_eq!(calls(&disk), ["pread 65536@65536"]);
    assert_eq!(testing::read(&backend, 10, BLOCK), first);
    backend.cache(BLOCK, BLOCK).unwrap();
    assert!(calls(&disk).is_empty());
    backend.cache(BLOCK + 1, 5 * BLOCK).unwrap();
    assert_eq!(calls(&disk), ["pread 65536@327680", "pread 65536@393216"]);
    assert!(backend.try_pread(&mut [0], 0).is_none());

    let backend = testing::backend(&disk, &["cow"], &[]);
    disk.take_calls();
    backend.pwrite(&[1], BLOCK, NONE).unwrap();
    testing::read(&backend, 1, 0);
    testing::read(&backend, 1, 0);
    backend.cache(3 * BLOCK, 0).unwrap();
    assert_eq!(
        calls(&disk),
        ["pread 65536@65536", "pread 1@0", "pread 1@0", "cache 65536@0", "cache 65536@131072"]
    );
}

#[test]
fn reads_are_kept_while_the_path_exists() {
    let path = std::env::temp_dir().join(format!("cow-filter-{}", std::process::id()));
    let disk = Arc::new(Disk::pattern(1 << 20));
    let params = [("cow-on-read", path.to_str().unwrap())];
    let backend = testing::backend(&disk, &["cow"], &params);
    disk.take_calls();
    testing::read(&backend, 1, 0);
    std::fs::write(&path, b"").unwrap();
    testing::read(&backend, 1, 0);
    std::fs::remove_file(&path).unwrap();
    testing::read(&backend, 1, 0);
    assert_eq!(calls(&disk), ["pread 1@0", "pread 65536@0"]);
}

#[test]
fn a_block_that_cannot_be_read_stays_below() {
    let disk = Arc::new(Disk { fail_reads: Some(Errno::EIO), ..Disk::new(1 << 20) });
    let backend = testing::backend(&disk, &["cow"], &[]);
    assert!(backend.pwrite(&[1], 0, NONE).is_err());
    assert!(backend.pread(&mut [0], 0).is_err());
    backend.pwrite(&vec![1; BLOCK as usize], 0, NONE).unwrap();
    assert_eq!(testing::read(&backend, 1, 0), [1]);
}

#[test]
fn the_filter_says_what_nbdkits_says() {
    let below = BlockSize { minimum: 512, preferred: 8192, maximum: 1 << 20 };
    let disk = |block_size, cache| {
        Arc::new(Disk { block_size, cache, flush: false, trim: false, ..Disk::new(1 << 20) })
    };
    let open = |disk: &Arc<Disk>, size| -> Next {
        testing::backend(disk, &["cow"], &[("cow-block-size", size)])
    };
    for (size, above, alone) in [
        ("4k", 8192, 4096),
        ("64k", 65536, 65536),
        ("1M", 1 << 20, 1 << 20),
        ("64M", 8192, 32 << 20),
    ] {
        let backend = open(&disk(below, Cache::None), size);
        assert_eq!(backend.block_size().unwrap(), BlockSize { preferred: above, ..below });
        let backend = open(&disk(BlockSize::default(), Cache::Native), size);
        let expected = BlockSize { minimum: 1, preferred: alone, maximum: u32::MAX };
        assert_eq!(backend.block_size().unwrap(), expected);
    }
    let backend = open(&disk(below, Cache::None), "64k");
    assert!(backend.can_write().unwrap() && backend.can_flush().unwrap());
    assert!(backend.can_trim().unwrap() && backend.can_multi_conn().unwrap());
    assert!(backend.can_extents().unwrap());
    assert_eq!(backend.can_zero().unwrap(), Zero::None);
    assert_eq!(backend.can_fua().unwrap(), Fua::Native);
    assert_eq!(backend.can_cache().unwrap(), Cache::Emulate);
    assert_eq!(open(&disk(below, Cache::Emulate), "64k").can_cache().unwrap(), Cache::Native);
    let layer = testing::layer(&disk(below, Cache::None), &["cow"], &[]);
    assert!(!testing::try_open(&layer, "", true).unwrap().can_write().unwrap());
}

#[test]
fn writers_of_one_block_do_not_lose_each_others_updates() {
    let disk = Arc::new(Disk::pattern(16 * BLOCK as usize));
    let layer = testing::layer(&disk, &["cow"], &[]);
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let layer = &layer;
            scope.spawn(move || {
                let backend = testing::open(layer);
                for block in 0..16 {
                    backend
                        .pwrite(&[0xf0 + thread as u8; 10], block * BLOCK + thread * 10, NONE)
                        .unwrap();
                }
            });
        }
    });
    let backend = testing::open(&layer);
    let mut expected = disk.data.lock().unwrap().clone();
    for block in 0..16 {
        for thread in 0..4 {
            expected[block * BLOCK as usize + thread * 10..][..10].fill(0xf0 + thread as u8);
        }
    }
    assert!(testing::read(&backend, expected.len(), 0) == expected);
}

#[test]
fn bad_parameters_say_why() {
    for size in ["1k", "12k", "4G", "0"] {
        assert_eq!(
            testing::config_error("cow", &[("cow-block-size", size)]),
            "cow-block-size is out of range (4096..2G) or not a power of 2"
        );
    }
    assert_eq!(
        testing::config_error("cow", &[("cow-on-read", "foo")]),
        "could not decipher boolean (foo)"
    );
}
