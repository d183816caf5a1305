#!/bin/sh
# Boots a machine for each scenario, and collects what it reports. See README.md in this directory.
# usage: run.sh MACHINE PAYLOAD [quick | SCENARIO...]
# MACHINE is what build.sh has made. PAYLOAD is a directory as "make install-files DESTDIR=" fills
# it.
set -eu

machine=$(realpath "${1:?"usage: $0 MACHINE PAYLOAD [quick | SCENARIO...]"}")
payload=$(realpath "$2")
shift 2
here=$(realpath "$(dirname "$0")")

# A scenario's own wishes: "# vm: key=value ..." in its first lines.
wish() {
    sed -n 's/^# vm: *//p' "$here/scenarios/$1.sh" 2> /dev/null | tr ' ' '\n' | sed -n "s/^$2=//p"
}

all="$(cd "$here/scenarios" && for file in *.sh; do echo "${file%.sh}"; done)
libvirt"
quick=$(for name in $all; do [ "$(wish "$name" quick)" != yes ] || echo "$name"; done)
case "${*:-all}" in
all) chosen=$all ;;
quick) chosen=$quick ;;
*) chosen=$* ;;
esac
for name in $chosen; do
    [ -e "$here/scenarios/$name.sh" ] || [ "$name" = libvirt ] || { echo "$0: no such scenario: $name" >&2; exit 2; }
done

