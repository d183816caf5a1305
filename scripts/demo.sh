#!/bin/sh
# Serves a small ext4 image and has real clients look at it and read a file back.
# usage: demo.sh NBDKIT
set -eu

nbdkit=$1
dir=$(mktemp -d)
pid=
cleanup() {
    [ -z "$pid" ] || kill "$pid" 2>/dev/null || true
    rm -rf "$dir"
}
trap cleanup EXIT
# Also when the output is piped into something that has seen enough.
trap 'exit 1' HUP INT PIPE TERM
PATH=$PATH:/usr/sbin:/sbin
export PATH

mkdir "$dir/files"
echo "Hello from a disk image, over NBD." > "$dir/files/hello.txt"
truncate -s 16M "$dir/disk.img"
mke2fs -q -t ext4 -d "$dir/files" "$dir/disk.img"

socket=$dir/socket
set -- "$nbdkit" -r -U "$socket" -P "$dir/pid" file "$dir/disk.img"
echo "\$ $*"
"$@"
pid=$(cat "$dir/pid")
uri="nbd+unix:///?socket=$socket"

echo
echo "\$ ps -o pid,ppid,user,comm    # two clients are connected: each has a worker of its own"
nbdcopy "$uri" - | sleep 1 &
nbdcopy "$uri" - | sleep 1 &
sleep 0.3
children=$(pgrep -d , -P "$pid")
ps -o pid,ppid,user,comm -p "$pid,$children,$(pgrep -d , -P "$children")"
wait
echo
echo "\$ nbdinfo '$uri'"
nbdinfo "$uri"
echo
echo "\$ nbdcopy '$uri' copy.img; debugfs -R 'cat /hello.txt' copy.img"
nbdcopy "$uri" "$dir/copy.img"
text=$(debugfs -R 'cat /hello.txt' "$dir/copy.img" 2>/dev/null)
echo "$text"
[ "$text" = "$(cat "$dir/files/hello.txt")" ]
