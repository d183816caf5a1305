//! libvirt, which starts nbdkit for network disks: `src/qemu/qemu_nbdkit.c` of libvirt 10, and the
//! expected command lines in `tests/qemunbdkitdata`.
//!
//! It gives secrets through pipes (`password=-FD`), waits for the socket to appear, connects at
//! once to learn whether the disk can be opened, and ends the server with SIGTERM. Its own
//! shell-less lines are typed for a shell here: what writes into the pipes is started first.

use nix::sys::signal::Signal;

use crate::probe::Need::{Filter, Plugin};
use crate::row::Ready::Socket;
use crate::row::{Row, SERIAL, Stop, check, typed};

const STOP: Stop = Stop::Signal(Signal::SIGTERM);

/// What qemu does at first: it opens the default export, and reads.
const COMPARE: &str =
    "qemu-img compare -f raw -F raw 'nbd+unix:///?socket={dir}/nbdkit-disk-0.socket' disk.img";

const PROBES: &[Row] = &[
    typed("libvirt: qemuNbdkitCapsQueryVersion", "nbdkit --version").prints(&["nbdkit 1."]),
    typed("libvirt: qemuNbdkitQueryPlugin", "nbdkit curl --version")
        .needs(&[Plugin("curl")])
        .prints(&["nbdkit 1.", "curl 1."]),
    typed("libvirt: qemuNbdkitQueryPlugin", "nbdkit ssh --version")
        .needs(&[Plugin("ssh")])
        .prints(&["nbdkit 1.", "ssh 1."]),
    typed("libvirt: qemuNbdkitQueryFilter", "nbdkit --version --filter=readahead null")
        .needs(&[Filter("readahead")])
        .prints(&["nbdkit 1.", "null 1.", "readahead 1."]),
    typed(
        "libvirt: qemuNbdkitQueryFilter, of a filter that is there",
        "nbdkit --version --filter=cow null",
    )
    .prints(&["nbdkit 1.", "null 1.", "cow 1."]),
    typed(
        "libvirt: qemuNbdkitQueryFilter, of one that is not",
        "nbdkit --version --filter=nosuch null",
    )
    .ends(1)
    .says(&["nosuch"]),
    typed("libvirt: qemuNbdkitCapsQueryBuildConfig", "nbdkit --dump-config").prints(&[
        "plugindir=/",
        "filterdir=/",
        "version=1.",
    ]),
    // When the directory's time of change differs from that in its cache, libvirt asks again.
    typed(
        "libvirt: qemuNbdkitGetDirMtime",
        "nbdkit --dump-config | sed -n 's/^plugindir=//p' | grep -c '^/.*/nbdkit/plugins$'",
    )
    .prints(&["1"]),
];

