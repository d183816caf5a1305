//! What this program does first. The spawner's only unsafe code.

#![expect(unsafe_code, reason = "signal handlers")]

use nbdkit_ipc::program::signals_of_all;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, sigaction};

extern "C" fn ignore(_signal: libc::c_int) {}

/// Signals that are sent to all processes at once do nothing here; until now the listener had them blocked. Handlers and
/// not SIG_IGN, which programs would inherit.
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
