//! Programs that make or open backups: virtnbdmap of virtnbdbackup
//! (`libvirtnbdbackup/qemu/util.py`), a Proxmox `.vma` mounter, and what users of borg, restic and
//! others, which read standard input and know no NBD, type.

use crate::probe::Need::{Filter, Plugin};
use crate::row::Ready::Socket;
use crate::row::{Row, Stop, check, typed};
use crate::vmware::COMPILE;

/// virtnbdbackup's plugin, which is read-only and takes the disk's blocks from a backup; this one
/// has the whole disk in it.
const VIRTNBD: &str = r#"cat >virtnbd-nbdkit-plugin <<'END'
import nbdkit
API_VERSION = 2
parameters = {}
def config(key, value):
    parameters[key] = value
def thread_model():
    return nbdkit.THREAD_MODEL_SERIALIZE_ALL_REQUESTS
def open(readonly):
    import builtins
    return builtins.open(parameters["disk"], "rb")
def get_size(h):
    return h.seek(0, 2)
def can_write(h):
    return False
def pread(h, buf, offset, flags):
    h.seek(offset)
    h.readinto(buf)
END
echo '[]' >block.map"#;

const ROWS: &[Row] = &[
    typed(
        "virtnbdmap: startNbdkitProcess, then qemu-nbd -c /dev/nbd0, which here is a reader",
        "nbdkit --pidfile {dir}/nbdkit.pid -i 127.0.0.1 -p {port} -e sda --filter=blocksize --filter=cow -v python \
         {dir}/virtnbd-nbdkit-plugin maxlen=4096 blockmap={dir}/block.map disk={dir}/disk.img debug=0 -t 1",
    )
    .needs(&[Plugin("python"), Filter("blocksize")])
    .tools(&["qemu-img"])
    .before(VIRTNBD)
    .forks("nbdkit.pid", "qemu-img compare -f raw -F raw nbd://127.0.0.1:{port}/sda disk.img")
    .prints(&["Images are identical."])
    .verbose(),
    typed(
        "virtnbdmap: the same without the filter blocksize",
        "nbdkit --pidfile {dir}/nbdkit.pid -i 127.0.0.1 -p {port} -e sda --filter=cow -v python \
         {dir}/virtnbd-nbdkit-plugin blockmap={dir}/block.map disk={dir}/disk.img debug=0 -t 1",
    )
    .needs(&[Plugin("python")])
    .tools(&["qemu-img"])
    .before(VIRTNBD)
    .forks("nbdkit.pid", "qemu-img compare -f raw -F raw nbd://127.0.0.1:{port}/sda disk.img")
    .prints(&["Images are identical."])
    .verbose(),
    typed(
        "mount-vma-disk-via-nbdkit.sh: a plugin by path, in the background of a shell that polls for the socket",
        "nbdkit -f -r -U {dir}/nbd.sock {dir}/vddk.so file=disk.img vm=moref=1 password=secret",
    )
    .tools(&["cc", "nbdsh"])
    .before(COMPILE)
    .serves(
        Socket("nbd.sock"),
        "guestfish --format=raw -a 'nbd+unix:///?socket={dir}/nbd.sock' -i --ro",
        Stop::Signal(nix::sys::signal::Signal::SIGTERM),
    )
    .prints(&["drive 1048576 consumers"]),
    typed(
        "borg create -, restic backup --stdin: a disk streamed through a pipe",
        "nbdkit -r -U - file disk.img --run 'nbdcopy \"$uri\" - | cat >backup' && cmp backup disk.img && echo same",
    )
    .tools(&["nbdcopy"])
    .prints(&["same"]),
    typed(
        "borg extract --stdout, restic dump: a disk restored from a pipe",
        "truncate -s 1M restored && nbdkit -U - file restored --run 'cat disk.img | nbdcopy - \"$uri\"' && \
         cmp restored disk.img && echo same",
    )
    .tools(&["nbdcopy"])
    .prints(&["same"]),
    typed(
        "nbdkit-client(1): a directory of backups, one export each, in the background",
        "nbdkit -P {dir}/nbdkit.pid -i 127.0.0.1 -p {port} -r file dir={dir}/backups",
    )
    .tools(&["nbdinfo", "nbdcopy"])
    .before("mkdir backups && cp disk.img backups/monday && truncate -s 2M backups/tuesday")
    .forks(
        "nbdkit.pid",
        "nbdinfo --list nbd://127.0.0.1:{port} && nbdinfo --size nbd://127.0.0.1:{port}/tuesday && \
         nbdcopy nbd://127.0.0.1:{port}/monday copy && cmp copy disk.img && echo same",
    )
    .prints(&["export=\"monday\"", "export=\"tuesday\"", "2097152", "same"]),
];

#[test]
fn backups_are_made_and_opened() {
    check(ROWS);
}
