# The root disk of this machine is on NBD: it was booted from our server on the host, which ends and
# is started again while the machine works. See root-disk.host.
# vm: memory=1024 limit=900

expect "the root disk is on NBD" "$(findmnt -n -o SOURCE /)" /dev/nbd0
head -c 16M /dev/urandom > "$state/data"
sync

# How often the kernel has noticed that a connection is dead.
deaths() {
    dmesg | grep -cE 'nbd0: (Receive control failed|shutting down|Send (data|control) failed)' || true
}

# The server has ended or is about to; what is written when it is back is compared after the cache
# was dropped.
restarted() {
    # Something has to use the connection, or nothing notices. These requests wait while there is no
    # server.
    count=0
    until [ "$(deaths)" -gt "$2" ]; do
        dd if=/dev/nbd0 of=/dev/null bs=4k count=1 skip="$count" iflag=direct status=none
        count=$((count + 1))
        sleep 0.1
    done
    cp "$state/data" "$state/copy.$1"
    sync
    echo 3 > /proc/sys/vm/drop_caches
    cmp "$state/data" "$state/copy.$1"
}

# The host reads these notes, and acts.
for round in 1 2 3; do
    case $round in
    1) what="its server is stopped and started" ;;
    2) what="its listener is killed and started" ;;
    3) what="its worker is killed" ;;
    esac
    before=$(deaths)
    note "restart $round"
    check "$what" restarted "$round" "$before"
done
expect "no request failed" "$(dmesg | grep -c 'I/O error')" 0
check "the file system has no error" sh -c "! dmesg | grep -i 'ext4-fs error'"
check "programs are read from it" sh -c 'echo 3 > /proc/sys/vm/drop_caches; find /usr/bin -type f -exec cat {} + | wc -c'
