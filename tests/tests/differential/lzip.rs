//! The lzip filter on files that lzip(1) made. Debian's nbdkit has none to compare with.

use crate::images::{clients_share, has};

#[test]
fn the_members_of_an_lzip_file_are_found_once_for_all_clients() {
    if has("lzip") {
        clients_share("lzip", "lzip -0 -b 100000 <disk >image", 0);
    }
}
