//! virt-v2v: `lib/nbdkit.ml`, `input/nbdkit_curl.ml`, `nbdkit_ssh.ml`, `nbdkit_vddk.ml`,
//! `input_disk.ml`, `output/output.ml`, `output_null.ml`.
//!
//! It probes before each start, adds some filters only if they are there, polls for the pid file,
//! changes the mode of the socket, and relies on `--exit-with-parent`.

use nix::sys::signal::Signal;

use crate::libvirt::SSHD;
use crate::probe::Need::{Filter, Plugin};
use crate::row::Ready::PidFile;
use crate::row::{Row, SERIAL, Stop, check, typed};
use crate::vmware::COMPILE;

const READY: crate::row::Ready = PidFile("nbdkit1.pid");
const STOP: Stop = Stop::Signal(Signal::SIGTERM);

/// A conversion writes into the overlay and reads it back; nothing of that reaches the source.
/// (`lib/utils.ml`: chmod.)
const CONVERT: &str = "chmod 0700 in0 && nbdsh -u 'nbd+unix:///?socket={dir}/in0' \
     -c 'assert h.pread(9, 0) == b\"consumers\"' -c 'h.pwrite(b\"converted\", 0)' -c 'h.flush()' \
     -c 'assert h.pread(9, 0) == b\"converted\"' && head -c 9 disk.img";

/// The same from an SSH server.
const CONVERT_AND_END_SSHD: &str = "trap 'kill $(cat sshd.pid)' EXIT; chmod 0700 in0 && nbdsh -u 'nbd+unix:///?socket={dir}/in0' \
     -c 'assert h.pread(9, 0) == b\"consumers\"' -c 'h.pwrite(b\"converted\", 0)' -c 'h.flush()' \
     -c 'assert h.pread(9, 0) == b\"converted\"' && head -c 9 disk.img";

const PROBES: &[Row] = &[
    typed("virt-v2v: is_installed", "nbdkit --version >/dev/null 2>&1"),
    typed(
        "virt-v2v: get_version",
        "nbdkit --dump-config | grep -E '^version=[0-9]+\\.[0-9]+\\.[0-9]+'",
    )
    .prints(&["version=1."]),
    typed("virt-v2v: probe_plugin", "nbdkit 'file' --version >/dev/null 2>&1"),
    typed("virt-v2v: probe_plugin", "nbdkit 'null' --version >/dev/null 2>&1"),
    typed("virt-v2v: probe_plugin", "nbdkit 'curl' --version >/dev/null 2>&1")
        .needs(&[Plugin("curl")]),
    typed("virt-v2v: probe_plugin", "nbdkit 'ssh' --version >/dev/null 2>&1")
        .needs(&[Plugin("ssh")]),
    typed(
        "virt-v2v: probe_plugin, one that is not there",
        "nbdkit 'nosuch' --version >/dev/null 2>&1",
    )
    .ends(1),
    typed("virt-v2v: probe_filter", "nbdkit null --filter='cow' --version >/dev/null 2>&1"),
    typed(
        "virt-v2v: probe_filter, one that is not there",
        "nbdkit null --filter='nosuch' --version >/dev/null 2>&1",
    )
    .ends(1),
    typed("virt-v2v: probe_filter", "nbdkit null --filter='retry' --version")
        .needs(&[Filter("retry")])
        .prints(&["retry 1."]),
    typed("virt-v2v: probe_filter", "nbdkit null --filter='count' --version")
        .needs(&[Filter("count")])
        .prints(&["count 1."]),
    typed("virt-v2v: probe_filter", "nbdkit null --filter='multi-conn' --version")
        .needs(&[Filter("multi-conn")])
        .prints(&["multi-conn 1."]),
    typed(
        "virt-v2v: probe_filter_parameter",
        "nbdkit null --filter='cow' --help | grep -sq 'cow-on-read=.*/PATH'",
    ),
    typed(
        "virt-v2v: error_unless_nbdkit_vddk_working",
        "nbdkit nosuchvddk --dump-plugin >/dev/null",
    )
    .ends(1)
    .says(&["cannot open shared object file"]),
    typed(
        "virt-v2v: error_unless_nbdkit_vddk_working, the reason",
        "LANG=C nbdkit nosuchvddk --dump-plugin 2>&1 | grep -sq \"cannot open shared object file\"",
    ),
    typed(
        "virt-v2v: error_unless_nbdkit_vddk_working, a plugin that works",
        "nbdkit {dir}/vddk.so --dump-plugin >/dev/null",
    )
    .tools(&["cc"])
    .before(COMPILE),
];

