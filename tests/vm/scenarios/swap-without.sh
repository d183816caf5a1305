# The counter-example of swap: a server that was started without --swap. What comes of it is
# reported and does not fail.
# vm: memory=512 disk=1024 limit=600 hang=allowed

. /vm/swap.sh
swap_server
before=$(faults "$worker")
check "pressure on a server without --swap" true
timeout 300 systemd-run -q --wait --pipe -p MemoryMax="${memory}M" perl /vm/pressure.pl "$dirty" 2 > "$output" 2>&1
note "the program: status $?, $(tail -n 1 "$output")"
note "page faults of the worker's threads, minor and major: $before, then $(faults "$worker")"
note "of the worker in swap: $(status_of "$worker" VmSwap) KiB"
