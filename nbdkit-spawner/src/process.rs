//! The spawner's signals. Its only unsafe code.

#![expect(unsafe_code, reason = "signal handlers")]

use nbdkit_ipc::program::signals_of_all;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, sigaction};

extern "C" fn ignore(_signal: libc::c_int) {}

/// Ignores the signals that are sent to all processes at once, which the listener has blocked until
/// now. By empty handlers, since programs that are executed would inherit SIG_IGN.
///
/// # Errors
/// None that a kernel has for this.
pub(crate) fn leave_signals_to_listener() -> nix::Result<()> {
    let action = SigAction::new(SigHandler::Handler(ignore), SaFlags::SA_RESTART, SigSet::empty());
    let signals = signals_of_all();
    for signal in &signals {
        // SAFETY: the handler does nothing, which is safe in any context.
        unsafe { sigaction(signal, &action) }?;
    }
    signals.thread_unblock()
}