const RUNS: &[Row] = &[
    typed(
        "virt-v2v -i disk",
        "nbdkit --exit-with-parent --foreground --pidfile {dir}/nbdkit1.pid --unix {dir}/in0 --threads 16 \
         -D nbdkit.backend.datapath=0 --filter cow file file={dir}/disk.img cache=none",
    )
    .tools(&["nbdsh"])
    .serves(READY, CONVERT, STOP)
    .prints(&["consumers"]),
    typed(
        "virt-v2v -i disk, and virt-v2v is killed",
        "nbdkit --exit-with-parent --foreground --pidfile {dir}/nbdkit1.pid --unix {dir}/in0 --threads 16 \
         -D nbdkit.backend.datapath=0 --verbose --filter cow file file={dir}/disk.img cache=none",
    )
    .tools(&["nbdsh"])
    .serves(READY, CONVERT, Stop::Parent)
    .prints(&["consumers"])
    .verbose(),
    typed(
        "virt-v2v-in-place -i disk",
        "nbdkit --exit-with-parent --foreground --pidfile {dir}/nbdkit1.pid --unix {dir}/in0 --threads 16 \
         -D nbdkit.backend.datapath=0 file file={dir}/disk.img cache=none",
    )
    .tools(&["nbdsh"])
    .serves(READY, CONVERT, STOP)
    .prints(&["converted"]),
    typed(
        "virt-v2v -i libvirtxml, a disk on a web server, with no more filters than cow",
        "nbdkit --exit-with-parent --foreground --pidfile {dir}/nbdkit1.pid --unix {dir}/in0 --threads 16 \
         -D nbdkit.backend.datapath=0 --filter cow curl url={http}/private/disk.img timeout=2000 \
         'cookie-script=echo \"name1=value1; name2=value2\"' cookie-script-renew=1500 sslverify=false user=myname \
         password=+{dir}/secret cow-on-read={dir}/convert",
    )
    .needs(&[Plugin("curl")])
    .tools(&["nbdsh"])
    .serves(READY, CONVERT, STOP)
    .prints(&["consumers"]),
    typed(
        "virt-v2v -i libvirtxml, a disk on a web server",
        "nbdkit --exit-with-parent --foreground --pidfile {dir}/nbdkit1.pid --unix {dir}/in0 --threads 16 \
         -D nbdkit.backend.datapath=0 --filter rate --filter cow --filter cacheextents --filter retry curl \
         url={http}/disk.img timeout=2000 sslverify=false cow-on-read={dir}/convert rate=1G rate-file={dir}/rate",
    )
    .needs(&[Plugin("curl"), Filter("rate"), Filter("cacheextents"), Filter("retry")])
    .tools(&["nbdsh"])
    .serves(READY, CONVERT, STOP)
    .prints(&["consumers"]),
    typed(
        "virt-v2v -i vmx -it ssh, with no more filters than cow",
        "nbdkit --exit-with-parent --foreground --pidfile {dir}/nbdkit1.pid --unix {dir}/in0 --threads 16 \
         -D nbdkit.backend.datapath=0 --filter cow ssh host=127.0.0.1 path={dir}/disk.img port={port} user=$(id -un) \
         identity={dir}/id known-hosts={dir}/knownhosts cow-on-read={dir}/convert",
    )
    .needs(&[Plugin("ssh")])
    .tools(&["nbdsh", "sshd", "ssh-keygen"])
    .before(SSHD)
    .serves(READY, CONVERT_AND_END_SSHD, STOP)
    .prints(&["consumers"]),
    typed(
        "virt-v2v -i vmx -it ssh",
        "nbdkit --exit-with-parent --foreground --pidfile {dir}/nbdkit1.pid --unix {dir}/in0 --threads 16 \
         -D nbdkit.backend.datapath=0 --filter cow --filter cacheextents --filter readahead --filter retry ssh \
         host=127.0.0.1 path={dir}/disk.img port={port} user=$(id -un) identity={dir}/id known-hosts={dir}/knownhosts",
    )
    .needs(&[Plugin("ssh"), Filter("cacheextents"), Filter("readahead"), Filter("retry")])
    .tools(&["nbdsh", "sshd", "ssh-keygen"])
    .before(SSHD)
    .serves(READY, CONVERT_AND_END_SSHD, STOP)
    .prints(&["consumers"])
    .says(SERIAL),
    typed(
        "virt-v2v -it vddk, with no more filters than cow",
        "nbdkit --exit-with-parent --foreground --pidfile {dir}/nbdkit1.pid --unix {dir}/in0 --threads 16 \
         -D nbdkit.backend.datapath=0 -D vddk.datapath=0 -D vddk.stats=1 --filter cow {dir}/vddk.so \
         server=vcenter.example.com user=root vm=moref=vm-16 'file=[datastore1] guest/disk.img' \
         libdir=/opt/vmware-vix-disklib-distrib thumbprint=aa:bb:cc transports=file:nbdssl:nbd password=+{dir}/secret",
    )
    .tools(&["cc", "nbdsh"])
    .before(COMPILE)
    .serves(READY, CONVERT, STOP)
    .prints(&["consumers"]),
    typed(
        "virt-v2v -it vddk",
        "nbdkit --exit-with-parent --foreground --pidfile {dir}/nbdkit1.pid --unix {dir}/in0 --threads 16 \
         -D nbdkit.backend.datapath=0 -D vddk.datapath=0 -D vddk.stats=1 --filter count --filter cow --filter cacheextents \
         --filter retry {dir}/vddk.so server=vcenter.example.com user=root vm=moref=vm-16 \
         'file=[datastore1] guest/disk.img' thumbprint=aa:bb:cc password=+{dir}/secret",
    )
    .needs(&[Filter("count"), Filter("cacheextents"), Filter("retry")])
    .tools(&["cc", "nbdsh"])
    .before(COMPILE)
    .serves(READY, CONVERT, STOP)
    .prints(&["consumers"]),
    typed(
        "virt-v2v -o disk: the output is made before the server starts, and filled by nbdcopy",
        "nbdkit --exit-with-parent --foreground --pidfile {dir}/nbdkit1.pid --unix {dir}/in0 --threads 16 \
         -D nbdkit.backend.datapath=0 file file={dir}/guest-sda cache=none",
    )
    .tools(&["nbdcopy"])
    .before("truncate -s 1M guest-sda")
    .serves(
        READY,
        "nbdcopy --flush disk.img 'nbd+unix:///?socket={dir}/in0' && cmp guest-sda disk.img && echo same",
        STOP,
    )
    .prints(&["same"]),
    typed(
        "virt-v2v -o null: one server, whose socket is linked for the other disks",
        "nbdkit --exit-with-parent --foreground --pidfile {dir}/nbdkit1.pid --unix {dir}/out0 --threads 16 \
         -D nbdkit.backend.datapath=0 null size=7E",
    )
    .tools(&["nbdcopy", "nbdinfo"])
    .serves(
        READY,
        "ln out0 out1 && nbdinfo --size 'nbd+unix:///?socket={dir}/out1' && nbdcopy disk.img 'nbd+unix:///?socket={dir}/out1'",
        STOP,
    )
    .prints(&["8070450532247928832"]),
];

#[test]
fn virt_v2v_probes_the_server() {
    check(PROBES);
}

#[test]
fn virt_v2v_converts_disks() {
    check(RUNS);
}

/// Where there is no SELinux, the option is an error that names it; programs do not give it there.
#[test]
fn virt_v2v_labels_its_socket() {
    if std::path::Path::new("/sys/fs/selinux/status").exists() {
        eprintln!("SKIPPED: this machine has SELinux, whose policy may or may not have the label");
        return;
    }
    check(&[typed(
        "virt-v2v: run_unix with have_selinux",
        "nbdkit --exit-with-parent --foreground --pidfile {dir}/nbdkit1.pid --unix {dir}/in0 --threads 16 \
         --selinux-label system_u:object_r:svirt_socket_t:s0 -D nbdkit.backend.datapath=0 file file={dir}/disk.img",
    )
    .ends(1)
    .says(&["selinux-label: setsockcreatecon"])]);
}
