//! Signals that must not end a process. They are caught by an empty handler and not ignored
//! (SIG_IGN), which programs that the process executes would inherit.

#![expect(unsafe_code, reason = "signal handlers")]

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

extern "C" fn ignore(_signal: libc::c_int) {}

/// Has these signals do nothing. Interrupted system calls are restarted, as far as the kernel
/// restarts them.
///
/// # Errors
/// EINVAL: one cannot be caught.
pub fn catch(signals: &SigSet) -> nix::Result<()> {
    let action = SigAction::new(SigHandler::Handler(ignore), SaFlags::SA_RESTART, SigSet::empty());
    for signal in signals {
        // SAFETY: the handler does nothing, which is safe in any context.
        unsafe { sigaction(signal, &action) }?;
    }
    Ok(())
}

/// The signals that a terminal, a service manager or logrotate(8) may send to all processes at
/// once. Only the listener acts on them.
pub fn of_all_processes() -> SigSet {
    use Signal::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1};
    SigSet::from_iter([SIGINT, SIGQUIT, SIGTERM, SIGHUP, SIGUSR1])
}

/// Makes a file that may not grow further (`ulimit -f`) an error of the writing call, EFBIG, and
/// not the end of the process. setrlimit(2).
pub fn survive_file_size_limit() {
    // SIGXFSZ can be caught, so this does not fail.
    let _ = catch(&SigSet::from(Signal::SIGXFSZ));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_that_is_caught_does_not_end_the_process() {
        catch(&SigSet::from(Signal::SIGUSR2)).unwrap();
        nix::sys::signal::raise(Signal::SIGUSR2).unwrap();
        assert!(catch(&SigSet::from(Signal::SIGKILL)).is_err());
    }
}
