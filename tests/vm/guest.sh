#!/bin/sh
# What vm-test.service runs in the guest: installs what the host has built, runs one scenario and
# switches the machine off. vm.scenario=NAME on the kernel's command line names it. After a reboot
# by `reboot_now` a scenario is run again.
set -u
exec 3> /dev/ttyS1
for word in $(cat /proc/cmdline); do
    case $word in vm.scenario=*) scenario=${word#vm.scenario=} ;; esac
done

state=/var/lib/vm-test
mkdir -p "$state"
boot=$(($(cat "$state/boot" 2> /dev/null || echo 0) + 1))
echo "$boot" > "$state/boot"
if [ "$boot" = 1 ]; then
    # Not -a: it would take the labels and the owners of directories that are there from the
    # payload.
    cp -dR --preserve=mode /vm/payload/. /
    systemctl daemon-reload
    systemd-sysusers > "$state/sysusers" 2>&1
    systemd-tmpfiles --create > "$state/tmpfiles" 2>&1
fi
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
. /vm/lib.sh
cd "$state" || exit 1
. "/vm/scenarios/$scenario.sh"
# The console is shown when something failed.
if [ "$failures" != 0 ]; then
    for unit in 'nbdkit@*' '*'; do
        journalctl -b -u "$unit" -o short-monotonic -n 50 --no-pager | cut -c 1-240 > /dev/console
    done
fi
echo end >&3
sync
systemctl poweroff --force --force
