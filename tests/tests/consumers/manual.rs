//! Lines of the manual that people copy: nbdkit(1), nbdkit-probing(1), nbdkit-loop(1),
//! nbdkit-client(1), nbdkit-service(1), nbdkit-tls(1), nbdkit-sh-plugin(3). Ports are free ones,
//! nbd-client is a stand-in without the kernel's module.

use nix::sys::signal::Signal;

use crate::probe::Need::{Filter, Plugin};
use crate::row::Ready::{PidFile, Port};
use crate::row::{Row, Stop, check, typed};

const STOP: Stop = Stop::Signal(Signal::SIGTERM);

const PROBING: &[Row] = &[
    typed("nbdkit-probing(1)", "nbdkit --dump-config | grep ^version_minor")
        .prints(&["version_minor="]),
    typed(
        "nbdkit-probing(1), \"Test nbdkit version\"",
        "major=$( nbdkit --dump-config | grep ^version_major | cut -d= -f2 )
         minor=$( nbdkit --dump-config | grep ^version_minor | cut -d= -f2 )
         if [ $major -eq 1 ] && [ $minor -lt 12 ]
         then echo 'nbdkit >= 1.12 is required'; exit 1; fi",
    ),
    typed("nbdkit-probing(1)", "nbdkit file --dump-plugin").prints(&[
        "path=",
        "name=file",
        "version=1.",
        "api_version=2",
    ]),
    typed("nbdkit-probing(1)", "nbdkit foo --version").ends(1).says(&[
        "nbdkit: error: cannot open plugin 'foo': ",
        "nbdkit-foo-plugin.so: cannot open shared object file: No such file or directory",
        "Use 'nbdkit --help' or read the nbdkit(1) manual page for documentation.",
    ]),
    typed("nbdkit-probing(1)", "nbdkit --version --filter=foo null")
        .ends(1)
        .says(&["nbdkit: error: cannot open filter 'foo': "]),
    typed(
        "nbdkit-probing(1), \"List all plugins in the plugin directory\": what is there works, and there may be nothing",
        "plugindir=`nbdkit --dump-config | grep ^plugindir= | sed 's/[^=]*=//'`
         for f in $plugindir/nbdkit-*-plugin.so; do
             if nbdkit \"$f\" --version >/dev/null 2>&1; then
                 b=`echo \"$f\" | sed 's,.*/nbdkit-\\(.*\\)-plugin.so$,\\1,'`
                 echo \"$b ($f)\"
             fi
         done; echo listed",
    )
    .prints(&["listed"]),
    typed("nbdkit-captive(1)", "nbdkit --exit-with-parent --version && echo \"supported\"")
        .prints(&["supported"]),
    typed("nbdkit-captive(1)", "nbdkit --dump-config | grep ^exit_with_parent=yes"),
    typed("nbdkit-tls(1)", "! nbdkit --dump-config | grep ^tls=no"),
    typed("nbdkit(1)", "nbdkit --help file").prints(&["file"]),
    typed("nbdkit(1)", "nbdkit memory --help").prints(&["size=<SIZE>"]),
    typed("nbdkit(1)", "nbdkit example1 --help")
        .needs(&[Plugin("example1")])
        .prints(&["example1"]),
    typed("nbdkit(1)", "nbdkit example1 --dump-plugin")
        .needs(&[Plugin("example1")])
        .prints(&["name=example1", "has_pread=1"]),
    typed("nbdkit-sh-plugin(3)", "nbdkit sh --dump-plugin | grep ^thread_model="),
    typed(
        "scripts: nbdkit --dump-config | grep -q, whose reader has seen enough before all is written",
        "mkfifo pipe; (: <pipe) & exec 7>pipe; wait
         for probe in --help --version --dump-config 'file --help' 'file --dump-plugin'; do
             nbdkit $probe >&7 || echo \"ends: $probe\"
         done",
    )
    .prints(&["ends: --help\nends: --version\nends: --dump-config\nends: file --help\nends: file --dump-plugin\n"]),
];

