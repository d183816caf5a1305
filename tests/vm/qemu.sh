# The emulator, sourced by run.sh: kernel virtual machines where they work, software emulation
# otherwise.
# shellcheck shell=sh disable=SC2034,SC2154 # machine and work are run.sh's, who uses the disks

# run_qemu SECONDS ARGUMENTS...: a machine of two processors, its disks snapshots that are thrown
# away, killed after so many seconds.
run_qemu() {
    limit=$1
    shift
    directory=$machine/qemu/usr
    # exec, so that the process id of "run_qemu &" is the emulator's.
    LD_LIBRARY_PATH=$directory/lib/x86_64-linux-gnu TMPDIR=$work exec timeout -s KILL "$limit" \
        "$directory/bin/qemu-system-x86_64" \
        -L "$directory/share/qemu" -L "$directory/share/seabios" -L "$directory/lib/ipxe/qemu" \
        -no-user-config -nodefaults -display none -machine q35 $accelerator -smp 2 \
        -kernel "$machine/vmlinuz" \
        "$@"
}

# /dev/kvm may be there and hang every guest: it is used if a kernel comes to its initial file
# system within five seconds.
choose_accelerator() {
    accelerator="-accel kvm -cpu host,-arch-capabilities"
    kernel_words=
    if [ -w /dev/kvm ]; then
        mkdir -p "$work/trial/bin"
        (cd "$work/trial" && gzip -dc "$machine/initramfs.gz" | cpio -i --quiet bin/busybox 2> /dev/null)
        printf '%s\n' '#!/bin/busybox sh' '/bin/busybox echo reached > /dev/console' '/bin/busybox poweroff -f' \
            > "$work/trial/init"
        chmod 755 "$work/trial/init"
        mkdir "$work/trial/dev"
        (cd "$work/trial" && find . | cpio -o -H newc --quiet | gzip -1) > "$work/trial.gz"
        # The braces are for the shell's word about a crashed emulator.
        { (run_qemu 5 -m 256 -initrd "$work/trial.gz" -append "console=ttyS0 panic=-1 quiet" \
            -serial "file:$work/trial.console" < /dev/null > "$work/trial.qemu" 2>&1) || true; } 2> /dev/null
    fi
    if grep -q reached "$work/trial.console" 2> /dev/null; then
        echo "# with kernel virtual machines"
    else
        accelerator="-accel tcg,thread=multi -cpu max"
        # Both cost an emulator much: workarounds for what it does not speculate, and a fifth level of
        # page tables.
        kernel_words="mitigations=off no5lvl"
        echo "# with software emulation: no working /dev/kvm"
    fi
    root_disk="-drive if=virtio,format=raw,file=$machine/root.img,snapshot=on"
    payload_disk="-drive if=virtio,format=raw,file=$work/payload.img,readonly=on"
}
