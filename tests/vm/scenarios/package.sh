# The Debian packages on a machine that has nothing of them: installed, the lines of README.md for a
# service followed, removed and purged.
# vm: memory=1024 limit=900 packages=1

export DEBIAN_FRONTEND=noninteractive

# What is on the machine, but for what changes by itself and what packages leave when they are
# purged: caches, lists and logs of apt and dpkg, backups of the lists of users, and directories of
# AppArmor's that the scripts of dh_apparmor(1) remove when they are empty.
files() {
    find / -xdev \( -path /tmp -o -path /var/cache -o -path /var/lib/apt -o -path /var/lib/dpkg \
        -o -path /var/lib/systemd -o -path "$base" -o -path /var/log -o -path /var/tmp \) -prune -o -print |
        grep -v -e '^/etc/.*-$' -e '^/etc/apparmor.d/disable$' -e '^/etc/apparmor.d/local$' | sort
    getent passwd
    getent group
}

# The indented lines below a title of README.md, without comments.
lines_of_readme() {
    awk -v title="## $1" '/^#/ { found = $0 == title } found && sub(/^    /, "")' /usr/share/doc/nbdkitd/README.md
}

of_server() {
    pgrep -c '^nbdkit' || true
}

files > "$state/before"
check "apt installs the packages" apt-get install -q -y --no-install-recommends /vm/packages/1/*.deb
check "the program is there" nbdkit --version
check "and the filter with a library of its own" sh -c 'nbdkit --dump-plugin --filter=ext2 null | grep -x ext2_name=ext2'
expect "nothing is started" "$(of_server) $(systemctl list-units --plain --no-legend 'nbdkit*')" "0 "
check "the man page of the unit's first line is there" sh -c 'ls /usr/share/man/man1/nbdkit-service.1*'

lines_of_readme "As a service" > "$state/lines"
expect "README.md has lines for a service" "$(grep -c . "$state/lines")" 5
check "which do what they say" sh -e "$state/lines"
tail -n 1 "$state/lines" > "$state/client"
expect "the service is up" "$(systemctl is-active nbdkit@disk.socket nbdkit@disk.service | tr '\n' ' ')" "active active "
expect "the disk has its size" "$(nbdinfo --size "$(uri disk)")" 1073741824
check "the journal has the start of the service" \
    sh -c 'journalctl -u nbdkit@disk.service -o cat | grep -F "Started nbdkit@disk.service - NBD server for export disk."'
modprobe nbd
check "a client stays" nbd-client -unix /run/nbdkit/disk.sock /dev/nbd0
check "systemctl status has the client" wait_for 120 sh -c 'systemctl status --no-pager nbdkit@disk.service | grep "Status:.*1 client"'
note "$(systemctl status --no-pager nbdkit@disk.service | grep Status: | sed 's/^ *//')"
expect "no process of the server is root" "$(ps -o user= -p "$(pgrep -d, '^nbdkit')" | grep -c root)" 0
if aa-enabled --quiet; then
    expect "the installation has loaded the profile of AppArmor" "$(tr -d '\0' < "/proc/$(pgrep -ox nbdkit)/attr/current")" "nbdkit (enforce)"
fi
nbd-client -d /dev/nbd0
check "the example of the configuration is as good" sh -e -c 'cp /etc/nbdkit/disk.conf.example /etc/nbdkit/disk.conf
    systemctl restart nbdkit@disk.service'
check "and serves" sh -e "$state/client"

# Removed under a client. The administrator's files stay.
check "the client stays again" nbd-client -unix /run/nbdkit/disk.sock /dev/nbd0
check "apt removes the packages" apt-get remove -q -y nbdkitd
expect "no process is left" "$(of_server)" 0
expect "no socket is left" "$(ls /run/nbdkit)" ""
expect "configuration and disk are left" "$(ls /etc/nbdkit/disk.conf /var/lib/nbdkit/disk.img)" \
    "$(printf '%s\n' /etc/nbdkit/disk.conf /var/lib/nbdkit/disk.img)"
nbd-client -d /dev/nbd0
check "installed again" apt-get install -q -y --no-install-recommends /vm/packages/1/*.deb
check "what was enabled is served after a start" sh -e -c "systemctl start nbdkit@disk.socket; $(cat "$state/client")"

# Purged while it is enabled and serves.
check "the socket is enabled" systemctl is-enabled nbdkit@disk.socket
rm /etc/nbdkit/disk.conf /var/lib/nbdkit/disk.img
check "apt purges the packages" apt-get purge -q -y nbdkitd nbdkitd-filter-ext2
expect "no process is left then" "$(of_server)" 0
expect "no unit is left" "$(systemctl list-units --all --plain --no-legend 'nbdkit*')" ""
check "nothing is left in /run" [ ! -e /run/nbdkit ]
check "and no log" [ ! -e /var/log/nbdkit ]
if aa-enabled --quiet; then
    expect "the kernel has no profile of AppArmor" "$(grep ^nbdkit /sys/kernel/security/apparmor/profiles)" ""
fi
files > "$state/after"
expect "no file and no user is left" "$(diff "$state/before" "$state/after")" ""