const LINES: &[Row] = &[
    typed("nbdkit(1)", "nbdkit -f -P {dir}/pid -i 127.0.0.1 -p {port} file disk.img")
        .tools(&["nbdsh"])
        .serves(
            PidFile("pid"),
            "guestfish --rw --format=raw -a nbd://localhost:{port}",
            STOP,
        )
        .prints(&["drive 1048576 consumers"]),
    typed(
        "nbdkit(1)",
        "nbdkit -P {dir}/pid -i 127.0.0.1 -p {port} --tls=require --tls-certificates={dir}/pki file disk.img",
    )
    .tools(&["certtool", "nbdinfo"])
    .forks(
        "pid",
        "nbdinfo --size 'nbds://localhost:{port}?tls-certificates={dir}/pki' && \
         ! nbdinfo --size nbd://localhost:{port} 2>/dev/null",
    )
    .prints(&["1048576"])
    .verbose(),
    typed(
        "nbdkit(1)",
        "nbdkit -U - data ' ( 0x55 0xAA )*2048 ' --run 'nbdcopy \"$uri\" - | tail -c 4 | od -An -tx1'",
    )
    .tools(&["nbdcopy"])
    .prints(&["55 aa 55 aa"]),
    typed(
        "nbdkit(1)",
        "nbdkit -U - -r curl {http}/disk.img --run 'nbdcopy \"$uri\" - | cmp - disk.img && echo same'",
    )
    .needs(&[Plugin("curl")])
    .tools(&["nbdcopy"])
    .prints(&["same"]),
    typed(
        "nbdkit(1)",
        "nbdkit -U - floppy floppy/ --run 'nbdcopy \"$uri\" - | grep -ac \"written here\"'",
    )
    .needs(&[Plugin("floppy")])
    .tools(&["nbdcopy"])
    .before("mkdir floppy && echo written here >floppy/readme.txt")
    .prints(&["1"]),
    typed(
        "nbdkit(1)",
        "nbdkit -U - --filter=partition --filter=xz file disk.img.xz partition=1 --run 'nbdinfo --size \"$uri\"'",
    )
    .needs(&[Filter("partition"), Filter("xz")])
    .tools(&["nbdinfo", "xz"])
    // A table with one partition of 512 sectors, from sector 128 on.
    .before(
        r"head -c 512 /dev/zero | dd of=disk.img conv=notrunc status=none
        printf '\000\000\002\000\203\000\003\000\200\000\000\000\000\002\000\000' |
            dd of=disk.img bs=1 seek=446 conv=notrunc status=none
        printf '\125\252' | dd of=disk.img bs=1 seek=510 conv=notrunc status=none; xz disk.img",
    )
    .prints(&["262144"]),
    typed(
        "nbdkit(1)",
        "nbdkit -U - --filter=error --filter=delay memory 100M error-rate=10% rdelay=1 wdelay=1 \
         --run 'nbdinfo --size \"$uri\"'",
    )
    .tools(&["nbdinfo"])
    .prints(&["104857600"]),
    typed(
        "nbdkit(1): a script on standard input",
        "nbdkit -U - --run 'nbdcopy \"$uri\" - | wc -c' sh - <<'EOF'
  case \"$1\" in
    get_size) echo 1M ;;
    pread) dd if=/dev/zero count=$3 iflag=count_bytes ;;
    *) exit 2 ;;
  esac
EOF",
    )
    .tools(&["nbdcopy"])
    .prints(&["1048576"]),
    typed(
        "nbdkit(1)",
        "nbdkit -U - eval get_size='echo 1M' pread='dd if=/dev/zero count=$3 iflag=count_bytes' \
         --run 'nbdcopy \"$uri\" - | wc -c'",
    )
    .tools(&["nbdcopy"])
    .prints(&["1048576"]),
    typed(
        "nbdkit-loop(1), in bash, whose arithmetic has **",
        "bash -c 'nbdkit -U - memory $(( 2**63 - 1 )) --run \"nbdinfo --size \\$uri\"'",
    )
    .tools(&["nbdinfo", "bash"])
    .prints(&["9223372036854775807"]),
    typed(
        "nbdkit-loop(1)",
        "nbdkit -f -P {dir}/pid -i 127.0.0.1 -p {port} --filter=error memory 1M error-rate=100% error-file={dir}/inject",
    )
    .tools(&["nbdcopy"])
    .serves(
        PidFile("pid"),
        "nbd-client localhost:{port} ok && touch inject && ! nbd-client localhost:{port} bad 2>/dev/null && \
         rm inject && nbd-client localhost:{port} again && cmp ok again && echo injected",
        STOP,
    )
    .prints(&["injected"])
    .says(&["injecting EIO error into "]),
    typed("nbdkit-loop(1)", "nbdkit -f -P {dir}/pid -i 127.0.0.1 -p {port} sh ./bad-sector.sh")
        .tools(&["nbdsh", "bash"])
        .before(BAD_SECTOR)
        .serves(
            PidFile("pid"),
            "nbdsh -u nbd://localhost:{port} -c 'print(h.get_size(), len(h.pread(512, 0)))' && \
             ! nbdsh -u nbd://localhost:{port} -c 'h.pread(512, 99840)' 2>error; grep -o 'Input/output error' error",
            STOP,
        )
        .prints(&["67108864 512", "Input/output error"])
        .says(&["Bad block"]),
    typed(
        "nbdkit-client(1), nbd-client(8)",
        "nbdkit -f -P {dir}/pid -i 127.0.0.1 -p {port} -r file disk.img",
    )
    .tools(&["nbdcopy"])
    .serves(
        PidFile("pid"),
        "nbd-client localhost:{port} {dir}/nbd0 && cmp nbd0 disk.img && echo same",
        STOP,
    )
    .prints(&["same"]),
    typed("nbdkit-loop(1)", "nbdkit -f -P {dir}/pid -U {dir}/socket file disk.img")
        .tools(&["nbdcopy"])
        .serves(
            PidFile("pid"),
            "nbd-client -unix {dir}/socket {dir}/nbd0 && cmp nbd0 disk.img && echo same",
            STOP,
        )
        .prints(&["same"]),
    typed(
        "nbdkit-service(1), systemd-socket-activate(1)",
        "systemd-socket-activate -l 127.0.0.1:{port} $(command -v nbdkit) file {dir}/disk.img",
    )
    .tools(&["nbdcopy", "systemd-socket-activate"])
    .serves(
        Port,
        "nbdcopy nbd://127.0.0.1:{port} copy && cmp copy disk.img && echo same",
        STOP,
    )
    .prints(&["same"])
    .verbose(),
];

