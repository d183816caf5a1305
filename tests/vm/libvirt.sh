#!/bin/sh
# libvirt defines and starts a guest whose disks are served by this server, on a Unix socket and on
# TCP, and copies one of them while the guest writes. Not in a booted machine, where the guest would
# be emulated by an emulated processor: libvirtd of Debian 12 runs in a chroot, in namespaces of its
# own. Root. Exits with status 3, and one line, where the chroot cannot be made.
# usage: libvirt.sh MACHINE PAYLOAD DIRECTORY: what build.sh and "make install-files" have made, and
# where the chroot is
set -eu

if [ "${1:-}" != inside ]; then
    machine=$(realpath "$1")
    payload=$(realpath "$2")
    mkdir -p "$3"
    directory=$(realpath "$3")
    if ! [ -e "$directory/complete" ]; then
        echo "making the chroot for libvirt: some minutes, and some 700 MB in $directory"
        rm -rf "$directory/root"
        mirror=$(apt-get indextargets --format '$(SITE)' "Codename: bookworm" | sed '/debian-security/d' | head -n 1)
        {
            debootstrap --variant=minbase bookworm "$directory/root" "${mirror:-http://deb.debian.org/debian}"
            # No daemon is started by its package.
            printf '#!/bin/sh\nexit 101\n' > "$directory/root/usr/sbin/policy-rc.d"
            chmod 755 "$directory/root/usr/sbin/policy-rc.d"
            chroot "$directory/root" env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends \
                libvirt-clients libvirt-daemon-driver-qemu libvirt-daemon-system qemu-system-x86
            touch "$directory/complete"
        } > "$directory/build.log" 2>&1 ||
            { echo "$0: cannot be made, see the end of $directory/build.log: $(tail -n 1 "$directory/build.log")" >&2; exit 3; }
    fi
    # With the namespace of processes, all that was started ends.
    exec timeout -s KILL 900 unshare --mount --net --ipc --pid --fork --kill-child "$0" inside "$machine" "$payload" "$directory/root"
fi

machine=$2
payload=$3
root=$4
ip link set lo up
mount -t proc proc "$root/proc"
mount -t tmpfs run "$root/run"
mount -t sysfs -o ro sysfs "$root/sys"
# Devices without /dev/kvm, which libvirt would try.
mount -t tmpfs dev "$root/dev"
for device in full null random tty urandom zero; do
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=666 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
mount --bind "$payload/usr/local" "$root/usr/local"

# The guest: a kernel, a program that reads both disks and then writes to the first.
work=$root/run/test
mkdir -p "$work/tree" "$work/disks"
(cd "$work/tree" && gzip -dc "$machine/initramfs.gz" | cpio -i --quiet)
cat > "$work/tree/init" <<'init'
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin:/sbin
mkdir -p /proc /one /two
mount -t devtmpfs none /dev
mount -t proc none /proc
while read -r module; do insmod "/modules/$module"; done < /modules/order
until [ -b /dev/vda ] && [ -b /dev/vdb ]; do sleep 0.1; done
mount -t ext4 /dev/vda /one
mount -t ext4 -o ro /dev/vdb /two
echo "markers: $(cat /one/marker) $(cat /two/marker)"
count=0
while sleep 0.5; do
    count=$((count + 1))
    echo "$count" >> /one/count
    sync
    echo "count $count"
done
init
chmod 755 "$work/tree/init"
(cd "$work/tree" && find . | cpio -o -H newc --quiet | gzip -1) > "$work/initramfs.gz"
rm -r "$work/tree"
cp "$machine/vmlinuz" "$work/"
for disk in first second; do
    mkdir "$work/content"
    echo "read-from-$disk" > "$work/content/marker"
    truncate -s 32M "$work/disks/$disk"
    mke2fs -q -t ext4 -d "$work/content" "$work/disks/$disk"
    rm -r "$work/content"
done
truncate -s 32M "$work/copy"

cat > "$work/guest.xml" <<'xml'
<domain type='qemu'>
  <name>guest</name>
  <memory unit='MiB'>256</memory>
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>
    <kernel>/run/test/vmlinuz</kernel>
    <initrd>/run/test/initramfs.gz</initrd>
    <cmdline>console=ttyS0 panic=-1 quiet mitigations=off</cmdline>
  </os>
  <devices>
    <disk type='network' device='disk'>
      <driver name='qemu' type='raw'/>
      <source protocol='nbd' name='first'><host transport='unix' socket='/run/test/unix.sock'/></source>
      <target dev='vda' bus='virtio'/>
    </disk>
    <disk type='network' device='disk'>
      <driver name='qemu' type='raw'/>
      <source protocol='nbd' name='second'><host name='127.0.0.1' port='10809'/></source>
      <target dev='vdb' bus='virtio'/>
    </disk>
    <serial type='file'><source path='/run/test/console'/></serial>
    <memballoon model='none'/>
  </devices>
