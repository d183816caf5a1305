# The machine itself.
# vm: memory=1024 limit=900
expect "systemd is PID 1" "$(cat /proc/1/comm)" systemd
note "$(uname -r), $(cat /sys/kernel/security/lsm)"
note "$(systemd-analyze | head -1)"
check "nbdkit runs" nbdkit --version
note "$(cat $output)"
