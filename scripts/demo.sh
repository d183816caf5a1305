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
echo "\$ ps -o pid,ppid,user,args    # two clients are connected: each has a worker of its own"
# Both copy into a pipe that nobody reads, and so stay until it is closed.
mkfifo "$dir/hold"
exec 3<>"$dir/hold"
nbdcopy "$uri" - >"$dir/hold" 2>/dev/null 3<&- &
nbdcopy "$uri" - >"$dir/hold" 2>/dev/null 3<&- &
children() {
    for parent; do
        cat "/proc/$parent/task/$parent/children" 2>/dev/null || true
    done
}
# The workers that serve an export, by their titles.
serving() {
    # shellcheck disable=SC2046 # several numbers
    set -- $(children $(children "$pid"))
    [ $# = 0 ] || ps -o args= -p "$(IFS=,; echo "$*")" | grep -c export= || true
}
tries=600
until [ "$(serving)" -ge 2 ] 2>/dev/null; do
    tries=$((tries - 1))
    [ $tries -gt 0 ] || { echo "$0: no clients after a minute" >&2; exit 1; }
    sleep 0.1
done
# shellcheck disable=SC2046
set -- "$pid" $(children "$pid") $(children $(children "$pid"))
ps -o pid,ppid,user,args -p "$(IFS=,; echo "$*")"
exec 3<&-
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