/// Images and scripts that change while they are served.
const CHANGES: &[Row] = &[
    typed(
        "nbdkit-file-plugin(1): disks are linked into the directory, and linked anew, while it is served",
        "nbdkit -f -P {dir}/pid -U {dir}/sock file dir={dir}/disks",
    )
    .tools(&["nbdcopy", "nbdinfo"])
    .before("mkdir disks && truncate -s 2M other.img")
    .serves(
        PidFile("pid"),
        "ln -s ../disk.img disks/sda && nbdinfo --list 'nbd+unix:///?socket={dir}/sock' | grep export= && \
         nbdcopy 'nbd+unix:///sda?socket={dir}/sock' copy && cmp copy disk.img && \
         ln -sfn ../other.img disks/sda && nbdinfo --size 'nbd+unix:///sda?socket={dir}/sock'",
        STOP,
    )
    .prints(&["export=\"sda\":\n2097152\n"]),
    typed(
        "nbdkit-file-plugin(1): an image is replaced by rename(2), as rsync, qemu-img and backup programs do",
        "nbdkit -f -P {dir}/pid -U {dir}/sock file {dir}/disk.img",
    )
    .tools(&["nbdinfo"])
    .serves(
        PidFile("pid"),
        "nbdinfo --size 'nbd+unix:///?socket={dir}/sock' && truncate -s 2M new && mv new disk.img && \
         nbdinfo --size 'nbd+unix:///?socket={dir}/sock'",
        STOP,
    )
    .prints(&["1048576\n2097152\n"]),
    typed(
        "nbdkit-eval-plugin(1): a clone of the file plugin",
        "nbdkit -U - eval config='ln -sf \"$(realpath \"$3\")\" $tmpdir/file' get_size='stat -Lc %s $tmpdir/file' \
         pread='dd if=$tmpdir/file skip=$4 count=$3 iflag=count_bytes,skip_bytes' \
         pwrite='dd of=$tmpdir/file seek=$4 conv=notrunc oflag=seek_bytes' file={dir}/copy \
         --run 'nbdcopy disk.img \"$uri\"' && cmp copy disk.img && echo same",
    )
    .tools(&["nbdcopy"])
    .before("truncate -s 1M copy")
    .prints(&["same"]),
    typed(
        "nbdkit-sh-plugin(3): a script with an image, a helper and a state file beside it",
        "nbdkit -r -U - sh ./plugin.sh --run 'nbdcopy \"$uri\" copy' && cmp copy disk.img && sort -u state",
    )
    .tools(&["nbdcopy"])
    .before(SCRIPT)
    .prints(&["opened\n"]),
];

const SCRIPT: &str = r#"printf '#!/bin/sh\nstat -c %%s "$1"\n' >helper
cat >plugin.sh <<'EOF'
#!/bin/sh
case "$1" in
    open) echo opened >>state; mktemp ;;
    close) rm "$2" ;;
    get_size) ./helper disk.img ;;
    pread) dd if=disk.img skip=$4 count=$3 iflag=count_bytes,skip_bytes ;;
    *) exit 2 ;;
esac
EOF
chmod +x helper plugin.sh"#;

const BAD_SECTOR: &str = r#"cat >bad-sector.sh <<'EOF'
#!/bin/bash -
case "$1" in
    thread_model) echo parallel ;;
    get_size) echo 64M ;;
    pread)
        if [ $4 -le 100000 ] && [ $(( $4+$3 )) -gt 100000 ]; then
            echo EIO Bad block >&2
            exit 1
        else
            dd if=/dev/zero count=$3 iflag=count_bytes
        fi ;;
    *) exit 2 ;;
esac
EOF
chmod +x bad-sector.sh"#;

#[test]
fn the_manuals_probes() {
    check(PROBING);
}

#[test]
fn the_manuals_lines() {
    check(LINES);
}

#[test]
fn what_is_served_changes() {
    check(CHANGES);
}
