#!/bin/sh
# Makes what booted machines are made of, once: qemu, the kernel, an initial file system and the
# image of a Debian system. Packages are unpacked, none is installed: the system emulator's
# dependencies would replace qemu-utils. Root, for debootstrap. Exits with status 3, and one line,
# where something cannot be had.
# usage: build.sh DIRECTORY
set -eu

directory=${1:?"usage: $0 DIRECTORY"}
here=$(realpath "$(dirname "$0")")
suite=bookworm
packages=apparmor,ca-certificates,cryptsetup-bin,dbus,e2fsprogs,fio,iproute2,kmod,libnbd-bin,nbd-client,policycoreutils,procps
packages=$packages,selinux-policy-default,systemd,systemd-sysv,udev,util-linux
# What the initial file system loads to find its root: a disk on virtio, or one on NBD.
modules="virtio_pci virtio_blk virtio_net nbd"

unavailable() {
    echo "$0: $*" >&2
    exit 3
}

[ "$(id -u)" = 0 ] || unavailable "takes root"
[ "$(uname -m)" = x86_64 ] || unavailable "only for x86_64"
for tool in apt-get cpio debootstrap mke2fs; do
    command -v "$tool" > /dev/null || unavailable "$tool is not installed"
done

# What is made here depends on these files alone.
recipe=$(cat "$0" "$here/init" "$here/nbd-connect.pl" | sha256sum)
if [ -e "$directory/complete" ] && [ "$(cat "$directory/complete")" = "$recipe" ]; then
    exit 0
fi
rm -rf "$directory"
mkdir -p "$directory"
directory=$(realpath "$directory")
log=$directory/build.log
echo "making the machine for make vm-test: some minutes, and some 1.5 GB in $directory"

# The emulator, and those of its dependencies that are not installed here.
unpack_qemu() {
    mkdir "$directory/packages" "$directory/qemu"
    cd "$directory/packages"
    wanted=$(apt-get install -s --no-install-recommends qemu-system-x86 | sed -n 's/^Inst \([^ ]*\) .*/\1/p')
    # shellcheck disable=SC2086 # a list of words
    apt-get download -q $wanted
    for package in *.deb; do
        dpkg -x "$package" "$directory/qemu"
    done
    cd "$directory"
    rm -r packages
}

make_system() {
    mirror=$(apt-get indextargets --format '$(SITE)' "Codename: $suite" | sed '/debian-security/d' | head -n 1)
    debootstrap --variant=minbase --include="$packages" "$suite" "$directory/root" "${mirror:-http://deb.debian.org/debian}"
    # The kernel and busybox come from the same suite, and are unpacked: the kernel's package wants
    # an initramfs.
    chroot "$directory/root" sh -c '
        set -e
        cd /tmp
        image=$(apt-cache depends linux-image-cloud-amd64 | sed -n "s/.*Depends: \(linux-image-.*\)/\1/p")
        apt-get download -q "$image" busybox-static
        for package in *.deb; do dpkg -x "$package" /tmp/unpacked; done
        rm -- *.deb
        mv /tmp/unpacked/lib/modules /usr/lib/
        depmod -b / "$(ls /usr/lib/modules)"'
    release=$(ls "$directory/root/usr/lib/modules")
    mv "$directory/root/tmp/unpacked/boot/vmlinuz-$release" "$directory/vmlinuz"
    make_initramfs "$release"
    rm -r "$directory/root/tmp/unpacked"
}

