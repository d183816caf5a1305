# The machine swaps on a disk that it serves itself: --swap, and a program that dirties twice the
# memory that it may use.
# vm: memory=512 disk=1024 limit=900 quick=yes

. /vm/swap.sh
# The short form: half of what swap-long does in a round.
memory=16
dirty=$((memory * 2))
rounds=2
swap_server --swap
check "the worker is locked into memory" [ "$(status_of "$worker" VmLck)" -gt 10000 ]
before=$(faults "$worker")
swapped=$(swapped_out)
check "a program dirties $dirty MiB, twice what it may use, $rounds times" press "$rounds"
expect "page faults of the worker's threads, minor and major" "$(faults "$worker")" "$before"
swapped=$(($(swapped_out) - swapped))
note "before: $before; swapped out: $swapped pages"
check "the kernel has swapped" [ "$swapped" -gt $(((dirty - memory) * 256)) ]
expect "the worker is the same" "$(pgrep -x nbdkit:worker)" "$worker"
expect "nothing of it is in swap" "$(status_of "$worker" VmSwap)" 0
expect "nobody was killed for memory" "$(dmesg | grep -c 'Out of memory\|oom-kill')" 0
expect "no request failed" "$(dmesg | grep -cE 'I/O error|(Read|Write)-error on swap')" 0
check "swap is switched off" swapoff /dev/nbd0
check "disconnect" nbd-client -d /dev/nbd0
kill "$(cat "$state/pid")"
