//! KubeVirt: the importer of its Containerized Data Importer, `pkg/image/nbdkit.go`.
//!
//! It polls for the pid file, reads through a Unix socket with qemu-img, passes everything that the
//! server says to its own log, and ends the server with SIGINT. If the importer itself dies,
//! `--exit-with-parent` ends the server.

use nix::sys::signal::Signal;

use crate::probe::Need::{Filter, Plugin};
use crate::row::Ready::PidFile;
use crate::row::{Row, SERIAL, Stop, check, typed};
use crate::vmware::COMPILE;

const READY: crate::row::Ready = PidFile("nbdkit.pid");
const STOP: Stop = Stop::Signal(Signal::SIGINT);

/// `pkg/image/qemu.go`: what it asks about an image, and how it takes it.
const IMPORT: &str = "qemu-img info --output=json 'nbd+unix:///?socket={dir}/nbdkit.sock' | grep virtual-size && \
     qemu-img convert -t writeback -p -O raw 'nbd+unix:///?socket={dir}/nbdkit.sock' disk.copy >/dev/null && \
     cmp disk.copy disk.img && echo same";

const IMPORTED: &[&str] = &["\"virtual-size\": 1048576", "same"];

const ROWS: &[Row] = &[
    typed(
        "CDI: NewNbdkitCurl, StartNbdkit",
        "nbdkit --foreground --readonly --exit-with-parent -U {dir}/nbdkit.sock --pidfile {dir}/nbdkit.pid \
         --filter=readahead --filter=retry -r curl 'header=User-Agent: cdi-nbdkit-importer' retry-exponential=no \
         url={http}/agent/disk.img",
    )
    .needs(&[Plugin("curl"), Filter("readahead"), Filter("retry")])
    .tools(&["qemu-img"])
    .serves(READY, IMPORT, STOP)
    .prints(IMPORTED)
    .says(SERIAL),
    typed(
        "CDI: StartNbdkit of its first version with a curl plugin, before filters",
        "nbdkit --foreground --readonly --exit-with-parent -U {dir}/nbdkit.sock --pidfile {dir}/nbdkit.pid \
         -r curl 'header=User-Agent: cdi-nbdkit-importer' url={http}/agent/disk.img",
    )
    .needs(&[Plugin("curl")])
    .tools(&["qemu-img"])
    .serves(READY, IMPORT, STOP)
    .prints(IMPORTED),
    typed(
        "CDI: the same, and the importer is killed",
        "nbdkit --foreground --readonly --exit-with-parent -U {dir}/nbdkit.sock --pidfile {dir}/nbdkit.pid \
         -r curl 'header=User-Agent: cdi-nbdkit-importer' user=myname password=secret \
         'header=Cookie: name1=value1; name2=value2' url={http}/private/disk.img",
    )
    .needs(&[Plugin("curl")])
    .tools(&["qemu-img"])
    .serves(READY, IMPORT, Stop::Parent)
    .prints(IMPORTED),
    typed(
        "CDI: AddFilter(NbdkitXzFilter), an archive of a disk on a web server, here in a file",
        "nbdkit --foreground --readonly --exit-with-parent -U {dir}/nbdkit.sock --pidfile {dir}/nbdkit.pid \
         --filter=readahead --filter=retry --filter=xz file disk.img.xz",
    )
    .needs(&[Filter("readahead"), Filter("retry"), Filter("xz")])
    .tools(&["qemu-img", "xz"])
    .before("xz -k disk.img")
    .serves(READY, IMPORT, STOP)
    .prints(IMPORTED)
    .says(SERIAL),
    typed(
        "CDI: AddFilter(NbdkitGzipFilter)",
        "nbdkit --foreground --readonly --exit-with-parent -U {dir}/nbdkit.sock --pidfile {dir}/nbdkit.pid \
         --filter=readahead --filter=retry --filter=gzip file disk.img.gz",
    )
    .needs(&[Filter("readahead"), Filter("retry"), Filter("gzip")])
    .tools(&["qemu-img"])
    .before("gzip -k disk.img")
    .serves(READY, IMPORT, STOP)
    .prints(IMPORTED)
    .says(SERIAL),
    typed(
        "CDI: AddFilter(NbdkitTarFilter), for registry images",
        "nbdkit --foreground --readonly --exit-with-parent -U {dir}/nbdkit.sock --pidfile {dir}/nbdkit.pid \
         --filter=tar file disk.tar tar-entry=disk.img",
    )
    .needs(&[Filter("tar")])
    .tools(&["qemu-img"])
    .before("tar -cf disk.tar disk.img")
    .serves(READY, IMPORT, STOP)
    .prints(IMPORTED),
    typed("CDI: validatePlugin", "nbdkit --dump-plugin {dir}/vddk.so libdir=/opt/vmware-vix-disklib-distrib")
        .tools(&["cc"])
        .before(COMPILE)
        .prints(&["name=vddk", "vddk_default_libdir=/usr/lib/vmware-vix-disklib", "has_dump_plugin=1"]),
    typed(
        "CDI: createNbdKitWrapper of vddk-datasource.go, its first version",
        "nbdkit --foreground --readonly --exit-with-parent --unix {dir}/nbdkit.sock --pidfile {dir}/nbdkit.pid \
         {dir}/vddk.so server=vcenter.example.com user=myname password=secret thumbprint=aa:bb:cc vm=moref=vm-21 \
         'file=[teststore] testvm/disk.img' libdir=/opt/vmware-vix-disklib-distrib",
    )
    .tools(&["cc", "qemu-img"])
    .before(COMPILE)
    .serves(READY, IMPORT, STOP)
    .prints(IMPORTED),
    typed(
        "CDI: NewNbdkitVddk, options of the server behind the plugin's parameters",
        "nbdkit --foreground --readonly --exit-with-parent -U {dir}/nbdkit.sock --pidfile {dir}/nbdkit.pid \
         --filter=retry --filter=cacheextents {dir}/vddk.so libdir=/opt/vmware-vix-disklib-distrib \
         server=vcenter.example.com user=myname password=secret thumbprint=aa:bb:cc vm=moref=vm-21 --verbose \
         -D nbdkit.backend.controlpath=0 -D nbdkit.backend.datapath=0 'file=[teststore] testvm/disk.img'",
    )
    .needs(&[Filter("retry"), Filter("cacheextents")])
    .tools(&["cc", "qemu-img"])
    .before(COMPILE)
    .serves(READY, IMPORT, STOP)
    .prints(IMPORTED)
    .verbose(),
    typed(
        "CDI: the same without filters",
        "nbdkit --foreground --readonly --exit-with-parent -U {dir}/nbdkit.sock --pidfile {dir}/nbdkit.pid \
         {dir}/vddk.so libdir=/opt/vmware-vix-disklib-distrib \
         server=vcenter.example.com user=myname password=secret thumbprint=aa:bb:cc vm=moref=vm-21 --verbose \
         -D nbdkit.backend.controlpath=0 -D nbdkit.backend.datapath=0 'file=[teststore] testvm/disk.img'",
    )
    .tools(&["cc", "qemu-img"])
    .before(COMPILE)
    .serves(READY, IMPORT, STOP)
    .prints(IMPORTED)
    .verbose(),
];

#[test]
fn kubevirt_imports_disks() {
    check(ROWS);
}
