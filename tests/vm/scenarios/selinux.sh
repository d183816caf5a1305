# SELinux enforcing, with the module of selinux/: no denial in normal work, and a worker without the
# server's own sandbox is held by the policy.
# vm: memory=1024 limit=1500 kernel=security=selinux,selinux=1

denials() {
    dmesg | grep 'avc:  denied' | grep -E 'nbdkit' || true
}

# context KIND: the domain of the processes of that name.
context() {
    for pid in $(pgrep -x "$1"); do
        tr -d '\0' < "/proc/$pid/attr/current" | cut -d: -f3
    done | sort -u | tr '\n' ' '
}

# run NAME ARGUMENTS...: a server as a service of its own.
run() {
    instance=$1
    shift
    # A server leaves its socket, as nbdkit does.
    rm -f "/run/nbdkit/$instance.sock"
    systemd-run -q --unit="$instance" -p Type=notify -p NotifyAccess=main \
        "$(command -v nbdkit)" -f --log=stderr -P "/run/nbdkit/$instance.pid" -U "/run/nbdkit/$instance.sock" "$@"
}

expect "SELinux is in the kernel" "$(getenforce)" Permissive
sysctl -q -w kernel.printk_ratelimit=0
check "the module is loaded" semodule -i /vm/selinux/nbdkit.pp
mkdir -p /etc/nbdkit/pki /run/nbdkit /var/lib/nbdkit
echo 'NBDKIT_ARGS=--log=/var/log/nbdkit/disk.log --log-connections file /var/lib/nbdkit/disk.img' > /etc/nbdkit/disk.conf
echo secret > /etc/nbdkit/pki/server-key.pem
truncate -s 16M /var/lib/nbdkit/disk.img
! getent passwd nbdkit || chown nbdkit: /var/lib/nbdkit/disk.img
# The image's root directory has no label, since mke2fs gives its own none.
check "files have their labels" sh -c "restorecon -F / && restorecon -RF /usr/local /etc/nbdkit /run/nbdkit /var/lib/nbdkit"
note "$(ls -LZ "$(command -v nbdkit)" /usr/local/libexec/nbdkit/nbdkit-worker | tr '\n' ' ')"
dmesg -C
check "SELinux enforces" setenforce 1

use_disk
expect "the listener's domain" "$(context nbdkit)" "nbdkit_t "
for kind in template broker worker; do
    expect "the domain of the $kind" "$(context "nbdkit:$kind")" "nbdkit_worker_t "
done
check "disconnect" nbd-client -d /dev/nbd0
check "the log has the client" wait_for 120 grep 'connection ended' /var/log/nbdkit/disk.log
expect "the type of the log" "$(stat -c %C /var/log/nbdkit/disk.log | cut -d: -f3)" nbdkit_log_t

check "a server on TCP" systemd-run -q --unit=tcp -p Type=notify "$(command -v nbdkit)" -f --log=stderr -p 10809 memory 16M
expect "serves" "$(nbdinfo --size nbd://127.0.0.1)" 16777216
check "an overlay" run overlay --filter=cow file /var/lib/nbdkit/disk.img
check "is written to" nbdcopy "$state/data" "$(uri overlay)"
check "a socket for virtual machines" run virtual --selinux-label=system_u:system_r:svirt_t:s0 memory 1M
check "has their label" sh -c "ss -xlz | grep virtual.sock | grep svirt_t"
systemctl stop overlay virtual nbdkit@disk.socket nbdkit@disk.service
expect "no denial in normal work" "$(denials)" ""
dmesg -C

# A script is what an attacker would be who has taken over a worker: it runs in the worker's domain.
run scripts --sandbox=off eval get_size='echo 1048576' pread='cat /etc/nbdkit/pki/server-key.pem /etc/shadow >&2; exit 1' > "$output" 2>&1
check "without nbdkit_run_scripts no worker runs a program" sh -c "! nbdinfo --size '$(uri scripts)'"
check "and the denial is reported" sh -c 'dmesg | grep "avc:  denied" | grep -E "execute|nbdkit_worker_t"'
systemctl stop scripts
systemctl reset-failed scripts 2> /dev/null
check "nbdkit_run_scripts is switched on" setsebool nbdkit_run_scripts 1
check "then a server of scripts starts" run scripts --sandbox=off eval get_size='echo 1048576' \
    pread='cat /etc/nbdkit/pki/server-key.pem /etc/shadow >&2; exit 1'
expect "and serves" "$(nbdinfo --size "$(uri scripts)")" 1048576
dmesg -C
check "a script reads no key and no password" sh -c "! nbdcopy '$(uri scripts)' '$state/stolen'"
check "because the policy denies it" sh -c 'dmesg | grep "avc:  denied" | grep "comm=.cat." | grep -E "nbdkit_(etc|key)_t"'
expect "none of it is in the log" "$(journalctl -u scripts | grep -cE 'secret|root:[*!]')" 0

check "without nbdkit_connect_any no worker connects" sh -c \
    "! systemd-run -q --unit=proxy -p Type=notify $(command -v nbdkit) -f --log=stderr --sandbox=off -U /run/nbdkit/proxy.sock nbd nbd://127.0.0.1 || ! nbdinfo --size '$(uri proxy)'"
systemctl stop proxy
systemctl reset-failed proxy 2> /dev/null
check "nbdkit_connect_any is switched on" setsebool nbdkit_connect_any 1
check "then a proxy starts" run proxy nbd nbd://127.0.0.1
expect "and serves" "$(nbdinfo --size "$(uri proxy)")" 16777216
