#!/bin/sh
# Has lintian look at the packages, if it is there, installs them in a fresh Debian, serves a disk,
# and purges them: nothing may be left. Root, debootstrap and a mirror.
# usage: try-deb.sh DIRECTORY_OF_PACKAGES [CHROOT, made if it is not there]
set -eu
packages=$(realpath "$1")
if command -v lintian > /dev/null; then
    lintian --allow-root --fail-on error "$packages"/nbdkitd*.deb
fi
if [ $# -gt 1 ]; then
    mkdir -p "$2"
    root=$(realpath "$2")
else
    root=$(mktemp -d /var/tmp/nbdkitd-chroot.XXXXXX)
    # Its root directory: others than root pass through it.
    chmod 755 "$root"
fi
cleanup() {
    umount "$root/proc" 2>/dev/null || true
    [ $# -gt 0 ] || rm -rf "$root"
}
[ -e "$root/etc/debian_version" ] || debootstrap --variant=minbase bookworm "$root" "${MIRROR:-http://deb.debian.org/debian}"
in_root() {
    chroot "$root" env DEBIAN_FRONTEND=noninteractive PATH=/usr/sbin:/usr/bin:/sbin:/bin "$@"
}
mount -t proc proc "$root/proc"
trap 'cleanup ${2+kept}' EXIT

# All but what packages leave behind when they are purged: the caches and lists of apt and dpkg,
# logs, backups of users, the lock of adduser(8).
files() {
    (cd "$root" && find . -xdev \( -path ./proc -o -path ./var/lib/apt -o -path ./var/cache -o -path ./var/log \
        -o -path ./var/lib/dpkg -o -path ./run/adduser -o -path ./tmp \
        -o -path ./packages \) -prune -o -print | grep -v -e '^./etc/.*-$' | sort)
    in_root getent passwd
    in_root getent group
}
in_root apt-get update -qq
# What it needs, and a client, are not ours to remove.
in_root apt-get install -qq -y -o Dpkg::Use-Pty=0 --no-install-recommends adduser libext2fs2 libnbd-bin libssl3 procps > /dev/null
files > "$root/tmp/before"

mkdir -p "$root/packages"
cp "$packages"/nbdkitd_*.deb "$packages"/nbdkitd-filter-ext2_*.deb "$packages"/nbdkitd-dev_*.deb "$packages"/nbdkitd-doc_*.deb \
    "$root/packages/"
in_root sh -c 'apt-get install -qq -y -o Dpkg::Use-Pty=0 --no-install-recommends /packages/*.deb' > /dev/null
in_root nbdkit --version
in_root nbdkit --dump-plugin --filter=ext2 null | grep -qx ext2_name=ext2
# Whatever needs nbdkit is content.
in_root apt-get install -qq -y -o Dpkg::Use-Pty=0 --simulate --no-install-recommends nbdkit-plugin-lua | grep '^Inst nbdkit-plugin-lua'
! in_root dpkg-query -W -f '${db:Status-Status}\n' nbdkit 2>/dev/null | grep -qx installed
in_root sh -c 'truncate -s 1M /var/lib/nbdkit/disk.img && chown nbdkit: /var/lib/nbdkit/disk.img &&
    nbdkit -u nbdkit -U - file /var/lib/nbdkit/disk.img --run "nbdinfo --size \"\$uri\"" && rm /var/lib/nbdkit/disk.img' | grep -qx 1048576
in_root sh -c 'grep -q "^nbdkit-listener:" /etc/passwd && grep -q "^nbdkit-clients:" /etc/group'

in_root apt-get purge -qq -y -o Dpkg::Use-Pty=0 nbdkitd nbdkitd-filter-ext2 nbdkitd-dev nbdkitd-doc > /dev/null
files > "$root/tmp/after"
diff "$root/tmp/before" "$root/tmp/after" || { echo "$0: this is left" >&2; exit 1; }
echo "installed, served, purged: nothing is left"
