//! What this kernel's Landlock can do. landlock_create_ruleset(2), LANDLOCK_CREATE_RULESET_VERSION.

#![expect(unsafe_code, reason = "a system call that no library wraps")]

/// Which version of Landlock this kernel has; 0: none, or it is switched off.
pub fn version() -> u32 {
    /// linux/landlock.h
    const VERSION: libc::c_ulong = 1;
    let nothing = std::ptr::null::<libc::c_void>();
    // SAFETY: with this flag the kernel reads no memory (it refuses any pointer but null and any
    // size but 0) and makes no descriptor.
    let version =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, nothing, 0_usize, VERSION) };
    u32::try_from(version).unwrap_or(0)
}

/// What Landlock of this version does not restrict although later ones do; `None` if it restricts
/// all that [`Rules`](super::Rules) ask for. landlock(7).
pub fn lacks(version: u32) -> Option<String> {
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
        let old = "truncation, TCP, ioctl of devices, signals and abstract sockets";
        assert_eq!(super::lacks(2).as_deref(), Some(old));
        assert_eq!(
            super::lacks(4).as_deref(),
            Some("ioctl of devices, signals and abstract sockets")
        );
        assert_eq!(super::lacks(6), None);
        assert_eq!(super::lacks(7), None);
    }
}
