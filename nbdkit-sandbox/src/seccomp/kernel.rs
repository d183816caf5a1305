//! The system calls of seccomp(2) that the compiler's crate does not make:
//! SECCOMP_GET_ACTION_AVAIL, and SECCOMP_SET_MODE_FILTER without no_new_privs.

#![expect(unsafe_code, reason = "system calls that no library wraps")]

use nix::errno::Errno;

use super::Program;

/// Whether this kernel has filters that can raise SIGSYS. By a system call, since the file in /proc
/// that lists the actions may be hidden (`ProcSubset=pid`, no /proc).
pub fn are_supported() -> bool {
    /// linux/seccomp.h
    const SECCOMP_GET_ACTION_AVAIL: libc::c_ulong = 2;
    let action: u32 = libc::SECCOMP_RET_TRAP;
    // SAFETY: the kernel reads the number that `action` is, which lives until the call returns.
    let result =
        unsafe { libc::syscall(libc::SYS_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, &raw const action) };
    result == 0
}

/// Installs a filter without setting no_new_privs, which takes CAP_SYS_ADMIN.
///
/// # Errors
/// EACCES; EINVAL: it is too long.
pub(crate) fn install_filter(filter: &Program) -> nix::Result<()> {
    /// linux/seccomp.h
    const SECCOMP_SET_MODE_FILTER: libc::c_ulong = 1;
    let length = u16::try_from(filter.len()).map_err(|_| Errno::EINVAL)?;
    // The compiler's sock_filter has the layout of the one in linux/filter.h: u16, u8, u8, u32.
    const { assert!(size_of::<seccompiler::sock_filter>() == size_of::<libc::sock_filter>()) };
    let program = libc::sock_fprog { len: length, filter: filter.as_ptr().cast_mut().cast() };
    // SAFETY: the kernel reads as many instructions as the vector holds, which lives until the call
    // returns, and writes none.
    let installed =
        unsafe { libc::syscall(libc::SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &raw const program) };
    Errno::result(installed).map(drop)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_kernel_says_what_proc_says() {
        let Ok(actions) = std::fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail") else {
            return;
        };
        assert_eq!(super::are_supported(), actions.split_whitespace().any(|it| it == "trap"));
    }
}
