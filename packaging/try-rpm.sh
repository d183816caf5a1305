#!/bin/sh
# Has rpmlint look at the packages of "make rpm", if it is there, installs them in a root of their
# own, serves a disk from there, and erases them: nothing may be left. Root, debootstrap and a
# mirror: the root is a fresh Debian, whose libraries rpm does not know.
# usage: try-rpm.sh DIRECTORY_OF_PACKAGES [CHROOT, made if it is not there]
set -eu
built=$(realpath "$1")
if [ -z "${TRY_RPM_ROOT:-}" ] && command -v rpmlint > /dev/null; then
    rpmlint -r "$(dirname "$0")/nbdkitd.rpmlintrc" "$built"/*.rpm > "$built/rpmlint" ||
        { grep -e ': E: ' -e checked "$built/rpmlint" >&2; exit 1; }
fi
if [ -z "${TRY_RPM_ROOT:-}" ]; then
    if [ $# -gt 1 ]; then
        mkdir -p "$2"
        root=$(realpath "$2")
    else
        root=$(mktemp -d /var/tmp/nbdkitd-root.XXXXXX)
        # Its root directory: others than root pass through it.
        chmod 755 "$root"
        trap 'rm -rf "$root"' EXIT
    fi
    [ -e "$root/etc/debian_version" ] || debootstrap --variant=minbase --include=e2fsprogs,libext2fs2,libnbd-bin,libssl3,passwd,systemd \
        bookworm "$root" "${MIRROR:-http://deb.debian.org/debian}"
    # What is mounted is gone with the script.
    TRY_RPM_ROOT=$root unshare --mount --propagation private "$0" "$built"
    exit
fi
root=$TRY_RPM_ROOT
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
in_root() {
    chroot "$root" env PATH=/usr/sbin:/usr/bin:/sbin:/bin "$@"
}
# All but what packages leave: the database, and backups of users. The users themselves stay, as
# RPM's packages leave them.
files() {
    (cd "$root" && find . -xdev \( -path ./proc -o -path ./dev -o -path ./tmp -o -path ./var/lib/rpm -o -path ./var/log \
        -o -path ./run -o -path ./etc/.pwd.lock -o -path ./var/lib/private \) -prune -o -print |
        grep -v -e '^./etc/.*-$' -e '^./var/mail' -e '^./etc/sub[ug]id' | sort)
}
# Debian's rpm has its database in the user's home otherwise, and says that it is not for
# installing.
packages() {
    rpm --root "$root" --dbpath /var/lib/rpm --nodeps "$@" 2> "$root/tmp/errors" || { cat "$root/tmp/errors" >&2; exit 1; }
}
# Directories that belong to packages which every Fedora has, or which are installed with these:
# filesystem, selinux-policy.
mkdir -p "$root/usr/lib64/pkgconfig" "$root/usr/share/licenses" "$root/usr/share/man/man3" "$root/usr/share/selinux/packages/targeted"
files > "$root/tmp/before"

cd "$built"
packages -i nbdkitd-[0-9]*.x86_64.rpm nbdkitd-filter-ext2-*.rpm nbdkitd-devel-*.rpm nbdkitd-doc-*.rpm \
    nbdkitd-selinux-*.rpm
# All is as the packages say.
packages -V nbdkitd nbdkitd-filter-ext2 nbdkitd-devel nbdkitd-doc nbdkitd-selinux
in_root nbdkit --version
in_root nbdkit --dump-plugin --filter=ext2 null | grep -qx ext2_name=ext2
in_root sh -c 'grep -q "^nbdkit-listener:" /etc/passwd && grep -q "^nbdkit-clients:" /etc/group'
in_root sh -c 'truncate -s 1M /var/lib/nbdkit/disk.img && chown nbdkit: /var/lib/nbdkit/disk.img &&
    nbdkit -u nbdkit -U - file /var/lib/nbdkit/disk.img --run "nbdinfo --size \"\$uri\"" && rm /var/lib/nbdkit/disk.img' | grep -qx 1048576

packages -e nbdkitd nbdkitd-filter-ext2 nbdkitd-devel nbdkitd-doc nbdkitd-selinux
files > "$root/tmp/after"
diff "$root/tmp/before" "$root/tmp/after" || { echo "$0: this is left" >&2; exit 1; }
echo "installed, served, erased: nothing is left"
