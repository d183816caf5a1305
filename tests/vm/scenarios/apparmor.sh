# AppArmor: both profiles in force, no denial in normal work, and a worker without the server's own
# sandbox is held by them.
# vm: memory=1024 limit=900

denials() {
    dmesg | grep 'apparmor="DENIED"' | grep nbdkit || true
}

# The profile of the processes of a kind.
profile() {
    for pid in $(pgrep -x "$1"); do
        tr -d '\0' < "/proc/$pid/attr/current"
    done | sort -u | tr '\n' ' '
}

# run NAME ARGUMENTS...: a server as a service of its own, confined as nbdkit@.service.
run() {
    instance=$1
    shift
    # A server leaves its socket, as nbdkit does.
    rm -f "/run/nbdkit/$instance.sock"
    systemd-run -q --unit="$instance" -p Type=notify -p NotifyAccess=main -p AppArmorProfile=nbdkit -p NoNewPrivileges=yes \
        "$(command -v nbdkit)" -f --log=stderr -U "/run/nbdkit/$instance.sock" "$@"
}

# load_local NAME LINE...: the administrator's own rules for a profile.
load_local() {
    name=$1
    shift
    printf '  %s\n' "$@" > "/etc/apparmor.d/local/$name"
    apparmor_parser -r /etc/apparmor.d/nbdkit /etc/apparmor.d/nbdkit-worker
}

sysctl -q -w kernel.printk_ratelimit=0
mkdir -p /etc/apparmor.d/local /etc/nbdkit/pki /run/nbdkit /var/lib/nbdkit /srv/images
check "the profiles are loaded" apparmor_parser -r /etc/apparmor.d/nbdkit /etc/apparmor.d/nbdkit-worker
check "and enforced" sh -c 'grep -x "nbdkit (enforce)" /sys/kernel/security/apparmor/profiles && grep -x "nbdkit-worker (enforce)" /sys/kernel/security/apparmor/profiles'
echo 'NBDKIT_ARGS=file /var/lib/nbdkit/disk.img' > /etc/nbdkit/disk.conf
echo secret > /etc/nbdkit/pki/server-key.pem
truncate -s 16M /var/lib/nbdkit/disk.img /srv/images/other.img
! getent passwd nbdkit || chown nbdkit: /var/lib/nbdkit/disk.img

use_disk
expect "the listener's profile" "$(profile nbdkit)" "nbdkit (enforce) "
for kind in template broker worker; do
    expect "the profiles of the $kind" "$(profile "nbdkit:$kind")" "nbdkit//&nbdkit-worker (enforce) "
done
check "disconnect" nbd-client -d /dev/nbd0
check "a server on TCP" systemd-run -q --unit=tcp -p Type=notify -p AppArmorProfile=nbdkit \
    "$(command -v nbdkit)" -f --log=stderr -p 10809 memory 16M
expect "serves" "$(nbdinfo --size nbd://127.0.0.1)" 16777216
check "an overlay" run overlay --filter=cow file /var/lib/nbdkit/disk.img
check "is written to" nbdcopy "$state/data" "$(uri overlay)"
systemctl stop overlay tcp nbdkit@disk.socket nbdkit@disk.service
expect "no denial in normal work" "$(denials)" ""
dmesg -C

# What the profiles do not permit, with the server's own sandbox off.
run other --sandbox=off file /srv/images/other.img > "$output" 2>&1
check "an image elsewhere is not opened" sh -c "! nbdinfo --size '$(uri other)'"
check "and the denial is reported" sh -c "dmesg | grep DENIED | grep /srv/images/other.img"
systemctl stop other
systemctl reset-failed other 2> /dev/null
check "a directory is added" load_local nbdkit-images '/srv/images/** rwk,'
check "then a server of that image starts" run other --sandbox=off file /srv/images/other.img
expect "and serves" "$(nbdinfo --size "$(uri other)")" 16777216
systemctl stop other

run scripts --sandbox=off eval get_size='echo 1048576' pread='exit 1' > "$output" 2>&1
check "no worker runs a program" sh -c "! nbdinfo --size '$(uri scripts)'"
systemctl stop scripts
systemctl reset-failed scripts 2> /dev/null
check "programs are added to both" load_local nbdkit '/usr/bin/{bash,cat,dash} mrix,'
check "and to the worker" load_local nbdkit-worker '/usr/bin/{bash,cat,dash} mrix,'
# A script is what an attacker would be who has taken over a worker: it has the worker's profiles.
check "then a server of scripts starts" run scripts --sandbox=off eval get_size='echo 1048576' \
    pread='cat /etc/nbdkit/pki/server-key.pem /etc/shadow >&2; exit 1'
expect "and serves" "$(nbdinfo --size "$(uri scripts)")" 1048576
dmesg -C
check "a script reads no key and no password" sh -c "! nbdcopy '$(uri scripts)' '$state/stolen'"
check "because the profile denies it" sh -c 'dmesg | grep DENIED | grep server-key.pem'
expect "none of it is in the log" "$(journalctl -u scripts | grep -cE 'secret|root:[*!]')" 0
