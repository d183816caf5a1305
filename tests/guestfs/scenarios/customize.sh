# A guest on a disk of ours is inspected and edited by the tools of libguestfs.
# shellcheck shell=sh

cp --sparse=always /srv/guest.img disk.img
guest="nbd://?socket=$PWD/disk.sock"

serve disk -U disk.sock file disk.img
check "virt-inspector knows the guest" sh -c "virt-inspector --format=raw -a '$guest' > guest.xml && grep -q '<distro>debian' guest.xml &&
    grep -q '<package_format>deb' guest.xml && grep -q '<name>dpkg</name>' guest.xml"
check "virt-customize edits it, and runs a command of its own" virt-customize --format raw -a "$guest" --no-network \
    --hostname edited --write /etc/motd:hello --delete /etc/issue --run-command 'dpkg -l > /root/packages'
expect "virt-cat reads what was written" "$(virt-cat --format=raw -a "$guest" /etc/hostname /etc/motd 2>&1 | tr '\n' ' ')" "edited hello"
check "virt-sysprep" virt-sysprep --format raw -a "$guest" --operations machine-id,tmp-files,logfiles
check "the disk has a file system in order" sh -c "
    $ours -U - -r --filter=partition file disk.img partition=1 --run 'nbdcopy \"\$uri\" partition.img'
    e2fsck -fn partition.img && debugfs -R 'cat /root/packages' partition.img | grep -q '^ii  dpkg '"
rm -f partition.img
stop disk

# What is written goes to an overlay and is gone. The first server has left its socket.
before=$(sha256sum < disk.img)
guest="nbd://?socket=$PWD/cow.sock"
serve disk -U cow.sock --filter=cow file disk.img cow-on-cache=true
check "virt-customize above cow" virt-customize --format raw -a "$guest" --no-network --hostname other
expect "is read back while the server runs" "$(virt-cat --format=raw -a "$guest" /etc/hostname 2>&1)" other
stop disk
expect "and nothing was changed" "$(sha256sum < disk.img)" "$before"
