//! The bzip2 filter on files that bzip2(1) made. Debian's nbdkit has none to compare with.

use crate::images::{clients_share_with, has};

#[test]
fn bzip2_files_are_expanded_or_indexed_once_for_all_clients() {
    if !has("bzip2") {
        return;
    }
    let arguments: [&[&str]; 5] = [
        &[],
        &["bzip2-max-expand=0"],
        &["bzip2-max-expand=999999", "--isolation=shared"],
        &["bzip2-max-expand=1000000", "--isolation=shared"],
        &["bzip2-max-expand=0", "-r"],
    ];
    for arguments in arguments {
        clients_share_with(
            "bzip2",
            arguments,
            "(head -c 300000 disk | bzip2 -1; tail -c +300001 disk | bzip2) >image",
            0,
        );
    }
}
