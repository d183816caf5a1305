# guestfish makes a file system on a disk of ours, writes, reads and trims it; by a Unix socket, by
# TCP, and captive.
# shellcheck shell=sh

truncate -s 256M disk.img
head -c 5M /dev/urandom > data
sum=$(sha256sum < data | cut -d ' ' -f 1)
# libguestfs of Debian 12 does not know nbd+unix, and has no TLS.
unix="nbd://?socket=$PWD/disk.sock"

serve disk -U disk.sock file disk.img
check "guestfish partitions a disk and writes a file, by a Unix socket" guestfish --format=raw -a "$unix" <<end
run
part-disk /dev/sda gpt
mkfs ext4 /dev/sda1
mount /dev/sda1 /
upload data /data
fill 1 40M /big
sync
umount-all
end
used=$(du -k disk.img | cut -f 1)
check "and removes one and trims" guestfish <<end
add-drive "" format:raw protocol:nbd server:unix:$PWD/disk.sock discard:enable
run
mount /dev/sda1 /
rm /big
sync
fstrim /
umount-all
end
# Not by all of it: the kernel of the machine writes metadata, too.
check "the image has shrunk by what was trimmed" [ "$(du -k disk.img | cut -f 1)" -lt $((used - 30000)) ]
stop disk

serve disk -r -i 127.0.0.1 -p 10900 file disk.img
tcp=nbd://127.0.0.1:10900
expect "another guestfish reads it, read-only and by TCP" \
    "$(guestfish --ro --format=raw -a $tcp run : mount-ro /dev/sda1 / : checksum sha256 /data 2>&1)" "$sum"
before=$(sha256sum < disk.img)
# qemu has an overlay of its own above what is opened with --ro; with --rw it wants to write.
check "and cannot write" sh -c "! guestfish --rw --format=raw -a $tcp run : mount /dev/sda1 / : touch /file"
stop disk
expect "nothing was written" "$(sha256sum < disk.img)" "$before"

check "the file system is whole" sh -c "
    $ours -U - -r --filter=partition file disk.img partition=1 --run 'nbdcopy \"\$uri\" partition.img'
    e2fsck -fn partition.img
    debugfs -R 'dump /data read' partition.img
    cmp data read"
rm -f partition.img read

expect "guestfish is run captive" "$("$ours" -U - --filter=cow file disk.img \
    --run "guestfish --format=raw -a nbd://?socket=\$unixsocket run : mount /dev/sda1 / : rm /data : ls / : umount-all" 2>&1)" "lost+found"
expect "above cow it writes, and nothing is changed" "$(sha256sum < disk.img)" "$before"
check "with Debian's nbdkit, too" "$debians" -U - file disk.img \
    --run "guestfish --ro --format=raw -a nbd://?socket=\$unixsocket run : mount-ro /dev/sda1 / : checksum sha256 /data | grep -x $sum"
