//! What the spawner may not call. What it executes inherits that: a new template, which has yet to start as the first one did,
//! so the list is [`lists::NEVER`], what no stack calls while it starts.
//!
//! A filter takes the right to administer the machine, or no_new_privs, which is inherited, too. Root's spawner has the first, so
//! its templates are as they were. Others, an ordinary user's or in a container, set no_new_privs only if nothing that the stack
//! executes can gain privileges anyway (`gains`): with scripts, and with code that declares nothing, a set-user-id program may be part
//! of the start (fusermount3), and the spawner has no filter. seccomp(2).

#![forbid(unsafe_code)]

use caps::{CapSet, Capability};
use nbdkit_sandbox_policy::{Action, Program, are_supported, compile, install, lists};
use nix::sys::prctl;

/// Installs the filter, where that changes nothing else for a template. Called before capabilities are dropped. `gains`: whether
/// what a stack starts may gain privileges by being executed.
///
/// # Errors
/// The kernel refuses the filter; one line.
pub(crate) fn confine(gains: bool) -> Result<(), String> {
    if !are_supported() {
        // The listener has said so.
        return Ok(());
    }
    let filter = filter().map_err(|error| error.to_string())?;
    let has = |set, capability| caps::has_cap(None, set, capability).unwrap_or(false);
    if has(CapSet::Effective, Capability::CAP_SYS_ADMIN) {
        return nbdkit_sandbox_policy::install_by_right(&filter).map_err(|error| error.to_string());
    }
    if !gains || prctl::get_no_new_privs() == Ok(true) {
        return install(&filter).map_err(|error| error.to_string());
    }
    Ok(())
}

fn filter() -> Result<Program, nbdkit_sandbox_policy::Broken> {
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
