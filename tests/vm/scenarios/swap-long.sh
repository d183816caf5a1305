# As swap, twenty rounds.
# vm: memory=512 disk=1024 limit=3600

. /vm/swap.sh
swap_server --swap
before=$(faults "$worker")
for round in $(seq 20); do
    check "round $round" press 2
done
expect "page faults of the worker's threads, minor and major" "$(faults "$worker")" "$before"
expect "the worker is the same" "$(pgrep -x nbdkit:worker)" "$worker"
expect "no request failed" "$(dmesg | grep -cE 'I/O error|(Read|Write)-error on swap')" 0
check "swap is switched off" swapoff /dev/nbd0
