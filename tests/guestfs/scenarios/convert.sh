# virt-v2v converts a guest with our server and with Debian's: the same command lines, the same
# description of the guest, the same files on its disk.
# shellcheck shell=sh

convert() {
    mkdir "$2"
    NBDKIT_LOG=$PWD/$2.lines with "$1" virt-v2v -i disk /srv/guest.img -o local -os "$PWD/$2" -of raw -on guest
}

check "virt-v2v converts with our server" convert "$ours" ours
check "and with Debian's" convert "$debians" debians

# Directories, sockets and the version in the lines are of one run.
normal() {
    sed 's,/tmp/v2v[^/ ]*,TMP,g; s,/var/tmp/convert/\(ours\|debians\),OUT,g' "$1"
}
normal ours.lines > ours.normal
normal debians.lines > debians.normal
check "virt-v2v runs both in the same way" diff -u debians.normal ours.normal
check "more than once, of which some are to probe" [ "$(wc -l < ours.lines)" -ge 4 ]

# A name of a network card is made by chance.
check "the description of the guest is the same" sh -c "
    for name in ours debians; do
        sed 's|$PWD/'\$name'|OUT|; /mac address/d; /<!--/d; /<uuid>/d; /genid/d' \$name/guest.xml > \$name.xml
    done
    diff -u debians.xml ours.xml"
# list DISK LIST: what is in the file system of a disk that was converted, and sums of the files,
# without a machine: virt-diff has one read file by file, and did not end within an hour of
# emulation. Left out: archives that are dated inside, logs, and what is made by chance.
list() {
    e2fsck -fn "$1?offset=1048576"
    mkdir tree
    debugfs -R "rdump / tree" "$1?offset=1048576"
    # Which disk of the machine that converts is found first, the guest's or its own, is chance, and
    # written down there.
    sed -i 's/hd[01],msdos1/hdN,msdos1/g; s/ahci[01],msdos1/ahciN,msdos1/g' tree/boot/grub/grub.cfg
    set -- "$PWD/$2" ! -name 'initrd.img-*' ! -path './var/log/*' ! -name random-seed ! -name machine-id
    (
        list=$1
        shift
        cd tree
        find . "$@" -printf '%p %y %#m %U:%G %l\n' | sort > "$list"
        find . "$@" -type f -print0 | sort -z | xargs -0 sha256sum >> "$list"
    )
    rm -r tree
}

check "the file system that our server has written is whole" list ours/guest-sda ours.list
check "and Debian's" list debians/guest-sda debians.list
check "the disks have the same files" diff -u debians.list ours.list
check "all of a system" [ "$(wc -l < ours.list)" -gt 3000 ]
check "the disk is no longer the source's" sh -c "! cmp -s ours/guest-sda /srv/guest.img"