work=$(mktemp -d "${TMPDIR:-/tmp}/vm-test.XXXXXX")
qemu_pid=
host_pid=
host_stop() { :; }
stop_host() {
    [ -z "$host_pid" ] || kill "$host_pid" 2> /dev/null || true
    host_pid=
    host_stop
    host_stop() { :; }
}
# shellcheck disable=SC2317,SC2329 # by the trap
clean_up() {
    trap '' INT TERM
    [ -z "$qemu_pid" ] || kill "$qemu_pid" 2> /dev/null || true
    stop_host
    rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

# shellcheck source=tests/vm/qemu.sh
. "$here/qemu.sh"
choose_accelerator

# The second disk of every guest: programs, units, scenarios.
mkdir "$work/tree" "$work/tree/payload"
cp -a "$payload/." "$work/tree/payload/"
# Lines of the debugger are nine tenths of a program, and none of what is tried.
find "$work/tree/payload" -type f -perm -u+x -exec strip --strip-debug {} + 2> /dev/null || true
cp "$here"/*.sh "$here"/*.pl "$work/tree/"
cp -r "$here/scenarios" "$work/tree/"
cp -r "$here/../../selinux" "$work/tree/"
case " $(echo $chosen) " in
*" selinux "*)
    make -s -C "$work/tree/selinux" > "$work/selinux.log" 2>&1 || { cat "$work/selinux.log" >&2; exit 1; }
    ;;
esac
packages=$(for name in $chosen; do wish "$name" packages; done | sort -n | tail -n 1)
if [ -n "$packages" ]; then
    "$here/packages.sh" "$machine/../packages" "$packages"
    mkdir "$work/tree/packages"
    for version in $(seq "$packages"); do
        cp -r "$machine/../packages/$version" "$work/tree/packages/"
    done
fi
truncate -s "$(($(du -sm "$work/tree" | cut -f1) * 5 / 4 + 16))M" "$work/payload.img"
mke2fs -q -t ext4 -L payload -d "$work/tree" "$work/payload.img"

# The most that any of some scenarios wishes, or their sum.
most() {
    for name in $1; do wish "$name" "$2"; done | sort -n | tail -n 1
}
sum() {
    for name in $1; do wish "$name" "$2"; done | awk '{ total += $1 } END { print total }'
}

# emulate SCENARIOS: until the machine is switched off or reboots. One that reports nothing for
# two minutes is started again, twice at most: an emulated kernel that comes up while the host is busy
# may hang as it looks for the speed of its clocks.
emulate() {
    heard=$(wc -c < "$report")
    for attempt in 1 2 3; do
        # shellcheck disable=SC2086 # lists of words
        run_qemu "$limit" -no-reboot -m "$(most "$1" memory)" $extra -initrd "$machine/initramfs.gz" \
            -append "console=ttyS0 panic=-1 loglevel=5 $kernel_words systemd.show_status=error \
                vm.scenarios=$(echo $1 | tr ' ' ,) $append $(wish "$name" kernel | tr , ' ')" \
            -chardev "file,id=console,path=$console,append=on" -serial chardev:console \
            -chardev "file,id=report,path=$report,append=on" -serial chardev:report < /dev/null > "$work/$name.qemu" 2>&1 &
        qemu_pid=$!
        seconds=0
        while [ "$seconds" -lt 120 ] && [ "$(wc -c < "$report")" = "$heard" ] && kill -0 "$qemu_pid" 2> /dev/null; do
            sleep 1
            seconds=$((seconds + 1))
        done
        if [ "$seconds" = 120 ] && [ "$attempt" != 3 ]; then
            echo "# nothing was heard of the machine: started again"
            kill "$qemu_pid" 2> /dev/null || true
            wait "$qemu_pid" 2> /dev/null || true
            continue
        fi
        wait "$qemu_pid" 2> /dev/null || true
        break
    done
    qemu_pid=
}

# boot NAME SCENARIOS: boots a machine for one scenario or several, prints what they report, and fails
# if anything of it failed.
boot() {
    name=$1
    report=$work/$name.report
    console=$work/$name.console
    limit=$(sum "$2" limit)
    started=$(date +%s)
    echo "=== $2"
    : > "$report"
    : > "$console"
    extra="$root_disk $payload_disk"
    if [ -n "$(most "$2" boots)" ]; then
        cp --sparse=always "$machine/root.img" "$work/root.img"
        extra="-drive if=virtio,format=raw,file=$work/root.img $payload_disk"
    fi
    append=
    size=$(most "$2" disk)
    if [ -n "$size" ]; then
        truncate -s "${size}M" "$work/$name.img"
        extra="$extra -drive if=virtio,format=raw,file=$work/$name.img"
    fi
    if [ -e "$here/scenarios/$name.host" ]; then
        # Changes extra, arguments of qemu, and append, words of the kernel's command line. May
        # start what host_pid names, and define host_stop.
        # shellcheck disable=SC1090 # one of several
        . "$here/scenarios/$name.host"
    fi
    # Each boot has an emulator of its own: one that was reset was seen to go around in its list of
    # translated code for ever (QEMU 7.2).
    boots=0
    while [ "$boots" = 0 ] || { ! grep -q '^end' "$report" && [ "$(grep -c '^# reboots' "$report")" = "$boots" ]; }; do
        boots=$((boots + 1))
        emulate "$2"
    done
    rm -f "$work/root.img"
    stop_host
    tr -d '\r' < "$report" | grep -av '^end$' || true
    status=0
    if ! grep -q '^end' "$report" && [ "$(wish "$name" hang)" = allowed ]; then
        echo "# $name: the machine hung, as it may"
        ! grep -q '^not ok' "$report" || status=1
    elif ! grep -q '^end' "$report"; then
        status=1
        echo "not ok $name: did not end within $limit s; its console:"
        cat "$work/$name.qemu"
        tail -n 40 "$console" | tr -d '\r'
    elif grep -q '^not ok' "$report" || ! grep -q '^ok' "$report"; then
        status=1
        echo "# the end of the console:"
        tail -n 120 "$console" | tr -d '\r'
    fi
    [ -z "${VM_KEEP:-}" ] || cp "$report" "$console" "$VM_KEEP/"
    echo "# $name: $(($(date +%s) - started)) s, with its boot"
    return $status
}

# Half of a short scenario's time is the boot: those that are chosen have one machine.
failed=
together=$(for name in $chosen; do [ "$(wish "$name" quick)" != yes ] || echo "$name"; done)
if [ -n "$together" ]; then
    # shellcheck disable=SC2116,SC2086 # one line
    boot "$(echo $together | tr ' ' -)" "$(echo $together)" || failed=" $(echo $together)"
fi
for name in $chosen; do
    if [ "$name" = libvirt ]; then
        echo "=== libvirt"
        status=0
        "$here/libvirt.sh" "$machine" "$payload" "$machine/../libvirt" || status=$?
        [ "$status" = 0 ] || [ "$status" = 3 ] || failed="$failed $name"
    elif [ "$(wish "$name" quick)" != yes ]; then
        boot "$name" "$name" || failed="$failed $name"
    fi
done
left=
for name in $all; do
    case " $(echo $chosen) " in *" $name "*) ;; *) left="$left $name" ;; esac
done
[ -z "$left" ] || echo "left out:$left (make vm-test VM=\"NAME...\", or all without VM=)"
[ -z "$failed" ] || { echo "failed:$failed" >&2; exit 1; }
