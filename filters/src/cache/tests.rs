use super::*;
use crate::testing::{self, Disk};
use nbdkit_api::shared::SharedBlockMap;
use state::Owner;

const SMALL: (&str, &str) = ("cache-min-block-size", "4096");
const MAX: (&str, &str) = ("cache-max-size", "1M");

fn open(params: &[(&str, &str)]) -> (Arc<Disk>, Next) {
    let disk = Arc::new(Disk::pattern(1 << 20));
    let filter = testing::backend(&disk, &["cache"], params);
    disk.take_calls();
    (disk, filter)
}

#[test]
fn written_back_is_what_is_flushed() {
    let (disk, filter) = open(&[SMALL]);
    filter.pwrite(&[7; 100], 50, Flags::empty()).unwrap();
    filter.pwrite(&[8; 4096], 8192, Flags::empty()).unwrap();
    assert_eq!(disk.take_calls(), ["pread 4096@0"]);
    assert_eq!(testing::read(&filter, 100, 50), [7; 100]);
    assert_eq!(testing::read(&filter, 4096, 8192), [8; 4096]);
    assert!(disk.take_calls().is_empty());
    filter.flush().unwrap();
    assert_eq!(disk.take_calls(), ["pwrite 4096@0", "pwrite 4096@8192", "flush"]);
    assert_eq!(disk.data.lock().unwrap()[50..150], [7; 100]);
    filter.flush().unwrap();
    assert_eq!(disk.take_calls(), ["flush"]);
    filter.pwrite(&[9], 0, Flags::FUA).unwrap();
    assert_eq!(disk.take_calls(), ["pwrite 4096@0 FUA"]);
}

#[test]
fn each_mode_writes_when_it_should() {
    for (mode, write, flush) in [
        ("writeback", &[][..], &["pwrite 4096@4096", "flush"][..]),
        ("writethrough", &["pwrite 4096@4096"], &["flush"]),
        ("unsafe", &[], &[]),
    ] {
        let (disk, filter) = open(&[SMALL, ("cache", mode)]);
        filter.pwrite(&[7; 4096], 4096, Flags::empty()).unwrap();
        assert_eq!(disk.take_calls(), write, "{mode}");
        filter.flush().unwrap();
        assert_eq!(disk.take_calls(), flush, "{mode}");
        assert_eq!(testing::read(&filter, 4096, 4096), [7; 4096]);
        assert!(disk.take_calls().is_empty(), "{mode}");
    }
}

#[test]
fn reads_go_below_as_they_are_unless_they_are_cached() {
    let (disk, filter) = open(&[SMALL]);
    testing::read(&filter, 10_000, 50);
    assert_eq!(disk.take_calls(), ["pread 10000@50"]);
    filter.cache(1, 5000).unwrap();
    assert_eq!(disk.take_calls(), ["pread 4096@4096"]);
    let expected: Vec<u8> = (50..10_050).map(|i| (i % 251) as u8).collect();
    assert_eq!(testing::read(&filter, 10_000, 50), expected);
    assert_eq!(disk.take_calls(), ["pread 4046@50", "pread 1858@8192"]);
    let (disk, filter) = open(&[SMALL, ("cache-on-read", "true")]);
    assert_eq!(testing::read(&filter, 10_000, 50), expected);
    assert_eq!(disk.take_calls(), ["pread 4096@0", "pread 4096@4096", "pread 4096@8192"]);
    assert_eq!(testing::read(&filter, 10_000, 50), expected);
    assert!(disk.take_calls().is_empty());
}

