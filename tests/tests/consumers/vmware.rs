//! Programs that take disks from VMware with the vddk plugin, and which are not virt-v2v or
//! KubeVirt: Xen Orchestra (`@xen-orchestra/vmware-explorer/_nbdkit.mjs`), migratekit
//! (`internal/nbdkit/builder.go`), vJailbreak (`nbd/nbdops.go`), and Xen Orchestra's own client,
//! `@vates/nbd-client`.
//!
//! The plugin needs VMware's library and hosts, so its name in the lines is replaced by the path of
//! a stand-in, as KubeVirt's own tests do (`/opt/testing/libvddk-test-plugin.so`).

use nix::sys::signal::Signal;

use crate::row::Ready::{PidFile, Port};
use crate::row::{Row, Stop, check, typed};

/// Compiles the stand-in.
pub(crate) const COMPILE: &str =
    "cc -shared -fPIC -O1 -I {top}/include -o vddk.so {top}/tests/cplugins/vddk.c";

const ROWS: &[Row] = &[
    typed(
        "Xen Orchestra: formatNbdkitArgs; its client asks for the export by the disk's path",
        "nbdkit -r -v -f --exit-with-parent --threads=1 --port={port} {dir}/vddk.so compression=fastlz \
         thumbprint=AA:BB:CC server=esxi.example.com user=root password=+{dir}/secret libdir=/usr/local/lib/vddk \
         vm=moref=42 '[datastore1] vm/disk.img'",
    )
    .tools(&["cc", "nbdcopy"])
    .before(COMPILE)
    .serves(
        Port,
        "nbdcopy 'nbd://127.0.0.1:{port}/%5Bdatastore1%5D%20vm/disk.img' copy && cmp copy disk.img && echo same",
        Stop::Signal(Signal::SIGTERM),
    )
    .prints(&["same"])
    .verbose(),
    typed(
        "Xen Orchestra: the same with single-link, and the program is killed",
        "nbdkit -r -v -f --exit-with-parent --threads=8 --port={port} {dir}/vddk.so compression=zlib \
         thumbprint=AA:BB:CC server=esxi.example.com user=root password=+{dir}/secret libdir=/usr/local/lib/vddk \
         vm=moref=42 single-link=true '[datastore1] vm/disk.img'",
    )
    .tools(&["cc", "nbdinfo"])
    .before(COMPILE)
    .serves(Port, "nbdinfo --size nbd://127.0.0.1:{port}", Stop::Parent)
    .prints(&["1048576"])
    .verbose(),
    typed(
        "Xen Orchestra, @vates/nbd-client/tests: options behind the plugin, and one of them twice",
        "nbdkit file {dir}/disk.img --newstyle --exit-with-parent --read-only --export-name=MY_SECRET_EXPORT --tls=on \
         --tls-certificates={dir}/pki --exit-with-parent --port={port}",
    )
    .tools(&["certtool", "nbdinfo"])
    .serves(
        Port,
        "nbdinfo 'nbds://localhost:{port}/MY_SECRET_EXPORT?tls-certificates={dir}/pki'",
        Stop::Signal(Signal::SIGTERM),
    )
    .prints(&["newstyle-fixed with TLS", "export-size: 1048576", "is_read_only: true"]),
    typed(
        "migratekit: NbdkitBuilder.Build",
        "nbdkit --exit-with-parent --readonly --foreground --unix={dir}/nbdkit.sock --pidfile={dir}/nbdkit.pid {dir}/vddk.so \
         server=vcenter.example.com user=administrator@vsphere.local password=secret thumbprint=AA:BB:CC \
         compression=skipz vm=moref=vm-1 snapshot=snapshot-2 transports=file:nbdssl:nbd '[datastore1] vm/disk.img'",
    )
    .tools(&["cc", "nbdcopy"])
    .before(COMPILE)
    .serves(
        PidFile("nbdkit.pid"),
        "nbdcopy --progress=3 'nbd+unix:///?socket={dir}/nbdkit.sock' copy 3>progress && cmp copy disk.img && tail -1 progress",
        Stop::Signal(Signal::SIGTERM),
    )
    .prints(&["100"]),
    typed(
        "vJailbreak: StartNBDServer, CopyDisk",
        "nbdkit --exit-with-parent --readonly --foreground --unix={dir}/nbdkit.sock --pidfile={dir}/nbdkit.pid {dir}/vddk.so \
         libdir=/home/fedora/vmware-vix-disklib-distrib server=vcenter.example.com user=root password=secret \
         thumbprint=AA:BB:CC compression=skipz vm=moref=vm-1 '[datastore1] vm/disk.img'",
    )
    .tools(&["cc", "nbdcopy"])
    .before(COMPILE)
    .serves(
        PidFile("nbdkit.pid"),
        "truncate -s 1M copy && nbdcopy --progress=3 --destination-is-zero 'nbd+unix:///?socket={dir}/nbdkit.sock' copy 3>&1 && \
         cmp copy disk.img && echo same",
        Stop::Parent,
    )
    .prints(&["same"]),
];

#[test]
fn vmware_disks_are_taken() {
    check(ROWS);
}
