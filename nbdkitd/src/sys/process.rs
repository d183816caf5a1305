//! SIGXFSZ, which must not kill this process.

#![expect(unsafe_code, reason = "a signal handler")]

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

extern "C" fn ignore(_signal: libc::c_int) {}

/// Writing to a log file or pid file beyond the limit (`ulimit -f`) then fails with EFBIG, and does
/// not kill the process. A handler and not SIG_IGN, which the command of `--run` would inherit.
/// setrlimit(2).
pub(crate) fn survive_file_size_limit() {
    let action = SigAction::new(SigHandler::Handler(ignore), SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: the handler does nothing, which is safe in any context. It does not fail for a signal
    // that can be caught.
    let _ = unsafe { sigaction(Signal::SIGXFSZ, &action) };
}

/// Test only: a worker that logs `listener: system call NUMBER` has this process make it, as if it
/// was taken over; and `listener: send to PATH` has it send a datagram there, by the sockets that
/// it has.
#[cfg(feature = "red-team")]
pub(crate) fn call_for_test(text: &str) {
    if let Some(path) = text.strip_prefix("listener: send to ") {
        return send_for_test(path);
    }
    let number = text.strip_prefix("listener: system call ").and_then(|text| text.parse().ok());
    if let Some(number) = number {
        let number: libc::c_long = number;
        // SAFETY: not upheld for all numbers; only a build for the red team has this function, and
        // it asks for it.
        unsafe { libc::syscall(number, 0, 0, 0, 0, 0, 0) };
    }
}

#[cfg(feature = "red-team")]
fn send_for_test(path: &str) {
    use nix::sys::socket::{MsgFlags, SockType, UnixAddr, getsockopt, sendto, sockopt};
    use std::os::fd::{AsRawFd, BorrowedFd};
    let Ok(address) = UnixAddr::new(path) else { return };
    for number in 3..64 {
        // SAFETY: borrowed for two calls, which fail with EBADF if the number is no open
        // descriptor.
        let fd = unsafe { BorrowedFd::borrow_raw(number) };
        if getsockopt(&fd, sockopt::SockType) == Ok(SockType::Datagram) {
            let _ = sendto(fd.as_raw_fd(), b"from the listener", &address, MsgFlags::MSG_DONTWAIT);
        }
    }
}
