# Where virt-v2v writes to: nowhere, and images of qemu's own format.
# shellcheck shell=sh

v2v() {
    with "$ours" "$@"
}

mkdir qcow2
check "virt-v2v -i disk -o null" v2v virt-v2v -i disk /srv/guest.img -o null
check "virt-v2v -of qcow2" v2v virt-v2v -i disk /srv/guest.img -o local -os "$PWD/qcow2" -of qcow2 -on guest
check "the image is one that qemu finds in order" sh -c "qemu-img info qcow2/guest-sda | grep -q 'file format: qcow2' && qemu-img check qcow2/guest-sda"
