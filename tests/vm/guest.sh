#!/bin/sh
# What vm-test.service runs in the guest: installs what the host has built, runs scenarios one after
# the other and switches the machine off. vm.scenarios=NAME,NAME on the kernel's command line names
# them. After a reboot by `reboot_now` the scenario that asked for it is run again, with boot=2.
set -u
exec 3> /dev/ttyS1
for word in $(cat /proc/cmdline); do
    case $word in vm.scenarios=*) scenarios=$(echo "${word#vm.scenarios=}" | tr , ' ') ;; esac
done

base=/var/lib/vm-test
mkdir -p "$base"
# A scenario of packages begins with a machine that has none of this.
if ! [ -e "$base/installed" ] && ! grep -q '^# vm:.*packages=' "/vm/scenarios/${scenarios%% *}.sh"; then
    # Not -a: it would take the labels and the owners of directories that are there from the
    # payload.
    cp -dR --preserve=mode /vm/payload/. /
    systemctl daemon-reload
    systemd-sysusers > "$base/sysusers" 2>&1
    systemd-tmpfiles --create > "$base/tmpfiles" 2>&1
    touch "$base/installed"
fi
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
. /vm/lib.sh

for scenario in $scenarios; do
    # Done before a reboot.
    [ ! -e "$base/$scenario.done" ] || continue
    state=$base/$scenario
    mkdir -p "$state"
    boot=$(($(cat "$state/boot" 2> /dev/null || echo 0) + 1))
    echo "$boot" > "$state/boot"
    cd "$state" || exit 1
    echo "begin $scenario" >&3
    scenario_began=$(date +%s)
    # What the kernel has said of another scenario is nothing to this one.
    dmesg -C
    . "/vm/scenarios/$scenario.sh"
    note "$scenario: $(($(date +%s) - scenario_began)) s"
    touch "$base/$scenario.done"
done
# The console is shown when something failed.
if [ "$failures" != 0 ]; then
    for unit in 'nbdkit@*' '*'; do
        journalctl -b -u "$unit" -o short-monotonic -n 50 --no-pager | cut -c 1-240 > /dev/console
    done
fi
echo end >&3
sync
systemctl poweroff --force --force