/// Without waiting: what is all in the cache, dirty or not, or all below.
#[test]
fn reads_of_what_is_in_memory_need_not_wait() {
    let (disk, filter) = open(&[SMALL, MAX]);
    let now = |count: usize, offset: u64| {
        let mut buf = vec![0; count];
        filter.try_pread(&mut buf, offset).map(|result| result.map(|()| buf).unwrap())
    };
    filter.pwrite(&[7; 4096], 4096, Flags::empty()).unwrap();
    // Not every file system can tell what is in memory.
    let expected = testing::read(&filter, 100, 5000);
    assert_eq!(expected, [7; 100]);
    let can_tell = now(100, 5000).is_some();
    assert_eq!(now(100, 5000), can_tell.then_some(expected));
    filter.cache(1, 8192).unwrap();
    disk.take_calls();
    let expected: Vec<u8> =
        (6000..10_000).map(|at| if at < 8192 { 7 } else { (at % 251) as u8 }).collect();
    assert_eq!(now(4000, 6000), can_tell.then_some(expected));
    assert!(disk.take_calls().is_empty());
    assert_eq!(now(4096, 0).unwrap(), testing::read(&filter, 4096, 0));
    assert_eq!(disk.take_calls(), ["pread 4096@0", "pread 4096@0"]);
    let expected: Vec<u8> =
        (4095..8191).map(|at| if at < 4096 { (at % 251) as u8 } else { 7 }).collect();
    assert_eq!(now(4096, 4095), can_tell.then_some(expected));
    disk.take_calls();
    assert_eq!(now(20_000, 0), None, "two parts are below");
    assert!(disk.take_calls().is_empty(), "nothing was done");
    let (disk, filter) = open(&[SMALL, ("cache-on-read", "true")]);
    assert!(filter.try_pread(&mut [0; 10], 0).is_none(), "the block is brought into the cache");
    assert!(disk.take_calls().is_empty());
    testing::read(&filter, 10, 0);
    assert_eq!(filter.try_pread(&mut [0; 10], 0).is_some(), can_tell);
}

#[test]
fn the_short_block_at_the_end_is_written_short() {
    let disk = Arc::new(Disk::pattern(5000));
    let filter = testing::backend(&disk, &["cache"], &[SMALL]);
    disk.take_calls();
    filter.pwrite(&[9], 4999, Flags::empty()).unwrap();
    filter.flush().unwrap();
    assert_eq!(disk.take_calls(), ["pread 904@4096", "pwrite 904@4096", "flush"]);
    assert_eq!(disk.data.lock().unwrap()[4998..], [(4998 % 251) as u8, 9]);
}

/// Two connections, and a cache that is too small: everything is checked against a model.
#[test]
fn whatever_clients_do_they_read_what_was_written() {
    for (mode, on_read, max) in [
        ("writeback", "false", MAX),
        ("writeback", "true", MAX),
        ("writethrough", "true", MAX),
        ("unsafe", "false", MAX),
        ("writeback", "false", ("cache-max-size", "1G")),
    ] {
        let disk = Arc::new(Disk::pattern(3 << 20));
        let params = [SMALL, max, ("cache", mode), ("cache-on-read", on_read)];
        let layer = testing::layer(&disk, &["cache"], &params);
        let clients = [testing::open(&layer), testing::open(&layer)];
        let mut model = disk.data.lock().unwrap().clone();
        let mut seed = 1_u64;
        let mut random = |bound: usize| {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) as usize % bound
        };
        for step in 0..3000 {
            let client = &clients[random(2)];
            let count = 1 + random(30_000);
            let offset = random((3 << 20) - count);
            match random(8) {
                0..4 => {
                    let byte = random(256) as u8;
                    let flags = if random(10) == 0 { Flags::FUA } else { Flags::empty() };
                    client.pwrite(&vec![byte; count], offset as u64, flags).unwrap();
                    model[offset..offset + count].fill(byte);
                }
                4..6 => {
                    let data = testing::read(client, count, offset as u64);
                    assert!(data == model[offset..offset + count], "{mode} {step}");
                }
                6 => client.cache(count as u64, offset as u64).unwrap(),
                _ if random(10) == 0 => {
                    client.flush().unwrap();
                    assert!(
                        mode == "unsafe" || *disk.data.lock().unwrap() == model,
                        "{mode} {step}"
                    );
                }
                _ => client
                    .zero(count as u64, offset as u64, Flags::empty())
                    .map(|()| model[offset..offset + count].fill(0))
                    .unwrap(),
            }
            disk.take_calls();
        }
        assert!(testing::read(&clients[0], 3 << 20, 0) == model, "{mode}");
        clients[1].flush().unwrap();
        assert_eq!(*disk.data.lock().unwrap() == model, mode != "unsafe");
    }
}

/// nbdkit 1.32.5 loses 52 blocks of 64 here.
#[test]
fn a_cache_that_is_too_small_loses_nothing() {
    let disk = Arc::new(Disk::new(4 << 20));
    let filter = testing::backend(&disk, &["cache"], &[MAX]);
    for block in 0..64_u64 {
        filter.pwrite(&[block as u8 + 1; 65_536], block * 65_536, Flags::empty()).unwrap();
    }
    let expected: Vec<u8> = (1..=64).flat_map(|byte| [byte; 65_536]).collect();
    assert!(testing::read(&filter, 4 << 20, 0) == expected);
    filter.flush().unwrap();
    assert!(*disk.data.lock().unwrap() == expected);
}

