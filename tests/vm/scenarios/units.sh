# Socket activation, template units and the sandbox inside of them: systemd/nbdkit@.socket and
# nbdkit@.service as installed.
# vm: memory=1024 limit=900 quick=yes boots=2

served() {
    nbdinfo --size "nbd+unix:///?socket=/run/nbdkit/$1.sock"
}

property() {
    systemctl show -P "$2" "nbdkit@$1.service"
}

# Of every process of an instance: "KIND PID", the listener's kind being its program.
members() {
    for pid in $(cat "/sys/fs/cgroup$(property "$1" ControlGroup)/cgroup.procs"); do
        echo "$(cat "/proc/$pid/comm") $pid"
    done
}

member() {
    members "$1" | awk -v kind="$2" '$1 == kind { print $2; exit }'
}

if [ "$boot" = 2 ]; then
    expect "an enabled socket listens after a reboot" "$(systemctl is-active nbdkit@disk.socket)" active
    expect "and its service waits for a client" "$(systemctl is-active nbdkit@disk.service)" inactive
    expect "and serves what was written before" \
        "$(nbdcopy "nbd+unix:///?socket=/run/nbdkit/disk.sock" - | head -c 9)" "persisted"
    check "the journal of the first boot has no violation" \
        sh -c '! journalctl -b -1 -u "nbdkit@*" | grep -iE "violation|sandbox refused"'
    return 0
fi

mkdir -p /etc/nbdkit /var/lib/nbdkit
truncate -s 64M /var/lib/nbdkit/disk.img
# The user of the unit, if it has one.
! getent passwd nbdkit || chown nbdkit: /var/lib/nbdkit/disk.img
echo 'NBDKIT_ARGS=file /var/lib/nbdkit/disk.img' > /etc/nbdkit/disk.conf
echo 'NBDKIT_ARGS=memory 32M' > /etc/nbdkit/ram.conf

check "a socket is started and its service is not" \
    sh -c 'systemctl start nbdkit@disk.socket nbdkit@ram.socket && ! systemctl is-active nbdkit@disk.service'
expect "the first client starts the service" "$(served disk)" 67108864
expect "which has told the manager so" "$(property disk ActiveState)/$(property disk Type)" active/notify
expect "another instance beside it serves another disk" "$(served ram)" 33554432
note "status: $(property disk StatusText)"
check "systemd's audit of the unit comes to 1.5 at most" systemd-analyze security --threshold=15 --no-pager nbdkit@disk.service
note "$(systemd-analyze security nbdkit@disk.service | tail -1)"

# A client that stays: the kernel's.
modprobe nbd
check "the kernel's client connects" nbd-client -unix /run/nbdkit/disk.sock /dev/nbd0
check "a worker serves it" wait_for 120 sh -c "[ -n \"\$(pgrep -x nbdkit:worker)\" ]"
# An idle client gives up its worker.
wake() {
    dd if=/dev/nbd0 of=/dev/null count=1 iflag=direct status=none
}
for kind in nbdkit nbdkit:template nbdkit:broker nbdkit:worker; do
    wake
    pid=$(member disk "$kind")
    [ -n "$pid" ] || { check "there is a $kind" false; continue; }
    expect "$kind: filters of system calls" "$(status_of "$pid" Seccomp)" 2
    expect "$kind: no new privileges" "$(status_of "$pid" NoNewPrivs)" 1
    expect "$kind: no inheritable, ambient capability" "$(status_of "$pid" CapInh)/$(status_of "$pid" CapAmb)" \
        0000000000000000/0000000000000000
    note "$kind: user $(status_of "$pid" Uid), $(status_of "$pid" Seccomp_filters) filters, CapEff $(status_of "$pid" CapEff)"
done
wake
worker=$(member disk nbdkit:worker)
expect "the worker has no capability" "$(status_of "$worker" CapEff)/$(status_of "$worker" CapBnd)" \
    0000000000000000/0000000000000000
# The unit has filters and namespaces of its own, which the listener has as well. What the worker has
# beyond these is the server's sandbox.
listener=$(member disk nbdkit)
expect "filters of the worker that are not the listener's" \
    $(($(status_of "$worker" Seccomp_filters) - $(status_of "$listener" Seccomp_filters))) 3
for namespace in net ipc uts; do
    check "the worker has a $namespace namespace of its own" \
        [ "$(readlink "/proc/$worker/ns/$namespace")" != "$(readlink "/proc/$listener/ns/$namespace")" ]
done
expect "nothing says that a layer is missing" "$(journalctl -u nbdkit@disk.service | grep -ciE 'not supported|missing layer')" 0

# Under load: a writer that does not stop by itself.
fio --name=load --filename=/dev/nbd0 --rw=randwrite --bs=16k --iodepth=8 --ioengine=libaio --direct=1 --size=48m \
    --time_based --runtime=600 > "$state/fio" 2>&1 &
fio=$!
check "the load runs" wait_for 120 sh -c '[ "$(awk "{ print \$5 }" /sys/block/nbd0/stat)" -gt 100 ]'
expect "restart under load" "$(systemctl restart nbdkit@disk.service; property disk Result)" success
wait "$fio"
check "the load ends with its connection, by an error" [ "$?" != 0 ]
nbd-client -d /dev/nbd0
expect "a client after the restart is served" "$(served disk)" 67108864

nbd-client -unix /run/nbdkit/disk.sock /dev/nbd1
fio --name=load --filename=/dev/nbd1 --rw=randwrite --bs=16k --iodepth=8 --ioengine=libaio --direct=1 --size=48m \
    --time_based --runtime=600 > "$state/fio" 2>&1 &
check "the load runs again" wait_for 120 sh -c '[ "$(awk "{ print \$5 }" /sys/block/nbd1/stat)" -gt 100 ]'
began=$(date +%s)
systemctl stop nbdkit@disk.socket nbdkit@disk.service
expect "stop under load" "$(property disk ActiveState)/$(property disk Result)" inactive/success
note "stopped after $(($(date +%s) - began)) s"
expect "the manager had to kill nobody" "$(journalctl -u nbdkit@disk.service | grep -c SIGKILL)" 0
expect "no process of it is left" "$(ps -eo args | grep -c '[n]bdkit.*disk.img')" 0
nbd-client -d /dev/nbd1

check "it starts again" systemctl start nbdkit@disk.socket
printf persisted > "$state/data"
truncate -s 64M "$state/data"
check "and is written to" nbdcopy "$state/data" "nbd+unix:///?socket=/run/nbdkit/disk.sock"
first=$(property disk MainPID)
kill -9 "$first"
check "after its listener was killed the next client is served by another" \
    wait_for 120 sh -c 'nbdinfo --size "nbd+unix:///?socket=/run/nbdkit/disk.sock"'
check "which is a new process" [ "$(property disk MainPID)" != "$first" ]
check "the socket is enabled" systemctl enable nbdkit@disk.socket
reboot_now
