//! What even code that declares nothing is denied (`--sandbox=compat`, `programs`), besides
//! [`NEVER`](nbdkit_sandbox::lists::NEVER).

#![forbid(unsafe_code)]

use libc as c;
use nbdkit_sandbox::seccomp::Test::{Has, Is, IsNot};
use nbdkit_sandbox::seccomp::{Line, Test, any, with};

/// What a stack may need while it starts, as root above all, and not while it serves. Refused
/// (EPERM) to code that declares nothing, once it serves. The first template may call this before
/// it closes its sandbox, and so may those that replace it.
#[rustfmt::skip]
pub(in crate::sandbox) const STARTING: &[Line] = &[
    // Other views of the machine's files: mount(8), which scripts run.
    any(c::SYS_mount),            // mount(8); the template makes its mounts its own
    any(c::SYS_umount2),          // umount(8)
    any(c::SYS_pivot_root),       // containers
    any(c::SYS_chroot),           // chroot(8)
    any(c::SYS_open_tree),        // mount(8) of util-linux 2.39
    any(c::SYS_move_mount),       // mount(8) of util-linux 2.39
    any(c::SYS_fsopen),           // mount(8) of util-linux 2.39
    any(c::SYS_fsconfig),         // mount(8) of util-linux 2.39
    any(c::SYS_fsmount),          // mount(8) of util-linux 2.39
    any(c::SYS_fspick),           // mount(8), remounting
    any(c::SYS_mount_setattr),    // mount(8), remounting

    // Namespaces, in which anybody is root before half of the kernel.
    any(c::SYS_unshare),          // unshare(1); the template's own namespaces
    any(c::SYS_setns),            // nsenter(1), ip-netns(8)
    with(c::SYS_clone, &[Has(0, c::CLONE_NEWUSER as u64)]), // containers

    // What other programs of a script's call.
    any(c::SYS_init_module),      // insmod(8)
    any(c::SYS_finit_module),     // modprobe(8)
    any(c::SYS_delete_module),    // rmmod(8)
    any(c::SYS_add_key),          // cryptsetup(8)
    any(c::SYS_request_key),      // mount.cifs(8)
    any(c::SYS_keyctl),           // cryptsetup(8)
    any(c::SYS_io_uring_setup),   // qemu-img(1); system calls that filters do not see
    any(c::SYS_io_uring_enter),   // qemu-img(1)
    any(c::SYS_io_uring_register),// qemu-img(1)
    any(c::SYS_vmsplice),         // pages shared with pipes
    any(c::SYS_personality),      // setarch(8); addresses that are not random
    #[cfg(target_arch = "x86_64")]
    any(c::SYS_modify_ldt),       // emulators of 16-bit programs
    any(c::SYS_move_pages),       // numactl(8); memory of other processes
    any(c::SYS_migrate_pages),    // numactl(8); memory of other processes
    any(c::SYS_syslog),           // dmesg(1)
    any(c::SYS_sethostname),      // containers
    any(c::SYS_setdomainname),    // containers
];

/// To fail with EAFNOSUPPORT, which is what kernels say that have been built without them: sockets
/// of all families but those of clients, disks and names; and what configures firewalls and
/// tunnels.
#[rustfmt::skip]
pub(in crate::sandbox) const FAMILIES: &[Line] = &[
    with(c::SYS_socket, NO_FAMILY_OF_SERVERS),     // holes in drivers of crypto, radio, buses; raw packets
    with(c::SYS_socketpair, NO_FAMILY_OF_SERVERS), // holes in families that pair sockets (TIPC)
    with(c::SYS_socket, &[Is(0, c::AF_NETLINK as u64), Is(2, c::NETLINK_NETFILTER as u64)]), // firewalls, as root of a namespace
    with(c::SYS_socket, &[Is(0, c::AF_NETLINK as u64), Is(2, c::NETLINK_XFRM as u64)]),      // tunnels, as root of a namespace
];

const NO_FAMILY_OF_SERVERS: &[Test] = &[
    IsNot(0, c::AF_UNIX as u64),
    IsNot(0, c::AF_INET as u64),
    IsNot(0, c::AF_INET6 as u64),
    IsNot(0, c::AF_NETLINK as u64),
    IsNot(0, c::AF_VSOCK as u64),
];
