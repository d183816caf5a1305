#!/bin/sh
# Runs scenarios in the system that build.sh has made, and collects what they report. See README.md
# in this directory.
# usage: run.sh MACHINE PAYLOAD [SCENARIO...]
# PAYLOAD is a directory as "make install-files DESTDIR=" fills it.
set -eu

usage="usage: $0 MACHINE PAYLOAD [SCENARIO...]"
machine=$(realpath "${1:?"$usage"}")
payload=$(realpath "${2:?"$usage"}")
shift 2
here=$(realpath "$(dirname "$0")")
root=$machine/root

all=$(cd "$here/scenarios" && for file in *.sh; do echo "${file%.sh}"; done)
chosen=${*:-$all}
for name in $chosen; do
    [ -e "$here/scenarios/$name.sh" ] || { echo "$0: no such scenario: $name" >&2; exit 2; }
done

if [ -z "${GUESTFS_INSIDE:-}" ]; then
    # Mounts, processes and the network are gone with the last of the scenarios.
    work=$(mktemp -d "$machine/work.XXXXXX")
    inside=
    # shellcheck disable=SC2317,SC2329 # by the trap
    clean_up() {
        # The first process of a namespace takes no other signal; it takes all others along.
        [ -z "$inside" ] || pkill -KILL -P "$inside" || true
        [ -z "$inside" ] || wait "$inside" || true
        rm -rf "$work"
    }
    trap clean_up EXIT
    trap 'exit 130' INT TERM
    # shellcheck disable=SC2086 # a list of words
    GUESTFS_INSIDE=$work unshare --mount --propagation private --pid --net --fork --kill-child \
        "$0" "$machine" "$payload" $chosen &
    inside=$!
    status=0
    wait "$inside" || status=$?
    inside=
    exit $status
fi

work=$GUESTFS_INSIDE
ip link set lo up
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/run"
mount -t tmpfs tmpfs "$root/tmp"
mount --bind "$work" "$root/var/tmp"
mount --bind "$payload/usr/local" "$root/usr/local"
mount --bind "$here" "$root/mnt"
mkdir "$root/run/lock" "$root/tmp/bin"
# Who runs nbdkit asks for it by this name: a script writes down how, and runs the server of the
# scenario's choice. Another gives each tool its limit.
cp "$here/nbdkit" "$here/limited" "$root/tmp/bin/"
for tool in guestfish virt-cat virt-customize virt-inspector virt-sysprep virt-v2v virt-v2v-in-place; do
    [ -e "$root/usr/bin/$tool" ] || { echo "$0: there is no $tool" >&2; exit 1; }
    ln -s limited "$root/tmp/bin/$tool"
done
# Plugins of Debian's, for our server.
ln -sf /usr/lib/x86_64-linux-gnu/nbdkit/plugins/nbdkit-python-plugin.so "$root/usr/local/lib/nbdkit/plugins/"

status=0
for name in $chosen; do
    began=$(date +%s)
    echo "=== $name"
    mkdir "$work/$name"
    # Each tool has a limit of its own: see limited. An hour is for what hangs beside them.
    timeout 3600 chroot "$root" env -i PATH=/tmp/bin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp LC_ALL=C.UTF-8 \
        LIBGUESTFS_BACKEND=direct LIBGUESTFS_BACKEND_SETTINGS=force_tcg LIBGUESTFS_CACHEDIR=/srv/cache LIBGUESTFS_MEMSIZE=1024 \
        GUESTFS_LIMIT="${GUESTFS_LIMIT:-1500}" NBDKIT_LOG="/var/tmp/$name/command-lines" scenario="$name" \
        sh /mnt/scenario.sh < /dev/null || { status=1; echo "failed: $name"; }
    [ -z "${GUESTFS_KEEP:-}" ] || cp -r "$work/$name" "$GUESTFS_KEEP/"
    rm -rf "${work:?}/$name"
    echo "# $name: $(($(date +%s) - began)) s"
done
exit $status
