# The whole machine runs out of memory while it swaps on a disk that it serves itself: a program
# dirties more than there is, and no group leaves the others some. What is written passes the page
# cache by; with cache=default a write takes a page there, which the kernel gets by swapping out,
# for which it needs such a write: the machine hangs.
# vm: memory=384 disk=1024 limit=1200

. /vm/swap.sh
memory=$(awk '$1 == "MemTotal:" { print int($2 / 1024) }' /proc/meminfo)
dirty=$((memory * 5 / 4))
swap_server --swap
before=$(faults "$worker")
swapped=$(swapped_out)
check "a program dirties $dirty MiB in a machine that has $memory" timeout 900 perl /vm/pressure.pl "$dirty" 2
expect "page faults of the worker's threads, minor and major" "$(faults "$worker")" "$before"
check "the kernel has swapped" [ $(($(swapped_out) - swapped)) -gt $(((dirty - memory) * 256)) ]
expect "the worker is the same" "$(pgrep -x nbdkit:worker)" "$worker"
expect "nobody was killed for memory" "$(dmesg | grep -c 'Out of memory\|oom-kill')" 0
expect "no request failed" "$(dmesg | grep -cE 'I/O error|(Read|Write)-error on swap')" 0
check "swap is switched off" swapoff /dev/nbd0
check "disconnect" nbd-client -d /dev/nbd0
kill "$(cat "$state/pid")"
