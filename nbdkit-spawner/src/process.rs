//! What this program does first. The spawner's only unsafe code.

#![expect(unsafe_code, reason = "signal handlers, descriptors of nobody")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

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

/// Closes all descriptors but the standard streams and `kept`: what the caller of the server has left open is the template's,
/// whose plugin it may be meant for, and not this process's.
///
/// # Errors
/// /proc cannot be read.
pub(crate) fn close_all_but(kept: BorrowedFd<'_>) -> io::Result<()> {
    let numbers: Vec<RawFd> = std::fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    for number in numbers {
        if number > libc::STDERR_FILENO && number != kept.as_raw_fd() {
            // SAFETY: this program, which has just begun, has opened nothing but `kept`. The directory that was read is
            // closed already: EBADF.
            unsafe { libc::close(number) };
        }
    }
    Ok(())
}