</domain>
xml
cat > "$work/copy.xml" <<'xml'
<disk type='network' device='disk'>
  <driver name='qemu' type='raw'/>
  <source protocol='nbd' name=''><host transport='unix' socket='/run/test/copy.sock'/></source>
</disk>
xml
rm -rf "$root/etc/libvirt/qemu/"*.xml "$root/var/lib/libvirt/qemu" "$root/var/log/libvirt/qemu"
# A chroot has no systemd, no control groups of its own and no virtlogd.
cat > "$root/etc/libvirt/qemu.conf" <<'conf'
user = "root"
group = "root"
security_driver = "none"
cgroup_controllers = [ ]
namespaces = [ ]
stdio_handler = "file"
remember_owner = 0
conf

failures=0
ok() {
    echo "ok $1"
}
not_ok() {
    echo "not ok $1: $(tail -n 3 "$work/output" | tr '\n' '|')"
    failures=$((failures + 1))
}
# check NAME COMMAND...: in the chroot.
check() {
    name=$1
    shift
    if chroot "$root" "$@" > "$work/output" 2>&1; then ok "$name"; else not_ok "$name"; fi
}
# wait_for NAME SECONDS TEXT: in what the guest prints.
wait_for() {
    deadline=$(($(date +%s) + $2))
    until grep -q "$3" "$work/console" 2> "$work/output"; do
        [ "$(date +%s)" -lt "$deadline" ] || { not_ok "$1"; return 0; }
        sleep 0.5
    done
    ok "$1"
}
# After a failure that the rest depends on.
give_up() {
    tail -n 30 "$work/libvirtd.log" "$root/var/log/libvirt/qemu/guest.log" "$work/console" 2> /dev/null || true
    exit 1
}
# The last number that the guest has written, as its console says.
count() {
    sed -n 's/^count \([0-9]*\).*/\1/p' "$work/console" | tail -n 1
}

check "a server on a Unix socket" nbdkit -U /run/test/unix.sock file dir=/run/test/disks
check "a server on TCP" nbdkit -i 127.0.0.1 -p 10809 file dir=/run/test/disks
check "a server of the disk to copy to" nbdkit -U /run/test/copy.sock file /run/test/copy
check "libvirtd starts" env LIBVIRT_LOG_OUTPUTS=2:file:/run/test/libvirtd.log libvirtd --daemon
check "a guest with disks on NBD is defined" virsh define /run/test/guest.xml
check "and started" virsh start guest
[ "$failures" = 0 ] || give_up
wait_for "it reads both disks" 300 "^markers: read-from-first read-from-second"
wait_for "and writes" 60 "^count 3"
[ "$failures" = 0 ] || give_up
check "libvirt knows the size of a disk" sh -c "virsh domblkinfo guest vda | grep -E '^Capacity: +33554432$'"
check "and who serves it" sh -c "virsh domblklist guest --details | grep vda"
check "a disk is copied to another server, which takes over" \
    virsh blockcopy guest vda --xml /run/test/copy.xml --transient-job --wait --pivot
copied=$(count)
[ "$failures" = 0 ] || give_up
wait_for "the guest goes on" 60 "^count $((copied + 3))\$\|^count $((copied + 3))[^0-9]"
check "it is ended" virsh destroy guest
check "the copy is whole, its journal replayed" sh -c "e2fsck -p /run/test/copy; e2fsck -f -n /run/test/copy"
check "and has what was written after it was made" \
    sh -c "[ \"\$(debugfs -R 'cat /count' /run/test/copy 2> /dev/null | tail -n 1)\" -gt '$copied' ]"
check "which the first disk has not" \
    sh -c "e2fsck -y /run/test/disks/first; [ \"\$(debugfs -R 'cat /count' /run/test/disks/first 2> /dev/null | tail -n 1)\" -le '$((copied + 1))' ]"
check "undefined" virsh undefine guest
[ "$failures" = 0 ] || give_up
