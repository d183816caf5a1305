//! Asks the kernel what it can do, and has it do what the compiler's crate does not: seccomp(2),
//! SECCOMP_GET_ACTION_AVAIL and SECCOMP_SET_MODE_FILTER.

#![expect(unsafe_code, reason = "system calls that no library wraps")]

use nix::errno::Errno;

use crate::Program;

/// Whether this kernel has filters that can refuse calls with SIGSYS: asked of the kernel itself,
/// since a file that says so may be hidden (`ProcSubset=pid`, no /proc).
pub fn are_supported() -> bool {
    /// linux/seccomp.h
    const SECCOMP_GET_ACTION_AVAIL: libc::c_ulong = 2;
    let action: u32 = libc::SECCOMP_RET_TRAP;
    // SAFETY: reads one number of ours and changes nothing.
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
    // sock_filter of the compiler is that of linux/filter.h: two bytes, two of one, four.
    const { assert!(size_of::<seccompiler::sock_filter>() == size_of::<libc::sock_filter>()) };
    let program = libc::sock_fprog { len: length, filter: filter.as_ptr().cast_mut().cast() };
    // SAFETY: the kernel reads as many instructions as the vector holds, which lives until the call
    // returns, and writes none.
    let installed =
        unsafe { libc::syscall(libc::SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &raw const program) };
    Errno::result(installed).map(drop)
}

/// Which version of Landlock this kernel has; 0: none, or it is switched off.
/// landlock_create_ruleset(2), LANDLOCK_CREATE_RULESET_VERSION.
pub fn landlock() -> u32 {
    /// linux/landlock.h
    const VERSION: libc::c_ulong = 1;
    let nothing = std::ptr::null::<libc::c_void>();
    // SAFETY: with this flag it reads no memory and makes no descriptor.
    let version =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, nothing, 0_usize, VERSION) };
    u32::try_from(version).unwrap_or(0)
}

/// What Landlock of this version does not restrict although later ones do; `None` if it restricts
/// all that we ask for. landlock(7).
pub fn landlock_lacks(version: u32) -> Option<String> {
    /// By the first version that has it.
    const LATER: [(u32, &str); 4] = [
        (3, "truncation"),
        (4, "TCP"),
        (5, "ioctl of devices"),
        (6, "signals and abstract sockets"),
    ];
    let lacks: Vec<&str> =
        LATER.iter().filter(|(first, _)| version < *first).map(|(_, what)| *what).collect();
    (!lacks.is_empty()).then(|| lacks.join(", "))
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_versions_of_landlock_lack() {
        let of = |version| super::landlock_lacks(version);
        let old = "truncation, TCP, ioctl of devices, signals and abstract sockets";
        assert_eq!(of(2).as_deref(), Some(old));
        assert_eq!(of(4).as_deref(), Some("ioctl of devices, signals and abstract sockets"));
        assert_eq!(of(6), None);
        assert_eq!(of(7), None);
    }

    #[test]
    fn the_kernel_says_what_proc_says() {
        let Ok(actions) = std::fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail") else {
            return;
        };
        assert_eq!(super::are_supported(), actions.split_whitespace().any(|it| it == "trap"));
    }
}
