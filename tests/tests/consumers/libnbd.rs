//! libnbd and its tools, which run the server themselves: nbdinfo(1), nbdcopy(1), nbddump(1),
//! nbdsh(1), nbd_connect_command(3), nbd_connect_systemd_socket_activation(3).

use crate::probe::Need::{Filter, Plugin};
use crate::row::{Row, check, typed};

const ROWS: &[Row] = &[
    typed("nbdinfo(1)", "nbdinfo --size [ nbdkit null 1M ]").tools(&["nbdinfo"]).prints(&["1048576"]),
    typed("nbdinfo(1), Debian's first examples", "nbdinfo -- [ nbdkit -r file disk.img ]")
        .tools(&["nbdinfo"])
        .prints(&["protocol: newstyle-fixed without TLS, using structured packets", "export-size: 1048576 (1M)", "is_read_only: true"]),
    typed("nbdinfo(1)", "nbdinfo --map -- [ nbdkit -r memory 1M ]").tools(&["nbdinfo"]).prints(&["1048576    3  hole,zero"]),
    typed("nbdinfo(1)", "nbdinfo --can connect [ nbdkit memory 1M ]").tools(&["nbdinfo"]),
    typed("nbdinfo(1)", "nbdinfo --is read-only [ nbdkit memory 1M ]").tools(&["nbdinfo"]).ends(2),
    typed("nbdinfo(1)", "nbdinfo --json [ nbdkit pattern 1G ]").tools(&["nbdinfo"]).prints(&["\"export-size\": 1073741824"]),
    typed("nbdinfo(1)", "nbdkit file dir=. --run 'nbdinfo --list \"$uri\"'")
        .tools(&["nbdinfo"])
        .before("mkdir -p sub")
        .prints(&["export=\"disk.img\":", "export-size: 1048576 (1M)"]),
    typed("nbdcopy(1)", "nbdcopy -- [ nbdkit file disk.img ] copy && cmp copy disk.img && echo same")
        .tools(&["nbdcopy"])
        .prints(&["same"]),
    typed("nbdcopy(1)", "nbdcopy -- [ qemu-nbd -f raw disk.img ] [ nbdkit memory 1M ]").tools(&["nbdcopy", "qemu-nbd"]),
    typed("nbdcopy(1)", "nbdcopy -- [ nbdkit -r file disk.img ] - | cmp - disk.img && echo same").tools(&["nbdcopy"]).prints(&["same"]),
    typed("nbdcopy(1)", "nbdcopy -- [ nbdkit pattern 64M ] null:").tools(&["nbdcopy"]),
    typed("nbdcopy(1): an error of the server's is one of nbdcopy's", "nbdcopy -- [ nbdkit --filter=error pattern 1M error-rate=100% ] null: 2>/dev/null")
        .tools(&["nbdcopy"])
        .ends(1),
    typed("nbddump(1)", "nbddump -- [ nbdkit data 'le16:0xaa55' ]").tools(&["nbddump"]).prints(&["0000000000: 55 aa"]),
    typed("nbddump(1)", "nbddump -- [ nbdkit floppy empty ] | head -1")
        .needs(&[Plugin("floppy")])
        .tools(&["nbddump"])
        .before("mkdir empty")
        .prints(&["MSWIN4.1"])
        .verbose(),
    typed("nbdsh(1)", "nbdsh -c 'h.connect_command([\"nbdkit\", \"-s\", \"memory\", \"1G\"])' -c 'print(h.get_size())'")
        .tools(&["nbdsh"])
        .prints(&["1073741824"]),
    typed(
        "nbd_connect_command(3)",
        "nbdsh -c 'h.connect_command([\"nbdkit\", \"-s\", \"--exit-with-parent\", \"-v\", \"memory\", \"size=1M\"])' \
         -c 'h.pwrite(b\"hello\", 512); h.flush(); print(h.pread(5, 512)); h.shutdown()'",
    )
    .tools(&["nbdsh"])
    .prints(&["bytearray(b'hello')"])
    .verbose(),
    typed(
        "nbd_connect_command(3): the handle is dropped with requests in flight",
        "nbdsh -c 'h.connect_command([\"nbdkit\", \"-s\", \"--exit-with-parent\", \"file\", \"disk.img\"])' \
         -c 'buffers = [nbd.Buffer(65536) for _ in range(8)]' -c '[h.aio_pread(buffer, 0) for buffer in buffers]' -c 'print(\"ok\")'",
    )
    .tools(&["nbdsh"])
    .prints(&["ok"])
    .verbose(),
    typed(
        "nbd_connect_systemd_socket_activation(3)",
        "nbdsh -c 'h.connect_systemd_socket_activation([\"nbdkit\", \"file\", \"disk.img\"])' -c 'print(h.pread(9, 0))'",
    )
    .tools(&["nbdsh"])
    .prints(&["bytearray(b'consumers')"]),
    typed("nbdkit-captive(1)", "nbdkit -U - memory 1 --run 'nbdsh -u \"$uri\" -c \"print(h.pread(1, 0))\"'")
        .tools(&["nbdsh"])
        .prints(&["bytearray(b'\\x00')"]),
    typed(
        "libvirt's and RHEL's test of bug 1990134",
        "nbdkit --filter=cow data \"33 * 100000\" --run 'nbdsh -u $uri -c \"h.trim(100000, 0)\" ; nbdcopy $uri - | tr -d \"\\0\" | wc -c'",
    )
    .tools(&["nbdsh", "nbdcopy"])
    .prints(&["0\n"]),
    typed(
        "libnbd examples/simple-fetch-first-sector.c: the path of the socket is an argument of the command",
        "nbdkit -U - pattern 1M --run 'test -S $unixsocket && nbdinfo --size \"nbd+unix:///?socket=$unixsocket\"'",
    )
    .tools(&["nbdinfo"])
    .prints(&["1048576"]),
    typed(
        "nbdfuse(1), its server: a compressed disk on a web server",
        "nbdinfo --size -- [ nbdkit --exit-with-parent curl --filter=xz {http}/fedora-30.xz ]",
    )
    .needs(&[Plugin("curl"), Filter("xz")])
    .tools(&["nbdinfo"])
    // The web server's disk is not compressed, which is what the filter says.
    .ends(1)
    .says(&["xz"]),
];

#[test]
fn libnbd_runs_the_server() {
    check(ROWS);
}
