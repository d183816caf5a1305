//! Tests of the limits through the filter, and of recovery after a worker was killed.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nbdkit_api::shared::SharedFile;
use nbdkit_api::{Errno, Flags, Layer, Next};

use super::accounts::Limits;
use super::blocks::{Blocks, Data};
use super::overlay::Overlay;
use super::table::Block;
use crate::testing::{self, Disk};

const NONE: Flags = Flags::empty();
const BLOCK: u64 = 4096;

/// A disk of 64 blocks whose overlay is limited, in blocks.
fn limited(limits: &[(&str, u64)]) -> (Arc<Disk>, Arc<Layer>) {
    let disk = Arc::new(Disk::pattern(64 * BLOCK as usize));
    let limits: Vec<_> =
        limits.iter().map(|(key, blocks)| (*key, (blocks * BLOCK).to_string())).collect();
    let mut parameters = vec![("cow-block-size", "4k")];
    parameters.extend(limits.iter().map(|(key, value)| (*key, value.as_str())));
    let layer = testing::layer(&disk, &["cow"], &parameters);
    (disk, layer)
}

fn open(layer: &Arc<Layer>, export: &str) -> Next {
    testing::try_open(layer, export, false).unwrap()
}

fn write(backend: &Next, byte: u8, blocks: u64, at: u64) -> nbdkit_api::Result<()> {
    backend.pwrite(&vec![byte; (blocks * BLOCK) as usize], at * BLOCK, NONE)
}

fn assert_full(result: nbdkit_api::Result<()>, limit: &str) {
    let error = result.unwrap_err();
    assert_eq!(error.errno(), Errno::ENOSPC, "{error}");
    assert!(error.message().ends_with(&format!("{limit} is reached")), "{error}");
}

#[test]
fn a_write_beyond_the_limit_changes_nothing_and_rewriting_goes_on() {
    let (disk, layer) = limited(&[("cow-max", 10)]);
    let one = open(&layer, "a");
    write(&one, 1, 8, 0).unwrap();
    // Half of it is there, and half of the rest would fit.
    let before = testing::read(&one, 64 * BLOCK as usize, 0);
    assert_full(write(&one, 2, 7, 4), "cow-max");
    assert_full(
        one.pwrite(&[3; 2 * BLOCK as usize], 8 * BLOCK - 1, NONE)
            .and_then(|()| write(&one, 3, 1, 20)),
        "cow-max",
    );
    let after = testing::read(&one, 64 * BLOCK as usize, 0);
    assert!(after[..8 * BLOCK as usize - 1] == before[..8 * BLOCK as usize - 1]);
    assert!(after[10 * BLOCK as usize..] == disk.data.lock().unwrap()[10 * BLOCK as usize..]);
    write(&one, 4, 10, 0).unwrap();
    assert!(testing::read(&one, 10 * BLOCK as usize, 0).iter().all(|byte| *byte == 4));
    // Other exports have an overlay of their own.
    write(&open(&layer, "b"), 5, 10, 20).unwrap();
    assert_full(write(&open(&layer, "a"), 5, 1, 20), "cow-max");
}

#[test]
fn trimming_frees_space() {
    let (_disk, layer) = limited(&[("cow-max", 4)]);
    let one = open(&layer, "");
    write(&one, 1, 4, 0).unwrap();
    assert_full(write(&one, 1, 1, 10), "cow-max");
    // A part of a block is written.
    one.trim(BLOCK / 2, 0, NONE).unwrap();
    assert_full(write(&one, 1, 1, 10), "cow-max");
    assert_full(one.trim(BLOCK / 2, 20 * BLOCK, NONE), "cow-max");
    // Both ends of this need a block, and there is space for one.
    one.trim(BLOCK, 0, NONE).unwrap();
    let before = testing::read(&one, 4 * BLOCK as usize, 20 * BLOCK);
    assert_full(one.trim(2 * BLOCK, 20 * BLOCK + 1, NONE), "cow-max");
    assert!(testing::read(&one, 4 * BLOCK as usize, 20 * BLOCK) == before);
    one.trim(64 * BLOCK, 0, NONE).unwrap();
    write(&one, 2, 4, 30).unwrap();
    one.trim(64 * BLOCK, 0, NONE).unwrap();
    write(&one, 2, 4, 1).unwrap();
    assert_full(write(&one, 1, 1, 10), "cow-max");
}

#[test]
fn a_connection_has_its_own_limit_and_all_exports_have_one() {
    let (_disk, layer) = limited(&[("cow-max-connection", 3), ("cow-max-total", 7)]);
    let (one, other) = (open(&layer, "a"), open(&layer, "b"));
    write(&one, 1, 3, 0).unwrap();
    assert_full(write(&one, 1, 1, 5), "cow-max-connection");
    assert_full(write(&one, 1, 4, 5), "cow-max-connection");
    write(&other, 1, 2, 0).unwrap();
    write(&open(&layer, "a"), 1, 2, 5).unwrap();
    assert_full(write(&other, 1, 1, 5), "cow-max-total");
    one.trim(2 * BLOCK, 0, NONE).unwrap();
    write(&other, 1, 1, 5).unwrap();
    write(&one, 1, 1, 0).unwrap();
    assert_full(write(&one, 1, 1, 1), "cow-max-total");
}

