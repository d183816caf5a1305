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
# Left out: archives that are dated inside, logs, and what is made by chance.
check "the disks have the same files" sh -c "
    virt-diff --checksum --format=raw -a debians/guest-sda --format=raw -A ours/guest-sda > differences || exit 1
    grep -v -e '^#' -e ' /boot/initrd' -e ' /var/log/' -e random-seed -e machine-id differences > left || true
    cat left; [ ! -s left ]"
check "the disk is no longer the source's" sh -c "! cmp -s ours/guest-sda /srv/guest.img"