#[test]
fn the_blocks_that_were_used_least_recently_leave() {
    let disk = Arc::new(Disk::new(4 << 20));
    let filter = testing::backend(&disk, &["cache"], &[MAX, ("cache", "writethrough")]);
    let is_cached = |block: u64| {
        disk.take_calls();
        testing::read(&filter, 1, block * 65_536);
        disk.take_calls().is_empty()
    };
    // 16 slots, of which 15 may be in use; 12 stay.
    (0..15).for_each(|block| filter.cache(1, block * 65_536).unwrap());
    assert!((0..15).all(is_cached));
    assert!(is_cached(0) && is_cached(3));
    filter.cache(1, 20 * 65_536).unwrap();
    filter.cache(1, 21 * 65_536).unwrap();
    let gone: Vec<_> = (0..22).filter(|block| !is_cached(*block)).collect();
    assert_eq!(gone, [1, 2, 4, 5, 15, 16, 17, 18, 19]);
}

#[test]
fn what_is_dirty_is_data() {
    let disk = Arc::new(Disk::new(1 << 20));
    let filter = testing::backend(&disk, &["cache"], &[]);
    filter.pwrite(&[1], 65_536, Flags::empty()).unwrap();
    filter.pwrite(&[1], 3 * 65_536, Flags::empty()).unwrap();
    let extents = testing::extents_of(&filter, 6 * 65_536, 0);
    assert_eq!(extents, [(0, 327_680, 0), (327_680, 65_536, 3)]);
    filter.flush().unwrap();
    assert_eq!(testing::extents_of(&filter, 65_536, 65_536), [(65_536, 65_536, 3)]);
    let mut one = Extents::new(0, 1 << 20);
    filter.extents(1 << 20, 0, Flags::REQ_ONE, &mut one).unwrap();
    assert_eq!(one.len(), 1);
}

#[test]
fn a_trim_drops_whole_blocks() {
    let (disk, filter) = open(&[SMALL]);
    filter.pwrite(&[1; 20_000], 0, Flags::empty()).unwrap();
    disk.take_calls();
    filter.trim(10_000, 4000, Flags::empty()).unwrap();
    assert_eq!(disk.take_calls(), ["trim 10000@4000"]);
    filter.flush().unwrap();
    let expected = ["pwrite 4096@0", "pwrite 4096@12288", "pwrite 4096@16384", "flush"];
    assert_eq!(disk.take_calls(), expected);
}

#[test]
fn a_client_that_leaves_writes_what_all_have_written() {
    let disk = Arc::new(Disk::new(1 << 20));
    let layer = testing::layer(&disk, &["cache"], &[]);
    let (one, other) = (testing::open(&layer), testing::open(&layer));
    one.pwrite(&[1], 0, Flags::empty()).unwrap();
    other.pwrite(&[2], 1 << 19, Flags::empty()).unwrap();
    disk.take_calls();
    one.finalize().unwrap();
    assert_eq!(disk.take_calls(), ["pwrite 65536@0", "pwrite 65536@524288", "flush"]);
    other.finalize().unwrap();
    assert!(disk.take_calls().is_empty());
}

/// As if its worker had been killed.
#[test]
fn what_a_client_leaves_behind_is_written_at_the_end() {
    let disk = Arc::new(Disk::new(1 << 20));
    let layer = testing::layer(&disk, &["cache"], &[]);
    for export in ["a", "b"] {
        let client = testing::try_open(&layer, export, false).unwrap();
        client.pwrite(export.as_bytes(), 65_536, Flags::empty()).unwrap();
        drop(client);
        disk.take_calls();
    }
    layer.cleanup();
    let calls = disk.take_calls();
    assert_eq!(calls[0], "open \"a\" readonly=false");
    assert_eq!(calls[1..3], ["pwrite 65536@65536", "flush"]);
    assert_eq!(calls[3], "open \"b\" readonly=false");
    assert_eq!(disk.data.lock().unwrap()[65_536], b'b');
}

