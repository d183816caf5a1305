# The kernel's client: file systems, verified writes, several connections, swap, and what it does
# when a worker is killed or given up.
# vm: memory=1024 limit=900 quick=yes

modprobe nbd
mkdir -p /mnt/nbd
truncate -s 128M /var/tmp/disk
socket=$state/sock
# No client gives up its worker: they are counted and killed.
check "a server starts" nbdkit --park-idle=0 -P "$state/pid" -U "$socket" file /var/tmp/disk
listener=$(cat "$state/pid")

# fio's own pattern with checksums, read back after the cache of the device was dropped.
verify() {
    fio --name=verify --filename="$1" --rw=randwrite --bs=4k-64k --size=24m --iodepth=8 --ioengine=libaio --direct=1 \
        --verify=crc32c --do_verify=1 --verify_fatal=1
}

file_system() {
    mkfs.ext4 -q -F "$1"
    mount "$1" /mnt/nbd
    cp -r /usr/lib/systemd /mnt/nbd/copy
    umount /mnt/nbd
    blockdev --flushbufs "$1"
    fsck.ext4 -f -n "$1"
    mount "$1" /mnt/nbd
    diff -r --no-dereference /usr/lib/systemd /mnt/nbd/copy
    # In use and not used any more: discarded, as the server offers trim.
    rm -r /mnt/nbd/copy
    fstrim -v /mnt/nbd
    umount /mnt/nbd
    fsck.ext4 -f -n "$1"
}

connections() {
    pgrep -c -x nbdkit:worker
}

check "one connection" nbd-client -unix "$socket" /dev/nbd0
expect "the disk has its size" "$(blockdev --getsize64 /dev/nbd0)" 134217728
check "a file system" file_system /dev/nbd0
check "verified writes" verify /dev/nbd0
check "disconnect" nbd-client -d /dev/nbd0
check "the worker ends with its client" wait_for 120 sh -c '! pgrep -x nbdkit:worker'

check "four connections" nbd-client -unix "$socket" -C 4 /dev/nbd0
expect "four workers" "$(connections)" 4
check "verified writes on four connections" verify /dev/nbd0
check "a file system on four connections" file_system /dev/nbd0
# One of four: requests of the dead connection are sent on another.
kill -9 "$(pgrep -n -x nbdkit:worker)"
check "with one of four workers killed" verify /dev/nbd0
check "disconnect of what is left" nbd-client -d /dev/nbd0

check "swap" nbd-client -unix "$socket" -swap /dev/nbd0
check "swap area" sh -c 'mkswap /dev/nbd0 && swapon /dev/nbd0 && grep nbd0 /proc/swaps && swapoff /dev/nbd0'
check "disconnect of the swap disk" nbd-client -d /dev/nbd0

# A client that connects again when the connection is dead. No request fails: those in flight are
# sent again.
dmesg -C
check "a persistent client" perl /vm/nbd-connect.pl 1 "$socket"
expect "its disk has its size" "$(blockdev --getsize64 /dev/nbd1)" 134217728
fio --name=verify --filename=/dev/nbd1 --rw=randwrite --bs=16k --size=24m --iodepth=4 --ioengine=libaio --direct=1 \
    --verify=crc32c --do_verify=1 --verify_fatal=1 --rate_iops=200 > "$state/fio" 2>&1 &
fio=$!
for round in 1 2 3; do
    written=$(awk '{ print $5 }' /sys/block/nbd1/stat)
    check "the load runs, $round" wait_for 120 sh -c "[ \$(awk '{ print \$5 }' /sys/block/nbd1/stat) -gt $((written + 50)) ]"
    killed=$(pgrep -x nbdkit:worker)
    kill -9 "$killed"
    check "another worker serves after one was killed, $round" \
        wait_for 120 sh -c "pgrep -x nbdkit:worker | grep -vx '$killed'"
done
wait "$fio"
expect "verified writes while three workers were killed" "$?" 0
expect "no request failed" "$(dmesg | grep -c 'I/O error')" 0
check "disconnect of this client" nbd-client -d /dev/nbd1
expect "the listener was the same all the time" "$(status_of "$listener" Pid)" "$listener"
kill "$listener"
check "the server ends" wait_for 120 sh -c "! kill -0 $listener"

# An idle client gives up its worker, and its file system does not notice.
rm -f "$state/pid" "$socket"
check "a server whose clients are soon idle" nbdkit --park-idle=1 -P "$state/pid" -U "$socket" file /var/tmp/disk
check "connected" nbd-client -unix "$socket" /dev/nbd0
mkfs.ext4 -q -F /dev/nbd0
mount /dev/nbd0 /mnt/nbd
for round in 1 2 3; do
    check "written, $round" sh -c "head -c 1M /dev/urandom > /mnt/nbd/$round && sync -f /mnt/nbd/$round && sha256sum /mnt/nbd/$round >> '$state/sums'"
    check "it has no worker, $round" wait_for 120 sh -c '! pgrep -x nbdkit:worker'
    echo 3 > /proc/sys/vm/drop_caches
    check "read again, $round" sha256sum -c "$state/sums"
done
umount /mnt/nbd
check "the file system is whole" fsck.ext4 -f -n /dev/nbd0
check "disconnect of the idle client" nbd-client -d /dev/nbd0
kill "$(cat "$state/pid")"