make_initramfs() {
    tree=$directory/initramfs
    mkdir -p "$tree/dev" "$tree/modules" "$tree/bin"
    cp "$directory/root/tmp/unpacked/bin/busybox" "$tree/bin/"
    install -m 755 "$here/init" "$tree/init"
    for module in $modules; do
        chroot "$directory/root" modprobe -S "$1" --show-depends "$module"
    done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' | while read -r path; do
        cp "$directory/root$path" "$tree/modules/"
        basename "$path" >> "$tree/modules/order"
    done
    # For a root that is on NBD.
    chroot "$directory/root" ldd /usr/bin/perl | grep -o '/[^ ]*' | sort -u | while read -r path; do
        install -D "$directory/root$path" "$tree$path"
    done
    install -D "$directory/root/usr/bin/perl" "$tree/bin/perl"
    for module in strict.pm warnings.pm constant.pm; do
        install -D "$directory/root/usr/lib/x86_64-linux-gnu/perl-base/$module" "$tree/usr/lib/x86_64-linux-gnu/perl-base/$module"
    done
    cp -r "$directory/root/usr/lib/x86_64-linux-gnu/perl-base/warnings" "$tree/usr/lib/x86_64-linux-gnu/perl-base/"
    install -D -m 644 "$here/nbd-connect.pl" "$tree/sbin/nbd-connect.pl"
    (cd "$tree" && find . | cpio -o -H newc | gzip -1) > "$directory/initramfs.gz"
    rm -r "$tree"
}

configure_system() {
    root=$directory/root
    echo vm > "$root/etc/hostname"
    printf '%s\n' "127.0.0.1 localhost vm" > "$root/etc/hosts"
    printf '%s\n' "LABEL=payload /vm ext4 ro,nofail 0 0" > "$root/etc/fstab"
    mkdir "$root/vm"
    cat > "$root/etc/systemd/system/vm-test.service" <<-'unit'
	[Unit]
	Description=A scenario of make vm-test
	RequiresMountsFor=/vm
	After=multi-user.target
	[Service]
	Type=exec
	ExecStart=/bin/sh /vm/guest.sh
	StandardOutput=journal+console
	unit
    mkdir -p "$root/etc/systemd/system/default.target.wants"
    for target in multi-user graphical; do
        mkdir -p "$root/etc/systemd/system/$target.target.wants"
        ln -s ../vm-test.service "$root/etc/systemd/system/$target.target.wants/vm-test.service"
    done
    # What only costs time in a machine that lives for a minute. Of all devices that are there when it
    # boots, disks and networks are those that somebody waits for: the others would have modules loaded,
    # for ten seconds of emulation.
    mkdir "$root/etc/systemd/system/systemd-udev-trigger.service.d"
    cat > "$root/etc/systemd/system/systemd-udev-trigger.service.d/vm-test.conf" <<-'unit'
	[Service]
	ExecStart=
	ExecStart=udevadm trigger --type=devices --action=add --subsystem-match=block --subsystem-match=net --subsystem-match=tty
	unit
    for unit in apparmor.service apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer \
        e2scrub_reap.service fstrim.timer getty.target kmod-static-nodes.service modprobe@.service \
        proc-sys-fs-binfmt_misc.automount serial-getty@ttyS0.service systemd-binfmt.service systemd-hwdb-update.service \
        systemd-logind.service systemd-modules-load.service systemd-timesyncd.service systemd-update-utmp.service; do
        ln -sf /dev/null "$root/etc/systemd/system/$unit"
    done
    rm -rf "$root/usr/share/doc" "$root/usr/share/locale" "$root/usr/share/man" "$root/var/cache/apt" "$root/var/lib/apt/lists"
    # Labels of SELinux; without a policy in force they are attributes like others.
    sed -i 's/^SELINUX=.*/SELINUX=permissive/' "$root/etc/selinux/config"
    # setfiles names files by /proc/self/fd.
    unshare -m sh -c 'mount -t proc proc "$1/proc" && exec chroot "$1" setfiles -F "$2" /' \
        sh "$root" /etc/selinux/default/contexts/files/file_contexts
}

{
    unpack_qemu
    make_system
    configure_system
    mke2fs -q -t ext4 -L root -d "$directory/root" "$directory/root.img" 1536M
    rm -r "$directory/root"
} > "$log" 2>&1 || unavailable "cannot be made, see the end of $log: $(tail -1 "$log")"
echo "$recipe" > "$directory/complete"
