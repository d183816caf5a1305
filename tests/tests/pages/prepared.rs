//! What examples of plugins and filters need: files that the reader has, by page, and clients that
//! do more than read the first block.

/// Before each example of a page; all have `disk.img`.
const FILES: &[(&str, &str)] = &[
    ("nbdkit-bzip2-filter", "bzip2 -k disk.img"),
    (
        "nbdkit-cc-plugin",
        r#"cat > source.cpp << 'end'
#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>
#include <cstring>
static void *open_disk (int) { return NBDKIT_HANDLE_NOT_NEEDED; }
static int64_t get_size (void *) { return 1 << 20; }
static int pread (void *, void *buf, uint32_t count, uint64_t, uint32_t) { std::memset (buf, 1, count); return 0; }
static struct nbdkit_plugin plugin;
struct Fill {
    Fill () { plugin.name = "source"; plugin.open = open_disk; plugin.get_size = get_size; plugin.pread = pread; }
} fill;
extern "C" struct nbdkit_plugin *plugin_init (void)
{
    plugin._struct_size = sizeof plugin;
    plugin._api_version = NBDKIT_API_VERSION;
    plugin._thread_model = NBDKIT_THREAD_MODEL_PARALLEL;
    return &plugin;
}
end"#,
    ),
    ("nbdkit-ddrescue-filter", "printf '# map\\n0x0 * 1\\n0x0 0x1000000 +\\n' > disk.map"),
    ("nbdkit-exportname-filter", "mkdir -p /srv/disks; cp disk.img /srv/disks/a.img; cp disk.img /srv/disks/b.img"),
    (
        "nbdkit-ext2-filter",
        "mkdir -p tree/disks; truncate -s 1M tree/disks/disk.raw; mke2fs -q -t ext4 -d tree fs.img 16M
         command nbdkit -U - partitioning fs.img --run 'nbdcopy \"$uri\" disk.img'",
    ),
    ("nbdkit-file-plugin", "mkdir -p /srv/disks; cp disk.img /srv/disks/"),
    ("nbdkit-floppy-plugin", "mkdir -p /srv/drivers; echo driver > /srv/drivers/driver.inf"),
    ("nbdkit-fua-filter", "cp disk.img scratch.img"),
    ("nbdkit-gzip-filter", "gzip -k disk.img"),
    ("nbdkit-indexed-gzip-filter", "gzip -k disk.img"),
    ("nbdkit-ip-filter", "certificates"),
    ("nbdkit-iso-plugin", "mkdir -p /srv/tree; echo data > /srv/tree/file"),
    ("nbdkit-linuxdisk-plugin", "mkdir -p /srv/tree; echo data > /srv/tree/file; rm disk.img"),
    // The programs of a test are not optimised, and would derive a key of qemu's for minutes.
    (
        "nbdkit-luks-filter",
        r#"truncate -s 32M disk.img; printf SECRET > /run/secret
         mkdir bin; printf '#!/bin/sh\nshift\nexec /usr/bin/qemu-img create -o iter-time=10 "$@"\n' > bin/qemu-img
         chmod +x bin/qemu-img; PATH=$PWD/bin:$PATH"#,
    ),
    (
        "nbdkit-multi-conn-filter",
        "cat > script << 'end'
#!/bin/sh
case $1 in
get_size) echo 1M ;;
pread) head -c $3 /dev/zero ;;
can_flush | flush) ;;
*) exit 2 ;;
esac
end
         chmod +x script",
    ),
    (
        "nbdkit-nbd-plugin",
        "certificates
         rm -f /run/plain.sock; command nbdkit -U /run/plain.sock memory 1M
         command nbdkit -U - partitioning disk.img --run 'nbdcopy \"$uri\" raw'
         qemu-img convert -q -O qcow2 raw disk.qcow2",
    ),
    ("nbdkit-offset-filter", "truncate -s 128M disk.img"),
    ("nbdkit-ondemand-plugin", "mkdir -p /srv"),
    ("nbdkit-partition-filter", "mv disk.img part; command nbdkit -U - partitioning part --run 'nbdcopy \"$uri\" disk.img'"),
    ("nbdkit-partitioning-plugin", "cp disk.img boot.img; cp disk.img swap.img; cp disk.img root.img"),
    ("nbdkit-qcow2dec-filter", "qemu-img convert -q -O qcow2 disk.img disk.qcow2; xz -k --block-size=1MiB disk.qcow2"),
    ("nbdkit-split-plugin", "cp disk.img part1; cp disk.img part2; cp disk.img part3"),
    ("nbdkit-swab-filter", "mv disk.img falcon.img"),
    ("nbdkit-tar-filter", "mv disk.img rhel-disk1.vmdk; touch rhel.ovf; tar -cf rhel.ova rhel.ovf rhel-disk1.vmdk"),
    ("nbdkit-tls-fallback-filter", "certificates"),
    ("nbdkit-tmpdisk-plugin", "mv disk.img base.img"),
    ("nbdkit-vhd-plugin", "qemu-img convert -q -O vpc disk.img azure.vhd; rm disk.img"),
    ("nbdkit-vhdx-plugin", "qemu-img convert -q -O vhdx disk.img hyperv.vhdx; rm disk.img"),
    (
        "nbdkit-vmdk-plugin",
        "qemu-img convert -q -O vmdk -o subformat=streamOptimized disk.img appliance-disk1.vmdk; rm disk.img",
    ),
    ("nbdkit-zstd-filter", "zstd -q disk.img"),
];

/// Clients of a page: the disk is behind an export name, TLS or an error.
const CLIENTS: &[(&str, &str)] = &[
    ("nbdkit-error-filter", "nbdinfo --size \"$uri\""),
    (
        "nbdkit-exportname-filter",
        "nbdinfo --size \"$uri/a.img\" && ! nbdinfo --size \"$uri/c.img\"",
    ),
    ("nbdkit-ext2-filter", "nbdinfo --size \"$uri//disks/disk.raw\" | grep -x 1048576"),
    ("nbdkit-file-plugin", "nbdinfo --list \"$uri\""),
    (
        "nbdkit-ip-filter",
        "nbdinfo --size \"$uri\" || nbdinfo --size \"nbds://localhost?tls-certificates=$PWD/client\"",
    ),
    (
        "nbdkit-nbd-plugin",
        "nbdinfo --size \"$uri\" || nbdinfo --size \"nbds://localhost?tls-certificates=$PWD/client\"",
    ),
    (
        "nbdkit-tls-fallback-filter",
        "nbdinfo --size \"nbds://localhost?tls-certificates=$PWD/client\" | grep -x 4194304
         nbdcopy \"$uri\" - | grep -a 'Use TLS, please.'",
    ),
];

/// What is to be done before an example of this page.
pub(crate) fn before(page: &str) -> String {
    let disk = "head -c 1M /dev/urandom > disk.img; truncate -s 4M disk.img";
    let entry = FILES.iter().find(|(name, _)| *name == page);
    format!("{disk}\n{}", entry.map_or("", |(_, script)| script))
}

/// The client of this page, if it is not the usual one.
pub(crate) fn client(page: &str) -> Option<&'static str> {
    CLIENTS.iter().find(|(name, _)| *name == page).map(|(_, script)| *script)
}

#[test]
fn every_file_and_client_is_of_a_page() {
    let pages = crate::page::pages();
    for (name, _) in FILES.iter().chain(CLIENTS) {
        assert!(pages.iter().any(|page| page.name == *name), "{name}");
    }
}
