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
trap cleanup EXIT INT TERM
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
echo "\$ ps                   # listener, template; every client gets a worker of its own"
ps -o pid,ppid,user,args --pid "$pid" --ppid "$pid"
echo
echo "\$ nbdinfo '$uri'"
nbdinfo "$uri"
echo
echo "\$ nbdcopy '$uri' copy.img; debugfs -R 'cat /hello.txt' copy.img"
nbdcopy "$uri" "$dir/copy.img"
text=$(debugfs -R 'cat /hello.txt' "$dir/copy.img" 2>/dev/null)
echo "$text"
[ "$text" = "$(cat "$dir/files/hello.txt")" ]
