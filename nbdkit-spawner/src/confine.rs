//! The spawner's seccomp filter. A new template inherits it, and has to start as the first one did,
//! so only the calls of [`lists::NEVER`] are denied, which no stack makes while it starts.
//!
//! Installing a filter takes CAP_SYS_ADMIN, or no_new_privs, which is inherited, too. Root's
//! spawner has the capability. The spawner of an ordinary user, or in a container, sets
//! no_new_privs only if no program that the stack executes may gain privileges (`gains`): with
//! scripts, and with code that declares nothing, a set-user-id program may be part of the start
//! (fusermount3), and the spawner has no filter. seccomp(2).

#![forbid(unsafe_code)]

use nbdkit_sandbox::capabilities::{self, Capability};
use nbdkit_sandbox::lists;
use nbdkit_sandbox::seccomp::{Action, Program, are_supported, compile, install, install_as_admin};
use nix::sys::prctl;

/// Installs the filter, where that changes nothing else for a template. Called before capabilities
/// are dropped. `gains`: whether programs that a stack executes may gain privileges.
///
/// # Errors
/// The kernel refuses the filter; one line.
pub(crate) fn confine(gains: bool) -> Result<(), String> {
    if !are_supported() {
        // The listener has logged that the kernel has no filters.
        return Ok(());
    }
    let filter = filter().map_err(|error| error.to_string())?;
    if capabilities::has(Capability::CAP_SYS_ADMIN).unwrap_or(false) {
        return install_as_admin(&filter).map_err(|error| error.to_string());
    }
    if !gains || prctl::get_no_new_privs() == Ok(true) {
        return install(&filter).map_err(|error| error.to_string());
    }
    Ok(())
}

fn filter() -> nbdkit_sandbox::Result<Program> {
    compile(&[lists::NEVER, lists::TERMINAL], Action::Allow, Action::Fail(libc::EPERM))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::errno::Errno;
    use nix::sched::{CloneFlags, unshare};

    /// A filter holds for the thread that installs it, here one of the test's own.
    #[test]
    fn what_starts_a_stack_is_not_refused_and_what_nobody_calls_is() {
        std::thread::spawn(|| {
            prctl::set_no_new_privs().unwrap();
            let fs = CloneFlags::CLONE_FS;
            install(&filter().unwrap()).unwrap();
            assert_eq!(unshare(fs), Ok(()));
            // Before anything is looked at: no such clock.
            let clock = nix::time::ClockId::from_raw(libc::c_int::MAX);
            let now = nix::sys::time::TimeSpec::new(0, 0);
            let set = nix::time::clock_settime(clock, now);
            assert_eq!(set, Err(Errno::EPERM));
        })
        .join()
        .unwrap();
    }
}