/// A store with its blocks, and the layer below.
fn blocks(disk: &Arc<Disk>, params: &[(&str, &str)]) -> (Blocks, Next) {
    let mut cache = Cache { min_block_size: 4096, ..Cache::default() };
    if params.contains(&MAX) {
        cache.max_size = Some(1 << 20);
    }
    let store = cache.store_in(SharedFile::in_memory("cache", 0).unwrap()).unwrap();
    let next = testing::backend(disk, &[], &[]);
    (Blocks::new(Arc::new(store), "", 1 << 20).unwrap(), next)
}

fn owners(blocks: &Blocks) -> usize {
    blocks.owners.present().filter(Result::is_ok).count()
}

#[test]
fn the_slot_of_a_killed_worker_is_freed_by_the_next_holder_of_the_lock() {
    let disk = Arc::new(Disk::pattern(1 << 20));
    let (blocks, next) = blocks(&disk, &[]);
    // Killed while it filled the slot.
    let owner = Owner::Block { export: 0, block: 5 };
    blocks.owners.cursor().store(9, owner).unwrap();
    blocks.lock_in(&blocks.map, 5).abandon(9);
    blocks.write_block(&next, 5, 0, &[1; 4096], None, 1).unwrap();
    assert_eq!(owners(&blocks), 1);
    assert_eq!(blocks.owners.cursor().load(9).unwrap().0, Owner::Free);
    // Killed after it had stored the state.
    let State::Dirty(slot) = blocks.state_at(5 * 4096).unwrap().0 else { panic!("not dirty") };
    blocks.lock_in(&blocks.map, 5).abandon(slot.number);
    blocks.prefetch(&next, 5 + 64, 1).unwrap();
    assert_eq!(blocks.state_at(5 * 4096).unwrap().0, State::Dirty(slot));
    // A note that makes no sense.
    for nonsense in [slot.number, 1 << 37, u64::MAX - 1] {
        blocks.lock_in(&blocks.map, 6).abandon(nonsense);
        blocks.prefetch(&next, 6 + 64, 1).unwrap();
        assert_eq!(blocks.owners.cursor().load(slot.number).unwrap().0, owner);
    }
}

#[test]
fn slots_that_killed_workers_have_left_are_found_when_room_is_made() {
    let disk = Arc::new(Disk::pattern(1 << 20));
    let (blocks, next) = blocks(&disk, &[MAX]);
    for number in 0..250 {
        blocks.owners.cursor().store(number, Owner::Block { export: 0, block: number }).unwrap();
    }
    blocks.store.set_in_use(256);
    Evictor::default().make_room(&blocks, &next).unwrap();
    assert!(owners(&blocks) <= 204 && blocks.store.in_use() <= 204);
    // And the count is right again if it was off.
    blocks.store.set_in_use(1 << 40);
    Evictor::default().make_room(&blocks, &next).unwrap();
    assert_eq!(blocks.store.in_use(), owners(&blocks) as u64);
}

#[test]
fn a_full_file_system_makes_blocks_leave() {
    let disk = Arc::new(Disk::pattern(1 << 20));
    let (blocks, next) = blocks(&disk, &[]);
    for block in 0..100 {
        blocks.write_block(&next, block, 0, &[1; 4096], None, 1).unwrap();
    }
    assert_eq!(blocks.store.bytes(), 100 * 4096);
    blocks.store.set_full();
    let evictor = Evictor::default();
    evictor.make_room(&blocks, &next).unwrap();
    assert_eq!(blocks.store.bytes(), 36 * 4096);
    evictor.make_room(&blocks, &next).unwrap();
    assert_eq!(blocks.store.bytes(), 36 * 4096);
    blocks.write_back_all(&next).unwrap();
    assert_eq!(disk.data.lock().unwrap()[..409_600], [1; 409_600]);
}

#[test]
fn what_the_layer_below_refuses_is_not_in_a_write_through_cache() {
    let disk = Arc::new(Disk::pattern(1 << 20));
    let params = [
        SMALL,
        ("cache", "writethrough"),
        ("error-pwrite", "ENOSPC"),
        ("error-pwrite-rate", "100%"),
    ];
    let filter = testing::backend(&disk, &["cache", "error"], &params);
    filter.cache(4096, 0).unwrap();
    let error = filter.pwrite(&[1], 1, Flags::empty()).unwrap_err();
    assert_eq!(error.errno(), Errno::ENOSPC);
    assert_eq!(testing::read(&filter, 3, 0), [0, 1, 2]);
    filter.flush().unwrap();
}

