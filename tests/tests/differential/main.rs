//! What Debian's nbdkit does, ours does: rows of a command line and a client's script, run on both
//! and compared.
//!
//! A row is an ordinary test, named after what it is about. Where ours differs on purpose,
//! `tests/differences.txt` lists the row, the reason, and the lines.
#![expect(clippy::unwrap_used, reason = "a file that cannot be prepared is a failed test")]

mod bzip2;
mod command_line;
mod filters;
mod gzip;
mod handshake;
mod images;
mod luks;
mod lzip;
mod plugins;
mod readahead;
mod replaced;
mod retry;
mod scripts;
mod transmission;
mod xz;
mod zstd;

use nbdkit_tests::differential::check_rows_exist;

#[test]
fn every_listed_difference_names_a_row() {
    check_rows_exist(&[
        include_str!("command_line.rs"),
        include_str!("filters.rs"),
        include_str!("gzip.rs"),
        include_str!("handshake.rs"),
        include_str!("luks.rs"),
        include_str!("plugins.rs"),
        include_str!("replaced.rs"),
        include_str!("readahead.rs"),
        include_str!("retry.rs"),
        include_str!("scripts.rs"),
        include_str!("transmission.rs"),
        include_str!("xz.rs"),
    ]);
}