#[test]
fn reads_beyond_the_limit_succeed_and_are_not_kept() {
    for (key, ask) in [("cow-on-read", false), ("cow-on-cache", true)] {
        let disk = Arc::new(Disk::pattern(64 * BLOCK as usize));
        let parameters = [("cow-block-size", "4k"), ("cow-max", "8k"), (key, "true")];
        let layer = testing::layer(&disk, &["cow"], &parameters);
        let backend = open(&layer, "");
        let expected = disk.data.lock().unwrap().clone();
        for _ in 0..2 {
            if ask {
                backend.cache(64 * BLOCK, 0).unwrap();
            }
            assert!(testing::read(&backend, expected.len(), 0) == expected);
        }
        assert_full(write(&backend, 1, 1, 40), "cow-max");
        write(&backend, 1, 2, 0).unwrap();
    }
}

/// An overlay in memory: other file systems use space for metadata, too.
fn overlay(block_size: u64, limits: Limits) -> Arc<Overlay> {
    let file = SharedFile::in_memory("test", 0).unwrap();
    Arc::new(Overlay::in_file(file, block_size, limits).unwrap())
}

/// Two limits, one overlay, and no server around it.
fn bare(export: u64) -> (Arc<Disk>, Next, Arc<Overlay>, Blocks) {
    let disk = Arc::new(Disk::pattern(64 * BLOCK as usize));
    let below = testing::backend(&disk, &[], &[]);
    let limits = Limits { export: Some(export), total: Some(100), connection: None };
    let overlay = overlay(BLOCK, limits);
    let blocks = Blocks::new(Arc::clone(&overlay), "", 64 * BLOCK).unwrap();
    (disk, below, overlay, blocks)
}

/// Blocks that the overlay's file uses.
fn used(overlay: &Overlay) -> u64 {
    let stat = nix::sys::stat::fstat(overlay.file().as_fd()).unwrap();
    stat.st_blocks.cast_unsigned() * 512 / BLOCK
}

#[test]
fn an_account_that_a_killed_worker_left_unknown_is_counted_again() {
    let (_disk, below, overlay, blocks) = bare(6);
    blocks.write(&below, Data::Bytes(&[1; 5 * BLOCK as usize]), 0).unwrap();
    blocks.trim(&below, BLOCK, 0).unwrap();
    overlay.accounts.as_ref().unwrap().blocks[0].store(u64::MAX, Ordering::Relaxed);
    assert_eq!(blocks.quota().unwrap().bytes().unwrap(), 4 * BLOCK);
    assert_eq!(used(&overlay), 4);
}

#[test]
fn the_reservation_of_a_killed_worker_is_cleared() {
    let (_disk, below, overlay, blocks) = bare(6);
    let accounts = overlay.accounts.as_ref().unwrap();
    for at in [10, 20] {
        accounts.reserved[0].store(6, Ordering::Relaxed);
        // One block, and several.
        let data = vec![1; (at / 10 * BLOCK) as usize];
        blocks.write(&below, Data::Bytes(&data), at * BLOCK).unwrap();
    }
    assert_eq!(accounts.reserved[0].load(Ordering::Relaxed), 0);
    assert_eq!(blocks.quota().unwrap().bytes().unwrap(), 3 * BLOCK);
}

#[test]
fn the_cluster_that_a_killed_worker_was_filling_is_freed() {
    let (_disk, below, overlay, blocks) = bare(6);
    let table = overlay.tables.open::<Block>("", 64 * BLOCK).unwrap().1;
    blocks.write(&below, Data::Bytes(&[1; BLOCK as usize]), 0).unwrap();
    let Block::Present(published) = table.cursor().load(0).unwrap().0 else { panic!("written") };
    for (block, cluster, left) in [
        // Killed before the table referred to the cluster, or right after.
        (5, overlay.allocate().unwrap(), 1),
        (0, published, 1),
    ] {
        overlay.write(&[2; BLOCK as usize], overlay.offset(cluster).unwrap()).unwrap();
        overlay.lock(&table, block).abandon(cluster);
        drop(overlay.lock(&table, block));
        assert_eq!(used(&overlay), left, "{block}");
        assert!(overlay.locks.are_clean());
    }
    // Killed after the table was changed, before the cluster was freed.
    table.cursor().store(0, Block::Trimmed(Some(published))).unwrap();
    overlay.lock(&table, 0).abandon(published);
    drop(overlay.lock(&table, 0));
    assert_eq!(used(&overlay), 0);
}

#[test]
fn a_failed_write_uses_no_space() {
    let disk =
        Arc::new(Disk { fail_reads: Some(Errno::EIO), ..Disk::pattern(64 * BLOCK as usize) });
    let below = testing::backend(&disk, &[], &[]);
    let overlay = overlay(1 << 20, Limits::default());
    let blocks = Blocks::new(Arc::clone(&overlay), "", 2 << 20).unwrap();
    // The first piece of the block is written before the second has to be read.
    let data = vec![1; 300 << 10];
    assert!(blocks.write(&below, Data::Bytes(&data), 0).is_err());
    assert_eq!(used(&overlay), 0);
}

#[test]
fn limits_below_one_block_are_refused() {
    for key in ["cow-max", "cow-max-total", "cow-max-connection"] {
        assert_eq!(
            testing::config_error("cow", &[(key, "60k")]),
            format!("{key} is smaller than a block (65536 bytes)")
        );
    }
}
