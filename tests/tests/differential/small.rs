//! Filters with little in them: nofilter.

use nbdkit_tests::differential::Row;
use nbdkit_tests::{Ask, row_name};

use crate::below;

#[test]
fn nofilter() {
    below::compare(row_name!(), "", "nofilter", &["null", "1M"], |s| {
        s.open();
        s.read(0, 512);
        s.write(100, 50, 1);
        s.ask(&Ask::write_zeroes(0, 16));
        s.ask(&Ask::trim(512, 128));
        s.ask(&Ask::cache(0, 512));
        s.ask(&Ask::flush());
        s.block_status(0, 65536);
    });
    Row::new(row_name!(), &["--filter=nofilter", "null", "nofilter=1", "--run", "true"])
        .variant("nofilter=1")
        .compare_command();
}
