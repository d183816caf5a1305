//! The bzip2 filter on files that bzip2(1) made. Debian's nbdkit has none to compare with.

use crate::images::{clients_share, has};

#[test]
fn bzip2_files_are_expanded_once_for_all_clients() {
    if has("bzip2") {
        clients_share(
            "bzip2",
            "(head -c 300000 disk | bzip2; tail -c +300001 disk | bzip2) >image",
            0,
        );
    }
}
