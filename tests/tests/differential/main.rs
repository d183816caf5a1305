//! What Debian's nbdkit does, ours does: rows of a command line and a client's script, run on both
//! and compared.
//!
//! A row is an ordinary test, named after what it is about. Where ours differs on purpose,
//! `tests/differences.txt` lists the row, the reason, and the lines.
#![expect(clippy::unwrap_used, reason = "a file that cannot be prepared is a failed test")]

mod below;
mod blocksize;
mod blocksize_policy;
mod cache;
mod cacheextents;
mod command_line;
mod filters;
mod handshake;
mod multi_conn;
mod plugins;
mod readahead;
mod replaced;
mod retry;
mod scripts;
mod small;
mod stacks;
mod transmission;

use nbdkit_tests::differential::check_rows_exist;

#[test]
fn every_listed_difference_names_a_row() {
    check_rows_exist(&[
        include_str!("blocksize.rs"),
        include_str!("blocksize_policy.rs"),
        include_str!("cache.rs"),
        include_str!("cacheextents.rs"),
        include_str!("command_line.rs"),
        include_str!("filters.rs"),
        include_str!("handshake.rs"),
        include_str!("multi_conn.rs"),
        include_str!("plugins.rs"),
        include_str!("replaced.rs"),
        include_str!("readahead.rs"),
        include_str!("retry.rs"),
        include_str!("scripts.rs"),
        include_str!("small.rs"),
        include_str!("stacks.rs"),
        include_str!("transmission.rs"),
    ]);
}
