//! What Debian's nbdkit does, ours does: rows of a command line and a client's script, run on both
//! and compared.
//!
//! A row is an ordinary test, named after what it is about. Where ours differs on purpose,
//! `tests/differences.txt` lists the row, the reason, and the lines.
#![expect(clippy::unwrap_used, reason = "a file that cannot be prepared is a failed test")]

mod archives;
mod below;
mod blocksize;
mod blocksize_policy;
mod bzip2;
mod cache;
mod cacheextents;
mod checkwrite;
mod command_line;
mod count;
mod ddrescue;
mod devices;
mod examples;
mod ext2;
mod extentlist;
mod filters;
mod floppy;
mod gzip;
mod handshake;
mod images;
mod luks;
mod lzip;
mod made_disks;
mod multi_conn;
mod nbd;
mod openonce;
mod partition;
mod partitioning;
mod plugins;
mod protect;
mod rate;
mod readahead;
mod replaced;
mod retry;
mod retry_request;
mod scan;
mod scripts;
mod small;
mod sparse_random;
mod spinning;
mod stacks;
mod swab;
mod tar;
mod time_limit;
mod transmission;
mod xz;
mod zstd;

use nbdkit_tests::differential::check_rows_exist;

#[test]
fn every_listed_difference_names_a_row() {
    check_rows_exist(&[
        include_str!("archives.rs"),
        include_str!("blocksize.rs"),
        include_str!("blocksize_policy.rs"),
        include_str!("cache.rs"),
        include_str!("cacheextents.rs"),
        include_str!("checkwrite.rs"),
        include_str!("devices.rs"),
        include_str!("made_disks.rs"),
        include_str!("command_line.rs"),
        include_str!("count.rs"),
        include_str!("ddrescue.rs"),
        include_str!("examples.rs"),
        include_str!("ext2.rs"),
        include_str!("extentlist.rs"),
        include_str!("filters.rs"),
        include_str!("floppy.rs"),
        include_str!("gzip.rs"),
        include_str!("handshake.rs"),
        include_str!("luks.rs"),
        include_str!("made_disks.rs"),
        include_str!("multi_conn.rs"),
        include_str!("nbd.rs"),
        include_str!("openonce.rs"),
        include_str!("partition.rs"),
        include_str!("partitioning.rs"),
        include_str!("plugins.rs"),
        include_str!("protect.rs"),
        include_str!("rate.rs"),
        include_str!("readahead.rs"),
        include_str!("replaced.rs"),
        include_str!("retry.rs"),
        include_str!("retry_request.rs"),
        include_str!("scan.rs"),
        include_str!("scripts.rs"),
        include_str!("small.rs"),
        include_str!("sparse_random.rs"),
        include_str!("stacks.rs"),
        include_str!("swab.rs"),
        include_str!("tar.rs"),
        include_str!("time_limit.rs"),
        include_str!("transmission.rs"),
        include_str!("xz.rs"),
        include_str!("../cabi/cc.rs"),
    ]);
}