#[test]
fn nonsense_in_the_tables_is_an_error_and_nothing_else() {
    let disk = Arc::new(Disk::pattern(1 << 20));
    for word in [3, u64::MAX, 1 << 63 | 1, 1 << 63 | 2, 7 << 26 | 1] {
        let (blocks, next) = blocks(&disk, &[MAX]);
        blocks.write_block(&next, 0, 0, &[1; 4096], None, 1).unwrap();
        let position = blocks.map.position(0);
        blocks.store.maps.scribble_map(position, word).unwrap();
        let _ = blocks.read(&next, &mut [0; 5000], 0);
        let _ = blocks.write_block(&next, 0, 0, &[1; 10], None, 1);
        let _ = blocks.write_back_all(&next);
        let _ = blocks.discard(0);
        let other: SharedBlockMap<Owner> = blocks.store.slots.get(0).unwrap();
        let positions = (0..256).map(|slot| other.position(slot));
        positions.for_each(|at| blocks.store.slots.scribble_map(at, word).unwrap());
        blocks.store.set_in_use(1000);
        let _ = Evictor::default().make_room(&blocks, &next);
        let _ = blocks.prefetch(&next, 9, 1);
    }
}

#[test]
fn parameters_that_make_no_sense_are_refused() {
    for (params, why) in [
        (
            &[("cache", "foo")][..],
            "invalid cache parameter, should be writeback|writethrough|unsafe",
        ),
        (&[("cache-max-size", "1023k")], "cache-max-size is too small"),
        (&[("cache-low-threshold", "0")], "cache-low-threshold must be greater than zero"),
        (
            &[MAX, ("cache-high-threshold", "80")],
            "cache-low-threshold must be less than cache-high-threshold",
        ),
    ] {
        assert_eq!(testing::config_error("cache", params), why);
    }
    for size in ["5000", "2048", "4G"] {
        let error = testing::config_error("cache", &[("cache-min-block-size", size)]);
        assert!(error.starts_with("cache-min-block-size is not a power of 2, "), "{error}");
    }
}

/// Each thread has a part of the disk of its own, and they share blocks at its ends and slots.
#[test]
fn clients_that_evict_each_others_blocks_lose_nothing() {
    const PART: usize = (512 << 10) + 1000;
    let disk = Arc::new(Disk::new(4 * PART));
    let layer = testing::layer(&disk, &["cache"], &[SMALL, MAX, ("cache-on-read", "true")]);
    std::thread::scope(|scope| {
        for part in 0..4 {
            let (client, disk) = (testing::open(&layer), &disk);
            scope.spawn(move || {
                let mut model = vec![0; PART];
                for step in 0..1500_usize {
                    let count = 1 + step * 7919 % 20_000;
                    let at = (step * 104_729 + part * 31) % (PART - count);
                    let offset = (part * PART + at) as u64;
                    if step % 3 == 0 {
                        assert!(testing::read(&client, count, offset) == model[at..at + count]);
                    } else {
                        let byte = (step % 255) as u8 + 1;
                        client.pwrite(&vec![byte; count], offset, Flags::empty()).unwrap();
                        model[at..at + count].fill(byte);
                    }
                    disk.take_calls();
                }
                client.flush().unwrap();
                assert!(disk.data.lock().unwrap()[part * PART..][..PART] == model);
            });
        }
    });
}

/// There is one slot, which two blocks have in turn.
#[test]
fn a_reader_never_sees_what_another_block_has_in_the_slot() {
    let disk = Arc::new(Disk::new(1 << 20));
    disk.data.lock().unwrap()[4096..8192].fill(1);
    let cache = Cache { min_block_size: 4096, ..Cache::default() };
    let mut store = cache.store_in(SharedFile::in_memory("cache", 0).unwrap()).unwrap();
    store.limit_for_test(1);
    let next = testing::backend(&disk, &[], &[]);
    let blocks = Blocks::new(Arc::new(store), "", 1 << 20).unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                for block in [0, 1] {
                    blocks.prefetch(&next, block, 1).unwrap();
                    blocks.discard(block).unwrap();
                }
                disk.take_calls();
            }
        });
        let mut seen = 0;
        for _ in 0..30_000 {
            let mut buf = [7; 4096];
            blocks.read(&next, &mut buf, 0).unwrap();
            seen += buf.iter().filter(|byte| **byte != 0).count();
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(seen, 0);
    });
}
