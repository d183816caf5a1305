//! qemu's tools and fio, run by the server or against it: nbdkit-captive(1), qemu-img(1),
//! qemu-nbd(8), fio's `examples/nbd.fio`, and qemu's tests.

use nix::sys::signal::Signal;

use crate::probe::Need::{Filter, Plugin};
use crate::row::Ready::{PidFile, Socket};
use crate::row::{Row, Stop, check, typed};

const STOP: Stop = Stop::Signal(Signal::SIGTERM);

const ROWS: &[Row] = &[
    typed("nbdkit-captive(1)", "nbdkit -U - example1 --run 'qemu-img convert $nbd disk.raw' && qemu-img info disk.raw")
        .needs(&[Plugin("example1")])
        .tools(&["qemu-img"])
        .prints(&["file format: raw", "virtual size: 100 MiB"]),
    typed("nbdkit blog", "nbdkit -r file disk.img -U - --run 'qemu-img convert -f raw -O qcow2 $nbd out' && qemu-img compare -F raw out disk.img")
        .tools(&["qemu-img"])
        .prints(&["Images are identical."]),
    typed("nbdkit-captive(1): overwrite a disk in a tar file", "nbdkit -U - file data.tar --filter=tar tar-entry=disk.img --run 'qemu-img convert -n disk.img $nbd'")
        .needs(&[Filter("tar")])
        .tools(&["qemu-img"])
        .before("truncate -s 1M old && tar -cf data.tar --transform s/old/disk.img/ old"),
    typed("nbdkit-captive(1)", "nbdkit -U - file target --run 'qemu-img convert -n disk.img $nbd' && cmp target disk.img && echo same")
        .tools(&["qemu-img"])
        .before("truncate -s 1M target")
        .prints(&["same"])
        .verbose(),
    typed("qemu, tests/qemu-iotests: a size that is no multiple of a sector", "nbdkit -U - memory size=513 --run 'qemu-io -f raw -c \"r 512 512\" $nbd'")
        .tools(&["qemu-io"])
        .prints(&["read 512/512 bytes at offset 512"]),
    typed("nbdkit-memory-plugin(1)", "nbdkit -U - memory 1G --run 'nbdcopy disk.img \"$uri\" && nbdinfo --size \"$uri\"'")
        .tools(&["nbdcopy", "nbdinfo"])
        .prints(&["1073741824"]),
    typed("qemu-nbd(8): the server as its back end", "nbdkit -r -U - file disk.img --run 'qemu-nbd -r -f raw -k {dir}/other.sock --pid-file=q.pid --fork \"$uri\" && nbdcopy \"nbd+unix:///?socket={dir}/other.sock\" copy; kill $(cat q.pid); cmp copy disk.img && echo same'")
        .tools(&["qemu-nbd", "nbdcopy"])
        .prints(&["same"])
        .verbose(),
    typed(
        "fio: examples/nbd.fio",
        "nbdkit -U - memory size=16M --run 'export unixsocket; fio nbd.fio'",
    )
    .tools(&["fio"])
    .before(
        r#"cat >nbd.fio <<'END'
[global]
ioengine=nbd
uri=nbd+unix:///?socket=${unixsocket}
rw=randrw
number_ios=500
bs=64k
size=16M
[job0]
offset=0
[job1]
offset=8m
END"#,
    )
    .prints(&["err= 0"])
    .verbose(),
    typed("qemu-img(1): map over NBD", "nbdkit -r -U - file disk.img --run 'qemu-img map --output=json -f raw \"$nbd\"'")
        .tools(&["qemu-img"])
        .before("truncate -s 0 disk.img && truncate -s 1M disk.img")
        .prints(&["\"length\": 1048576", "\"zero\": true"]),
    typed(
        "qemu -drive over TLS with pre-shared keys: nbdkit-tls(1)",
        "nbdkit -f -P {dir}/pid -i 127.0.0.1 -p {port} --tls=require --tls-psk={dir}/keys/keys.psk file disk.img",
    )
    .tools(&["qemu-img", "psktool", "nbdinfo"])
    .before("mkdir -m 0700 keys && psktool -u alice -p keys/keys.psk")
    .serves(
        PidFile("pid"),
        "nbdinfo --size 'nbds://alice@localhost:{port}?tls-psk-file={dir}/keys/keys.psk' && \
         qemu-img info --object tls-creds-psk,id=tls0,dir={dir}/keys,username=alice,endpoint=client --image-opts \
         file.driver=nbd,file.host=localhost,file.port={port},file.tls-creds=tls0,file.export=/",
        STOP,
    )
    .prints(&["1048576", "virtual size: 1 MiB"]),
    typed(
        "qemu(1): -blockdev nbd with a Unix socket, as management programs write it",
        "nbdkit -f -U {dir}/sock file disk.img",
    )
    .tools(&["qemu-img"])
    .serves(
        Socket("sock"),
        "qemu-img info 'json:{\"driver\":\"raw\",\"file\":{\"driver\":\"nbd\",\"server\":{\"type\":\"unix\",\"path\":\"{dir}/sock\"}}}'",
        STOP,
    )
    .prints(&["virtual size: 1 MiB"]),
];

#[test]
fn qemu_and_fio_are_served() {
    check(ROWS);
}
