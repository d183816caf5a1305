//! guestfish and libguestfs, with a stand-in for guestfish that adds drives as it does:
//! nbdkit-captive(1), guestfs-examples, and the blog of their author.

use crate::probe::Need::Filter;
use crate::row::{Row, check, typed};

const ROWS: &[Row] = &[
    typed("nbdkit-captive(1)", "nbdkit file disk.img -U - --run 'guestfish --format=raw -a $nbd -i'")
        .tools(&["nbdsh"])
        .prints(&["drive 1048576 consumers"]),
    typed(
        "guestfs blog: a private socket as a parameter of the URI",
        "nbdkit -U - file disk.img --run 'guestfish --format=raw -a \"nbd://?socket=$unixsocket\" run : list-devices'",
    )
    .tools(&["nbdsh"])
    .before("sed -i 's|nbdsh -u \"$2\"|nbdsh -u \"nbd+unix:///?${2#*[?]}\"|' bin/guestfish")
    .prints(&["drive 1048576 consumers"]),
    typed("guestfish(1): --ro, and two drives", "nbdkit -r -U - file disk.img --run 'guestfish --ro --format=raw -a \"$uri\" -a \"$uri\" -i'")
        .tools(&["nbdsh"])
        .prints(&["drive 1048576 consumers\ndrive 1048576 consumers"]),
    typed(
        "nbdkit-cow-filter(1) under guestfish --rw",
        "nbdkit -U - --filter=cow file disk.img --run 'guestfish --rw --format=raw -a $uri -i && nbdcopy disk.img $uri'",
    )
    .tools(&["nbdsh", "nbdcopy"])
    .prints(&["drive 1048576 consumers"]),
    typed(
        "nbdkit-xz-filter(1)",
        "nbdkit -U - --filter=xz file disk.img.xz --run 'guestfish --ro --format=raw -a \"$uri\" -i'",
    )
    .needs(&[Filter("xz")])
    .tools(&["nbdsh", "xz"])
    .before("xz -k disk.img")
    .prints(&["drive 1048576 consumers"]),
    typed("nbdkit-captive(1): the command's exit status", "nbdkit -U - file disk.img --run 'guestfish -a nbd+unix:///?socket=/nonexistent'")
        .tools(&["nbdsh"])
        .ends(1),
];

#[test]
fn guestfish_is_run_captive() {
    check(ROWS);
}
