//! The zstd filter on files that zstd(1) made. nbdkit has none to compare with.

use crate::images::{clients_share, has};

#[test]
fn zstd_files_are_expanded_once_for_all_clients() {
    if has("zstd") {
        clients_share(
            "zstd",
            "(head -c 300000 disk | zstd; tail -c +300001 disk | zstd) >image",
            // The end of the file, where a seek table would be.
            1,
        );
    }
}

/// The frames of a file with a seek table, which is made here: no program of Debian's makes one.
#[test]
fn the_seek_table_of_a_zstd_file_is_read_once_for_all_clients() {
    if has("zstd") {
        let make = "
            number() { printf \"$(printf '\\\\%o\\\\%o\\\\%o\\\\%o' $(($1 & 255)) $(($1 >> 8 & 255)) $(($1 >> 16 & 255)) $(($1 >> 24 & 255)))\"; }
            for i in 0 1 2 3; do
                tail -c +$((i * 250000 + 1)) disk | head -c 250000 | zstd >frame
                cat frame >>image
                number $(stat -c %s frame) >>entries; number 250000 >>entries
            done
            number 0x184d2a5e >>image; number 41 >>image; cat entries >>image
            number 4 >>image; printf '\\0' >>image; number 0x8f92eab1 >>image; rm entries";
        // Both ends of the table.
        clients_share("zstd", make, 2);
    }
}
