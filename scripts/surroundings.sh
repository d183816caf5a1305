#!/bin/sh
# Runs the suites of attackers and hostile clients in the surroundings that hardened systems and containers make: whatever
# is taken away, no layer of ours may depend on it. Some ten minutes; root.
# usage: surroundings.sh TARGET_DIRECTORY [SURROUNDINGS...]
set -eu

target=$(realpath "$1")
shift
[ "$(id -u)" = 0 ] || { echo "$0: takes root" >&2; exit 1; }
all="root user subset hidepid2 hidepid4 no-new-privileges container no-landlock landlock-2 landlock-4"
[ $# -gt 0 ] || set -- $all

cargo=${CARGO:-cargo}
suites=${SUITES:-red_team hostile}
executables=
for suite in $suites; do
    found=$($cargo test --locked --no-run -p nbdkit-tests --test "$suite" 2>&1 |
        sed -n 's/^ *Executable .*(\(.*\))$/\1/p')
    [ -x "$found" ] || { echo "$0: no test program for $suite" >&2; exit 1; }
    executables="$executables $found"
done
$cargo build --locked -p nbdkit-tests --example container

cd "$(dirname "$0")/../tests"
user="setpriv --reuid=daemon --regid=daemon --clear-groups env HOME=/tmp"
# The capabilities that containers have.
capabilities=-all,+chown,+dac_override,+fowner,+fsetid,+kill,+setgid,+setuid,+setpcap,+net_bind_service,+sys_chroot,+setfcap

with_proc() {
    options=$1
    shift
    # shellcheck disable=SC2016 # for the inner shell
    unshare -m sh -c 'mount -t proc -o '"$options"' proc /proc && exec "$@"' sh "$@"
}

run() {
    surroundings=$1
    shift
    [ "$surroundings" = root ] || export NBDKIT_TEST_SURROUNDINGS="$surroundings"
    case $surroundings in
    root) "$@" ;;
    user) $user "$@" ;;
    subset) with_proc subset=pid "$@" ;;
    hidepid2) with_proc hidepid=2 "$@" ;;
    hidepid4) with_proc hidepid=4 "$@" ;;
    no-new-privileges) setpriv --no-new-privs "$@" ;;
    container) setpriv --inh-caps=$capabilities --bounding-set=$capabilities "$target/debug/examples/container" "$@" ;;
    no-landlock) NBDKIT_TEST_LANDLOCK=0 "$@" ;;
    landlock-*) NBDKIT_TEST_LANDLOCK=${surroundings#landlock-} "$@" ;;
    *) echo "$0: no such surroundings: $surroundings" >&2; exit 2 ;;
    esac
}

failed=
for surroundings in "$@"; do
    for executable in $executables; do
        echo "=== $surroundings: $(basename "$executable")"
        (run "$surroundings" "$executable" --quiet) || failed="$failed $surroundings:$(basename "$executable")"
    done
done
[ -z "$failed" ] || { echo "failed:$failed" >&2; exit 1; }
