# An upgrade of the Debian package under load: clients that are connected notice nothing, others come
# and go meanwhile, and the new programs serve after a restart. nbdkit-service(1) promises this.
# vm: memory=1024 limit=900 packages=2

export DEBIAN_FRONTEND=noninteractive

# What program a process runs.
build_of() {
    sha256sum < "/proc/$1/exe" | cut -c 1-16
}

property() {
    systemctl show -P "$1" nbdkit@disk.service
}

writes() {
    awk '{ print $5 }' "/sys/block/$1/stat"
}

# load DEVICE: verified writes until $state/enough is there.
load() {
    until [ -e "$state/enough" ]; do
        fio --name=verify --filename="$1" --rw=randwrite --bs=4k-64k --size=8m --iodepth=8 --ioengine=libaio --direct=1 \
            --verify=crc32c --do_verify=1 --verify_fatal=1 --rate_iops=200 || return 1
    done
}

# Clients that come and go, each with data of its own, on another instance: the disk of load() is
# written by one client at a time.
visits() {
    count=0
    until [ -e "$state/enough" ]; do
        head -c 1M /dev/urandom > "$state/visit"
        nbdcopy "$state/visit" "$(uri visits)"
        nbdcopy "$(uri visits)" - | cmp - "$state/visit"
        count=$((count + 1))
        echo "$count" > "$state/count"
    done
}

visitors() {
    cat "$state/count" 2> /dev/null || echo 0
}

check "the first version is installed" apt-get install -q -y --no-install-recommends /vm/packages/1/*.deb
truncate -s 64M /var/lib/nbdkit/disk.img
truncate -s 1M /var/lib/nbdkit/visits.img
chown nbdkit: /var/lib/nbdkit/*.img
echo 'NBDKIT_ARGS=file /var/lib/nbdkit/disk.img' > /etc/nbdkit/disk.conf
echo 'NBDKIT_ARGS=file /var/lib/nbdkit/visits.img' > /etc/nbdkit/visits.conf
check "it serves" systemctl start nbdkit@disk.socket nbdkit@visits.socket
modprobe nbd
check "a client stays" nbd-client -unix /run/nbdkit/disk.sock /dev/nbd0
listener=$(property MainPID)
first=$(build_of "$listener")

load /dev/nbd0 > "$state/load" 2>&1 &
load=$!
(set -e; visits) > "$state/visits" 2>&1 &
visits=$!
check "the load runs" wait_for 120 sh -c '[ "$(awk "{ print \$5 }" /sys/block/nbd0/stat)" -gt 100 ]'
check "and clients come" wait_for 120 [ -e "$state/count" ]
written=$(writes nbd0)
visited=$(visitors)
check "the second version is installed over it" dpkg -i /vm/packages/2/*.deb
cp "$output" "$state/dpkg"
note "meanwhile: $(($(writes nbd0) - written)) writes, $(($(visitors) - visited)) clients came"
check "there was load meanwhile" [ "$(writes nbd0)" -gt "$written" ]
check "clients came meanwhile" [ "$(visitors)" -gt "$visited" ]
check "dpkg says who serves with the version before" grep -x nbdkit@disk.service "$state/dpkg"

expect "the server is the same process" "$(property MainPID)" "$listener"
check "the program on the disk is another" [ "$(sha256sum < /usr/bin/nbdkit | cut -c 1-16)" != "$first" ]
expect "it is the second version" "$(nbdkit --dump-config | sed -n 's/^version_extra=//p')" second
# Twice the visitors that are under way, so that one of them came after the installation.
visited=$(visitors)
check "clients come after it" wait_for 120 sh -c "[ \$(cat '$state/count') -gt $((visited + 2)) ]"
# The spawner has the program of the template open: the next template is of this version, too.
template=$(pgrep -P "$(systemctl show -P MainPID nbdkit@visits.service)" -x nbdkit:template)
worker_program=$(build_of "$template")
kill -9 "$template"
visited=$(visitors)
check "clients come after a template was killed" wait_for 120 sh -c "[ \$(cat '$state/count') -gt $((visited + 2)) ]"
replaced=$(pgrep -x nbdkit:template | grep -vx "$(pgrep -P "$listener" -x nbdkit:template)")
expect "the next template is of the first version" "$(build_of "$replaced")" "$worker_program"

touch "$state/enough"
wait "$load"
expect "verified writes all the time" "$?" 0
wait "$visits"
expect "every client had its data" "$? $(tail -n 1 "$state/visits")" "0 "
expect "no request failed" "$(dmesg | grep -c 'I/O error')" 0
check "disconnect" nbd-client -d /dev/nbd0

# A client that connects again when its connection is dead goes on with the new programs.
rm "$state/enough"
check "a persistent client" perl /vm/nbd-connect.pl 1 /run/nbdkit/disk.sock
load /dev/nbd1 > "$state/load" 2>&1 &
load=$!
check "its load runs" wait_for 120 sh -c '[ "$(awk "{ print \$5 }" /sys/block/nbd1/stat)" -gt 50 ]'
check "the server is restarted" systemctl restart nbdkit@disk.service
written=$(writes nbd1)
check "the load goes on" wait_for 120 sh -c "[ \$(awk '{ print \$5 }' /sys/block/nbd1/stat) -gt $((written + 50)) ]"
touch "$state/enough"
wait "$load"
expect "verified writes during the restart" "$?" 0
expect "no request failed during the restart" "$(dmesg | grep -c 'I/O error')" 0
expect "the new program serves" "$(build_of "$(property MainPID)")" "$(sha256sum < /usr/bin/nbdkit | cut -c 1-16)"
check "with a worker of its own build" [ "$(build_of "$(pgrep -P "$(property MainPID)" -x nbdkit:template)")" != "$worker_program" ]
check "disconnect of the persistent client" nbd-client -d /dev/nbd1
expect "nothing was refused, killed or a violation" \
    "$(journalctl -u 'nbdkit@*' -o cat | grep -iE 'violation|refused|build' | head -3)" ""
