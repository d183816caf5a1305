#!/bin/sh
# Installs the Debian packages that are missing of those that "make run", "make test", "make bench",
# "make deb", "make rpm" or "make vm-test" needs.
# usage: install-packages.sh run|test|bench|package|rpm|vm
set -eu

case "${1:-}" in
run)  packages="e2fsprogs libnbd-bin libssl-dev pkg-config procps" ;;
test) packages="btrfs-progs bzip2 cryptsetup-bin dosfstools e2fsprogs fdisk fio fish gdisk genisoimage gnutls-bin gzip iproute2 libext2fs-dev libnbd-bin libssl-dev logrotate lzip mandoc mount mtools nbd-server nbdkit nbdkit-plugin-dev nbdkit-plugin-libvirt nbdkit-plugin-lua nbdkit-plugin-perl nbdkit-plugin-python nbdkit-plugin-ruby nbdkit-plugin-tcl openssl pkg-config procps python3 python3-libnbd qemu-utils strace systemd xfsprogs xorriso xz-utils zsh zstd" ;;
bench) packages="fio gnutls-bin gzip libnbd-bin libssl-dev linux-perf nbd-server nbdkit nbdkit-plugin-python pkg-config python3 python3-libnbd qemu-utils xz-utils" ;;
package) packages="debhelper debootstrap devscripts dh-apparmor libext2fs-dev libssl-dev lintian pkg-config" ;;
rpm)  packages="bzip2 libext2fs-dev libssl-dev pkg-config rpm rpmlint selinux-policy-dev" ;;
vm)   packages="apparmor binutils cpio debootstrap e2fsprogs libssl-dev pkg-config selinux-policy-dev" ;;
*)    echo "usage: $0 run|test|bench|package|rpm|vm" >&2; exit 2 ;;
esac

missing=
for package in $packages; do
    status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$status" = installed ] || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" = 0 ]; then
    sudo=
elif command -v sudo >/dev/null 2>&1; then
    sudo=sudo
else
    echo "$0: please install as root:$missing" >&2
    exit 1
fi
echo "installing:$missing"
$sudo apt-get update -q
# shellcheck disable=SC2086 # a list of words
DEBIAN_FRONTEND=noninteractive $sudo apt-get install -q -y --no-install-recommends $missing
