//! Lists of calls that more than one program denies. Each line says what the call would do for an
//! attacker, or who calls it. Data only.

#![forbid(unsafe_code)]

use libc as c;

use crate::seccomp::Test::Is;
use crate::seccomp::{Line, any, with};

/// What no stack needs, neither while it serves nor while it starts. Denied (EPERM) to code that
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
    any(c::SYS_kcmp),             // the order of objects in the kernel's memory
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
    any(c::SYS_swapoff),          // brings all swapped memory back at once
    any(c::SYS_acct),             // the kernel writes to a file of the attacker's choice
    any(c::SYS_settimeofday),     // certificates that have expired are valid again
    any(c::SYS_clock_settime),    // certificates that have expired are valid again
    any(c::SYS_clock_adjtime),    // the clock runs too fast or too slow
    any(c::SYS_adjtimex),         // the clock runs too fast or too slow
    any(c::SYS_vhangup),          // ends sessions of the terminal
    any(c::SYS_lookup_dcookie),   // paths of what is being profiled
    any(c::SYS_nfsservctl),       // serves files from the kernel, before Linux 3.1
    #[cfg(target_arch = "x86_64")]
    any(c::SYS_iopl),             // devices are driven past the kernel
    #[cfg(target_arch = "x86_64")]
    any(c::SYS_ioperm),           // devices are driven past the kernel
];

/// Input into the terminal from which the server was started. Denied (EPERM) in every process,
/// whatever else it may call. ioctl_tty(2).
#[rustfmt::skip]
pub const TERMINAL: &[Line] = &[
    with(c::SYS_ioctl, &[Is(1, 0x5412)]), // TIOCSTI: input, as if it had been typed
    with(c::SYS_ioctl, &[Is(1, 0x541c)]), // TIOCLINUX: what is selected on a console is pasted
];

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    /// The files of all policies: of this crate, and of the programs beside it.
    fn policies() -> Vec<PathBuf> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let mut files = vec![
            root.join("nbdkit-sandbox/src/lists.rs"),
            root.join("nbdkit-worker/src/broker/policy.rs"),
            root.join("nbdkitd/src/confine/policy.rs"),
        ];
        let by_need = std::fs::read_dir(root.join("nbdkit-worker/src/sandbox/policy")).unwrap();
        files.extend(by_need.map(|entry| entry.unwrap().path()));
        files
    }

    #[test]
    fn every_line_of_a_policy_names_its_caller_or_the_attack() {
        /// What is no reason.
        const EMPTY: [&str; 4] = ["the same", "likewise", "as above", "ditto"];
        const CFG: &str = "#[cfg(target_arch = \"x86_64\")]";
        let mut lines = 0;
        for file in policies() {
            let text = std::fs::read_to_string(&file).unwrap();
            for (number, line) in text.lines().enumerate() {
                let entry = line.trim_start().trim_start_matches(CFG).trim_start();
                if !entry.starts_with("any(c::") && !entry.starts_with("with(c::") {
                    continue;
                }
                lines += 1;
                let reason = line.split_once("//").map_or("", |(_, reason)| reason.trim());
                let place = format!("{}:{}: {reason:?}", file.display(), number + 1);
                assert!(!reason.is_empty(), "{place}");
                assert!(!EMPTY.iter().any(|it| reason.contains(it)), "{place}");
            }
        }
        assert!(lines > 400, "{lines}");
    }
}
