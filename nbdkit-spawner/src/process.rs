//! Fork, and what a fork does last. The spawner's only unsafe code.

#![expect(unsafe_code, reason = "fork, _exit, signal handlers")]

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::unistd::{ForkResult, Pid};

/// Makes a copy of this process. Returns the copy's id, or `None` in the copy.
///
/// # Errors
/// EAGAIN, ENOMEM.
pub(crate) fn fork() -> nix::Result<Option<Pid>> {
    // SAFETY: nothing in this program starts a thread, so the child may go on as if nothing had happened.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(Some(child)),
        ForkResult::Child => Ok(None),
    }
}

/// Ends the process at once: a fork has nothing to clean up.
pub(crate) fn exit_now(status: i32) -> ! {
    // SAFETY: _exit has no preconditions and does not return.
    unsafe { libc::_exit(status) }
}

extern "C" fn ignore(_signal: libc::c_int) {}

/// Signals that a terminal or a service manager sends to all processes at once do nothing here. Handlers and not SIG_IGN,
/// which programs would inherit.
///
/// # Errors
/// None that a kernel has for this.
pub(crate) fn leave_signals_to_listener() -> nix::Result<()> {
    let action = SigAction::new(SigHandler::Handler(ignore), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler does nothing, which is safe in any context.
        unsafe { sigaction(signal, &action) }?;
    }
    Ok(())
}
