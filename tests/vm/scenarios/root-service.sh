# nbdkit-root@.service: a file system on a disk that this machine itself serves, kept in use until
# the machine's last moments. The server outlives systemctl isolate and the shutdown, so that the
# file system is unmounted clean.
# vm: memory=1024 limit=900 boots=2

unit=nbdkit-root@local.service
socket=/run/nbdkit-root-local.sock

if [ "$boot" = 2 ]; then
    check "the server is up after the reboot" wait_for 120 systemctl is-active "$unit"
    journal=$(journalctl -b -1 -o cat)
    expect "the server was not stopped in the first boot" "$(echo "$journal" | grep -c "Stopped $unit")" 0
    expect "the file system was unmounted clean" "$(dumpe2fs -h /var/lib/nbdkit/local.img 2> /dev/null | sed -n 's/^Filesystem state: *//p')" clean
    expect "its journal is empty" "$(dumpe2fs -h /var/lib/nbdkit/local.img 2> /dev/null | grep -c needs_recovery)" 0
    check "the file system has no error" fsck.ext4 -f -n /var/lib/nbdkit/local.img
    modprobe nbd
    check "a client connects" nbd-client -unix "$socket" /dev/nbd0
    mkdir -p /mnt/local
    check "the file system is mounted again" mount /dev/nbd0 /mnt/local
    check "and has what was written before the reboot" cmp /mnt/local/data "$state/data"
    check "written to until all processes were killed" [ "$(wc -l < /mnt/local/until)" -gt "$(cat "$state/lines")" ]
    umount /mnt/local
    nbd-client -d /dev/nbd0
    return 0
fi

mkdir -p /var/lib/nbdkit /mnt/local
truncate -s 64M /var/lib/nbdkit/local.img
echo "NBDKIT_ARGS=--swap -t 4 -U $socket file /var/lib/nbdkit/local.img" > /etc/nbdkit/local.conf
check "the service is enabled and started" systemctl enable --now "$unit"
listener=$(systemctl show -P MainPID "$unit")
for pid in $(cat "/sys/fs/cgroup$(systemctl show -P ControlGroup "$unit")/cgroup.procs"); do
    expect "process $pid is one that systemd leaves alone, of root" "$(head -c 1 "/proc/$pid/cmdline")$(status_of "$pid" Uid)" "@0"
done
modprobe nbd
check "a client connects" nbd-client -unix "$socket" /dev/nbd0
worker=$(pgrep -x nbdkit:worker)
check "a file system" sh -e -c 'mkfs.ext4 -q /dev/nbd0; mount /dev/nbd0 /mnt/local'
check "the manager refuses to stop it" sh -c "! systemctl stop $unit"

# What is not part of the target is stopped, the server is not.
check "another service" systemd-run -q --unit=other sleep 10000
check "isolate" systemctl isolate multi-user.target
check "the other service is stopped" wait_for 120 sh -c '! systemctl is-active other'
expect "the server is the same" "$(systemctl show -P MainPID "$unit") $(pgrep -x nbdkit:worker)" "$listener $worker"

# It is in use when systemd unmounts file systems in order, which therefore fails, and written to
# until systemd kills what is left.
cat > /run/systemd/system/holder.service <<-'unit'
	[Unit]
	DefaultDependencies=no
	RefuseManualStop=yes
	[Service]
	WorkingDirectory=/mnt/local
	ExecStart=/bin/sh -c 'while sleep 0.1; do date +%%s.%%N >> until; done'
	unit
systemctl daemon-reload
check "the file system is in use" systemctl start holder
head -c 8M /dev/urandom > "$state/data"
cp "$state/data" /mnt/local/data
check "and written to" wait_for 120 [ -s /mnt/local/until ]
wc -l < /mnt/local/until > "$state/lines"
reboot_now
