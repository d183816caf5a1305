#!/bin/sh
# Makes what `make guestfs-test` runs in, once: a Debian system with libguestfs, virt-v2v and
# Debian's own nbdkit, the appliance of libguestfs, and a small guest to look into and to convert.
# Root, for debootstrap. Exits with status 3, and one line, where something cannot be had.
# usage: build.sh DIRECTORY
set -eu

directory=${1:?"usage: $0 DIRECTORY"}
suite=bookworm
packages="guestfish guestfs-tools jq libnbd-bin linux-image-amd64 nbdkit nbdkit-plugin-python python3-libnbd qemu-system-x86 qemu-utils virt-v2v"
guest_packages=dbus,grub-common,grub2-common,initramfs-tools,kmod,linux-image-cloud-amd64,udev

unavailable() {
    echo "$0: $*" >&2
    exit 3
}

[ "$(id -u)" = 0 ] || unavailable "takes root"
[ "$(uname -m)" = x86_64 ] || unavailable "only for x86_64"
for tool in apt-get debootstrap mke2fs sfdisk unshare; do
    command -v "$tool" > /dev/null || unavailable "$tool is not installed"
done

# What is made here depends on this file alone.
recipe=$(sha256sum < "$0")
if [ -e "$directory/complete" ] && [ "$(cat "$directory/complete")" = "$recipe" ]; then
    exit 0
fi
if [ -z "${GUESTFS_INSIDE:-}" ]; then
    # What is mounted here is gone with this process.
    GUESTFS_INSIDE=yes exec unshare --mount --propagation private "$0" "$directory"
fi
rm -rf "$directory"
mkdir -p "$directory"
directory=$(realpath "$directory")
log=$directory/build.log
root=$directory/root
mirror=$(apt-get indextargets --format '$(SITE)' "Codename: $suite" | sed '/debian-security/d' | head -n 1)
mirror=${mirror:-http://deb.debian.org/debian}
echo "making the system for make guestfs-test: some ten minutes, and some 4 GB in $directory"

in_root() {
    chroot "$root" env DEBIAN_FRONTEND=noninteractive PATH=/usr/sbin:/usr/bin:/sbin:/bin "$@"
}

# No service is started in a chroot.
forbid_services() {
    printf '#!/bin/sh\nexit 101\n' > "$1/usr/sbin/policy-rc.d"
    chmod 755 "$1/usr/sbin/policy-rc.d"
}

make_system() {
    debootstrap --variant=minbase "$suite" "$root" "$mirror"
    forbid_services "$root"
    mount -t proc proc "$root/proc"
    mount --rbind /dev "$root/dev"
    in_root apt-get update -q
    # shellcheck disable=SC2086 # a list of words
    in_root apt-get install -q -y -o Dpkg::Use-Pty=0 --no-install-recommends $packages
    in_root apt-get clean
    # The first machine that libguestfs starts makes the file system of all others.
    mkdir -p "$root/srv/cache"
    in_root LIBGUESTFS_BACKEND=direct LIBGUESTFS_BACKEND_SETTINGS=force_tcg LIBGUESTFS_CACHEDIR=/srv/cache guestfish -a /dev/null run
}

# A Debian that virt-v2v converts as it does any other: it asks dpkg for the kernel, rewrites
# fstab, and has the guest's own programs make the initial file system and the menu of GRUB.
make_guest() {
    guest=$directory/guest
    debootstrap --variant=minbase --include="$guest_packages" "$suite" "$guest" "$mirror"
    echo "/dev/sda1 / ext4 errors=remount-ro 0 1" > "$guest/etc/fstab"
    echo guest > "$guest/etc/hostname"
    # An initial file system of few modules: the emulator takes minutes to make one of all.
    sed -i 's/^MODULES=.*/MODULES=list/; s/^COMPRESS=.*/COMPRESS=gzip/' "$guest/etc/initramfs-tools/initramfs.conf"
    release=$(ls "$guest/lib/modules")
    chroot "$guest" update-initramfs -u -k "$release"
    mkdir -p "$guest/boot/grub"
    cat > "$guest/boot/grub/grub.cfg" <<-end
	set timeout=0
	menuentry 'Debian' {
	    insmod ext2
	    set root='(hd0,msdos1)'
	    linux /boot/vmlinuz-$release root=/dev/sda1 ro
	    initrd /boot/initrd.img-$release
	}
	end
    rm -rf "$guest/usr/share/doc" "$guest/usr/share/locale" "$guest/usr/share/man" "$guest/var/cache/apt" "$guest/var/lib/apt/lists"
    mkdir -p "$guest/var/cache/apt/archives/partial" "$guest/var/lib/apt/lists/partial"
    truncate -s 1G "$root/srv/guest.img"
    echo 'start=2048, type=83, bootable' | sfdisk -q "$root/srv/guest.img"
    mke2fs -q -t ext4 -L guest -d "$guest" -E offset=1048576 "$root/srv/guest.img" 1023M
    rm -r "$guest"
}

{
    make_system
    make_guest
} > "$log" 2>&1 || unavailable "cannot be made, see the end of $log: $(tail -1 "$log")"
echo "$recipe" > "$directory/complete"
