//! Lists of calls that are refused, which more than one program uses. Each line says what the call
//! would do for an attacker, or who calls it. Data only.

#![forbid(unsafe_code)]

use libc as c;

use crate::seccomp::Test::{Has, Is};
use crate::seccomp::{Line, any, with};

/// What no stack needs, neither while it serves nor while it starts. Refused (EPERM) to code that
/// declares nothing (`--sandbox=compat`, `programs`), and to the spawner, whose filters a new
/// template inherits.
#[rustfmt::skip]
pub const NEVER: &[Line] = &[
    // Files and disks of others.
    any(c::SYS_open_by_handle_at),// files past the permissions of all directories
    any(c::SYS_quotactl),         // quotas of other users
    any(c::SYS_quotactl_fd),      // quotas of other users, by a descriptor
    any(c::SYS_fanotify_init),    // watches and holds up what other processes open

    // Other processes.
    any(c::SYS_ptrace),           // takes them over
    any(c::SYS_process_vm_readv), // reads their memory
    any(c::SYS_process_vm_writev),// writes their memory
    any(c::SYS_process_madvise),  // swaps their memory out
    any(c::SYS_kcmp),             // where the kernel keeps things
    any(c::SYS_pidfd_getfd),      // takes their descriptors

    // What many holes in kernels were found in, and servers of disks do not use.
    any(c::SYS_bpf),              // programs in the kernel
    any(c::SYS_userfaultfd),      // holds the kernel in the middle of a copy
    any(c::SYS_perf_event_open),  // watches every process

    // The machine.
    any(c::SYS_kexec_load),       // boots another kernel
    #[cfg(target_arch = "x86_64")]
    any(c::SYS_kexec_file_load),  // boots another kernel
    any(c::SYS_reboot),           // stops the machine
    any(c::SYS_swapon),           // memory of all processes on a disk of the attacker's
    any(c::SYS_swapoff),          // uses up memory
    any(c::SYS_acct),             // a file that grows
    any(c::SYS_settimeofday),     // sets the clock
    any(c::SYS_clock_settime),    // sets a clock
    any(c::SYS_clock_adjtime),    // slews a clock
    any(c::SYS_adjtimex),         // slews the clock
    any(c::SYS_vhangup),          // ends sessions of the terminal
    any(c::SYS_lookup_dcookie),   // paths of what is being profiled
    any(c::SYS_nfsservctl),       // gone from the kernel
    #[cfg(target_arch = "x86_64")]
    any(c::SYS_iopl),             // ports of devices
    #[cfg(target_arch = "x86_64")]
    any(c::SYS_ioperm),           // ports of devices
];

/// What a stack may need while it starts, as root above all, and not while it serves. Refused
/// (EPERM) to code that declares nothing, once it serves. The first template may call this before
/// it closes its sandbox, and so may those that replace it.
#[rustfmt::skip]
pub const STARTING: &[Line] = &[
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

/// Typing into the terminal of whoever started the server. Refused (EPERM) in every process,
/// whatever else it may call. ioctl_tty(2).
#[rustfmt::skip]
pub const TERMINAL: &[Line] = &[
    with(c::SYS_ioctl, &[Is(1, 0x5412)]), // TIOCSTI: input, as if it had been typed
    with(c::SYS_ioctl, &[Is(1, 0x541c)]), // TIOCLINUX: what is selected on a console is pasted
];
