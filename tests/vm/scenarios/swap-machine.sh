# The whole machine runs out of memory while it swaps on a disk that it serves itself. It may hang:
# a write to a disk takes pages in the page cache, which the kernel gets by swapping out, for which
# it needs such a write. Reported.
# vm: memory=384 disk=1024 limit=600 hang=allowed

. /vm/swap.sh
dirty=$(awk '$1 == "MemTotal:" { print int($2 / 512) }' /proc/meminfo)
swap_server --swap
before=$(faults "$worker")
check "pressure on the whole machine" true
timeout 400 perl /vm/pressure.pl "$dirty" 2 > "$output" 2>&1
note "a program that dirties $dirty MiB: status $?, $(tail -n 1 "$output")"
note "page faults of the worker's threads, minor and major: $before, then $(faults "$worker")"
