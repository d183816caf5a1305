# What run.sh runs in the system: one scenario, in a directory of its own. $scenario names it.
# shellcheck shell=sh
set -u
cd "/var/tmp/$scenario" || exit 1
exec 3>&1
output=output
failures=0
ours=/usr/local/bin/nbdkit
debians=/usr/sbin/nbdkit
[ -e "$debians" ] || debians=/usr/bin/nbdkit

note() {
    printf '# %s\n' "$*" >&3
}

# check NAME COMMAND...: runs it with set -e, and reports. Its last lines are the reason for a
# failure.
check() {
    name=$1
    shift
    began=$(date +%s)
    # In a condition, the shell would ignore set -e.
    (set -e; "$@") > "$output" 2>&1 3>&-
    status=$?
    if [ "$status" = 0 ]; then
        printf 'ok %s\n' "$name" >&3
    else
        failures=$((failures + 1))
        printf 'not ok %s: %s\n' "$name" "status $status: $(tail -n 12 "$output" | tr '\n' '|')" >&3
    fi
    # So that whoever looks for what is slow finds it.
    [ $(($(date +%s) - began)) -lt 60 ] || note "$name: $(($(date +%s) - began)) s"
    return 0
}

# expect NAME ACTUAL WANTED
expect() {
    if [ "$2" = "$3" ]; then
        printf 'ok %s\n' "$1" >&3
    else
        failures=$((failures + 1))
        printf 'not ok %s: %s, not %s\n' "$1" "$(printf '%s' "$2" | tr '\n' '|')" "$3" >&3
    fi
}

# serve NAME ARGUMENTS...: a server of ours that goes on until `stop NAME`.
serve() {
    instance=$1
    shift
    "$ours" --pidfile "$PWD/$instance.pid" "$@"
}

stop() {
    pid=$(cat "$1.pid")
    kill "$pid"
    while [ -e "/proc/$pid" ]; do sleep 0.1; done
}

# Whoever runs nbdkit in a command gets this one.
with() {
    export NBDKIT_SERVER="$1"
    shift
    "$@"
}

# shellcheck disable=SC1090 # one of several
. "/mnt/scenarios/$scenario.sh"
if [ "$failures" != 0 ] && [ -e "$NBDKIT_LOG" ]; then
    note "how nbdkit was run:"
    sed 's/^/#   /' "$NBDKIT_LOG" >&3
fi
[ "$failures" = 0 ]
