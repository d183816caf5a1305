//! A limit that is not to end this process.

#![expect(unsafe_code, reason = "a signal handler")]

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

extern "C" fn ignore(_signal: libc::c_int) {}

/// Makes a log file or a pid file that may not grow further (`ulimit -f`) an error, EFBIG, and not the end of the process.
/// A handler and not SIG_IGN, which the command of `--run` would inherit. setrlimit(2).
pub(crate) fn survive_file_size_limit() {
    let action = SigAction::new(SigHandler::Handler(ignore), SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: the handler does nothing, which is safe in any context. It does not fail for a signal that can be caught.
    let _ = unsafe { sigaction(Signal::SIGXFSZ, &action) };
}

/// Test only: a worker that says `listener: system call NUMBER` has this process make it, as if it was taken over.
#[cfg(feature = "red-team")]
pub(crate) fn call_for_test(text: &str) {
    let number = text.strip_prefix("listener: system call ").and_then(|text| text.parse().ok());
    if let Some(number) = number {
        let number: libc::c_long = number;
        // SAFETY: not upheld for all numbers; whoever runs such a build asked for it.
        unsafe { libc::syscall(number, 0, 0, 0, 0, 0, 0) };
    }
}