const DISKS: &[Row] = &[
    typed(
        "libvirt: disk-cdrom-network.args.disk0",
        "nbdkit --unix {dir}/nbdkit-disk-0.socket --foreground --readonly curl protocols=http,https url={http}/path/disk.img",
    )
    .needs(&[Plugin("curl")])
    .tools(&["qemu-img"])
    .serves(Socket("nbdkit-disk-0.socket"), COMPARE, STOP)
    .prints(&["Images are identical."]),
    typed(
        "libvirt: disk-network-source-curl.args.disk1",
        "nbdkit --unix {dir}/nbdkit-disk-0.socket --foreground curl protocols=http,https \
         'url={http}/private/disk5.iso?foo=bar' user=myname password=-7 cookie=-8 sslverify=false timeout=2000 \
         7<secret.pipe 8<cookie.pipe",
    )
    .needs(&[Plugin("curl")])
    .tools(&["qemu-img"])
    .before(FEED)
    .serves(Socket("nbdkit-disk-0.socket"), COMPARE, STOP)
    .prints(&["Images are identical."]),
    typed(
        "libvirt: qemuNbdkitProcessStart, where the web server refuses: the reason is taken from the log",
        "nbdkit --unix {dir}/nbdkit-disk-0.socket --foreground --readonly curl protocols=http,https \
         url={http}/private/disk5.iso",
    )
    .needs(&[Plugin("curl")])
    .tools(&["nbdinfo"])
    .serves(
        Socket("nbdkit-disk-0.socket"),
        "! nbdinfo --size 'nbd+unix:///?socket={dir}/nbdkit-disk-0.socket'",
        STOP,
    )
    .says(&["problem doing HEAD request to fetch size of URL", "401"]),
    typed(
        "libvirt: qemuNbdkitProcessBuildCommand, with <readahead>",
        "nbdkit --unix {dir}/nbdkit-disk-0.socket --foreground --readonly --filter=readahead curl protocols=http,https \
         url={http}/disk.img",
    )
    .needs(&[Plugin("curl"), Filter("readahead")])
    .tools(&["qemu-img"])
    .serves(Socket("nbdkit-disk-0.socket"), COMPARE, STOP)
    .prints(&["Images are identical."])
    .says(SERIAL),
    typed(
        "libvirt: disk-network-ssh-password.args.disk0, and nobody listens there",
        "nbdkit --unix {dir}/nbdkit-disk-0.socket --foreground ssh host=127.0.0.1 port={port} path={dir}/disk.img \
         user=testuser password=-7 known-hosts={dir}/knownhosts 7<secret.pipe",
    )
    .needs(&[Plugin("ssh")])
    .tools(&["nbdinfo"])
    .before(FEED_SECRET)
    .serves(
        Socket("nbdkit-disk-0.socket"),
        "! nbdinfo --size 'nbd+unix:///?socket={dir}/nbdkit-disk-0.socket'",
        STOP,
    )
    .says(&["failed to connect to remote host: 127.0.0.1: Connection refused"]),
    typed(
        "libvirt: disk-network-ssh-key.args.disk1",
        "nbdkit --unix {dir}/nbdkit-disk-0.socket --foreground ssh host=127.0.0.1 port={port} path={dir}/disk.img \
         identity={dir}/id user=$(id -un) known-hosts={dir}/knownhosts",
    )
    .needs(&[Plugin("ssh")])
    .tools(&["qemu-img", "sshd", "ssh-keygen"])
    .before(SSHD)
    .serves(
        Socket("nbdkit-disk-0.socket"),
        "qemu-img compare -f raw -F raw 'nbd+unix:///?socket={dir}/nbdkit-disk-0.socket' disk.img; status=$?
         kill $(cat sshd.pid); exit $status",
        STOP,
    )
    .prints(&["Images are identical."]),
];

/// A pipe with a password in it, whose writer has gone before the server reads, or waits for the
/// server to open its end.
const FEED_SECRET: &str = "mkfifo secret.pipe
    setsid sh -c 'timeout 60 sh -c \"printf %s secret >secret.pipe\" &' >/dev/null 2>&1 </dev/null";

/// The same, and a pipe with cookies.
const FEED: &str = "mkfifo secret.pipe cookie.pipe
    setsid sh -c 'timeout 60 sh -c \"printf %s secret >secret.pipe\" &
                  timeout 60 sh -c \"printf %s \\\"name1=value1; name2=value2\\\" >cookie.pipe\" &' \
        >/dev/null 2>&1 </dev/null";

/// An SSH server of this user's. The row's client ends it; one that is left over ends by itself.
pub(crate) const SSHD: &str = "ssh-keygen -q -t ed25519 -N '' -f host && ssh-keygen -q -t ed25519 -N '' -f id
    cp id.pub authorized
    echo \"[127.0.0.1]:{port} $(cut -d' ' -f1,2 host.pub)\" >knownhosts
    { echo 'ListenAddress 127.0.0.1'; echo 'Port {port}'; echo 'HostKey {dir}/host'; echo 'PidFile {dir}/sshd.pid'
      echo 'AuthorizedKeysFile {dir}/authorized'; echo 'StrictModes no'; echo 'PermitRootLogin yes'; echo 'UsePAM no'
      echo 'Subsystem sftp internal-sftp'; } >sshd_config
    setsid sh -c 'timeout 60 $(command -v sshd) -D -f {dir}/sshd_config &' >/dev/null 2>&1 </dev/null
    for i in $(seq 600); do test -s sshd.pid && break; sleep 0.1; done";

#[test]
fn libvirt_probes_the_server() {
    check(PROBES);
}

#[test]
fn libvirt_opens_network_disks() {
    check(DISKS);
}
