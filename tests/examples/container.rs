//! Runs a program with the seccomp filter that containers have by default: what Docker's and
//! Podman's profiles refuse to a container without capabilities that would permit it. For
//! `scripts/surroundings.sh`.
//!
//! The profiles list what they allow; this lists what they do not, of which a disk server or its
//! tests could want any.

#![forbid(unsafe_code)]

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use nbdkit_sandbox::seccomp::Test::Has;
use nbdkit_sandbox::seccomp::{Action, Line, any, compile, install, with};
use nix::libc as c;

/// EPERM.
const REFUSED: &[Line] = &[
    any(c::SYS_acct),
    any(c::SYS_add_key),
    any(c::SYS_bpf),
    any(c::SYS_clock_adjtime),
    any(c::SYS_clock_settime),
    with(c::SYS_clone, &[Has(0, c::CLONE_NEWNS as u64)]),
    with(c::SYS_clone, &[Has(0, c::CLONE_NEWCGROUP as u64)]),
    with(c::SYS_clone, &[Has(0, c::CLONE_NEWUTS as u64)]),
    with(c::SYS_clone, &[Has(0, c::CLONE_NEWIPC as u64)]),
    with(c::SYS_clone, &[Has(0, c::CLONE_NEWUSER as u64)]),
    with(c::SYS_clone, &[Has(0, c::CLONE_NEWPID as u64)]),
    with(c::SYS_clone, &[Has(0, c::CLONE_NEWNET as u64)]),
    any(c::SYS_delete_module),
    any(c::SYS_finit_module),
    any(c::SYS_fsconfig),
    any(c::SYS_fsmount),
    any(c::SYS_fsopen),
    any(c::SYS_get_mempolicy),
    any(c::SYS_init_module),
    any(c::SYS_io_uring_enter),
    any(c::SYS_io_uring_register),
    any(c::SYS_io_uring_setup),
    any(c::SYS_kcmp),
    any(c::SYS_kexec_file_load),
    any(c::SYS_kexec_load),
    any(c::SYS_keyctl),
    any(c::SYS_mbind),
    any(c::SYS_mount),
    any(c::SYS_mount_setattr),
    any(c::SYS_move_mount),
    any(c::SYS_move_pages),
    any(c::SYS_name_to_handle_at),
    any(c::SYS_open_by_handle_at),
    any(c::SYS_open_tree),
    any(c::SYS_perf_event_open),
    any(c::SYS_pivot_root),
    any(c::SYS_quotactl),
    any(c::SYS_reboot),
    any(c::SYS_request_key),
    any(c::SYS_set_mempolicy),
    any(c::SYS_setns),
    any(c::SYS_settimeofday),
    any(c::SYS_swapoff),
    any(c::SYS_swapon),
    any(c::SYS_syslog),
    any(c::SYS_umount2),
    any(c::SYS_unshare),
    any(c::SYS_userfaultfd),
    any(c::SYS_vhangup),
];

/// ENOSYS: the C library falls back to clone.
const ABSENT: &[Line] = &[any(c::SYS_clone3)];

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let Some(program) = arguments.next() else {
        eprintln!("usage: container PROGRAM [ARGUMENT...]");
        return ExitCode::FAILURE;
    };
    for (list, errno) in [(REFUSED, c::EPERM), (ABSENT, c::ENOSYS)] {
        let installed =
            compile(&[list], Action::Allow, Action::Fail(errno)).and_then(|it| install(&it));
        if let Err(error) = installed {
            eprintln!("container: {error}");
            return ExitCode::FAILURE;
        }
    }
    let error = Command::new(&program).args(arguments).exec();
    eprintln!("container: {}: {error}", program.display());
    ExitCode::FAILURE
}
