# What the scenarios of swap share, sourced by them.
# shellcheck shell=sh disable=SC2034,SC2154 # used by whoever sources this

# What the program under pressure may use, MiB, and what it dirties: twice that.
memory=32
dirty=$((memory * 2))

# Serves the machine's third disk with these options of nbdkit, and swaps on it. Sets worker. A file
# on a file system that others write to does not do: a write to it may wait for the journal, which
# may wait for somebody who waits for memory.
swap_server() {
    # Compaction moves locked pages, too; whoever uses one meanwhile has a minor fault, for which
    # nothing is allocated.
    sysctl -q -w vm.compact_unevictable_allowed=0
    check "the server starts" nbdkit "$@" -t 4 -P "$state/pid" -U "$state/sock" file /dev/vdc
    modprobe nbd
    check "the client connects" nbd-client -unix "$state/sock" -swap /dev/nbd0
    check "the swap area is made and used" sh -c 'mkswap /dev/nbd0 && swapon /dev/nbd0'
    worker=$(pgrep -x nbdkit:worker)
    check "the worker is at rest" wait_for 120 at_rest
}

# Whether a second passes without a page fault of the worker.
at_rest() {
    earlier=$(faults "$worker")
    sleep 1
    [ "$(faults "$worker")" = "$earlier" ]
}

# press ROUNDS: in a control group of its own, so that what is short is this program's memory and
# not the machine's, which swap-machine.sh does.
press() {
    systemd-run -q --wait --pipe -p MemoryMax="${memory}M" perl /vm/pressure.pl "$dirty" "$1"
}

# Of all threads of a process, minor and major: proc_pid_stat(5). The name in parentheses has no
# space here.
faults() {
    awk '{ minor += $10; major += $12 } END { print minor, major }' "/proc/$1"/task/*/stat
}

# Pages of 4 KiB.
swapped_out() {
    awk '$1 == "pswpout" { print $2 }' /proc/vmstat
}
