# What scenarios are written with: sourced by guest.sh in the guest, after descriptor 3 was opened
# for reports. Each line of a report is `ok NAME`, `not ok NAME: WHY`, or `# ...`, which counts for
# nothing.
# shellcheck shell=sh

# shellcheck disable=SC2154 # set by guest.sh
output=$base/output

failures=0

note() {
    printf '# %s\n' "$*" >&3
}

# check NAME COMMAND...: runs it with set -e, and reports. Its last lines are the reason for a
# failure.
check() {
    name=$1
    shift
    began=$(date +%s)
    # In a condition, the shell would ignore set -e.
    (set -e; "$@") > "$output" 2>&1 3>&-
    status=$?
    if [ "$status" = 0 ]; then
        printf 'ok %s\n' "$name" >&3
    else
        failures=$((failures + 1))
        printf 'not ok %s: %s\n' "$name" "status $status: $(tail -n 5 "$output" | tr '\n' '|')" >&3
    fi
    # So that whoever looks for what is slow finds it.
    [ $(($(date +%s) - began)) -lt 4 ] || note "$name: $(($(date +%s) - began)) s"
    return 0
}

# expect NAME ACTUAL WANTED
expect() {
    if [ "$2" = "$3" ]; then
        printf 'ok %s\n' "$1" >&3
    else
        failures=$((failures + 1))
        printf 'not ok %s: %s, not %s\n' "$1" "$(printf '%s' "$2" | tr '\n' '|')" "$3" >&3
    fi
}

# wait_for SECONDS COMMAND...: until it succeeds; fails after so many seconds, which are for a
# machine that hangs.
wait_for() {
    deadline=$(($(date +%s) + $1))
    shift
    until "$@" > /dev/null 2>&1; do
        if [ "$(date +%s)" -gt "$deadline" ]; then
            echo "never came true: $*" >&2
            return 1
        fi
        sleep 0.2
    done
}

# A field of /proc/PID/status.
status_of() {
    awk -v field="$2:" '$1 == field { print $2 }' "/proc/$1/status"
}

# The processes of a kind, by the name they give themselves: nbdkit:worker, nbdkit:template,
# nbdkit:broker.
processes() {
    pgrep -x "$1" | tr '\n' ' '
}

reboot_now() {
    sync
    note "reboots"
    systemctl reboot
    # Until systemd ends this.
    sleep 600
}

# Where the socket of a unit's server is.
uri() {
    echo "nbd+unix:///?socket=/run/nbdkit/$1.sock"
}

# Starts nbdkit@disk.socket, writes and reads the disk, and leaves the kernel's client connected.
use_disk() {
    head -c 16M /dev/urandom > "$state/data"
    check "a socket is started" systemctl start nbdkit@disk.socket
    expect "the first client starts the service" "$(nbdinfo --size "$(uri disk)")" 16777216
    check "a disk is written" nbdcopy "$state/data" "$(uri disk)"
    check "and read" sh -c "nbdcopy '$(uri disk)' - | cmp - '$state/data'"
    modprobe nbd
    check "the kernel's client connects" nbd-client -unix /run/nbdkit/disk.sock /dev/nbd0
}
