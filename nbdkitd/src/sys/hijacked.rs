//! Test only: a listener that behaves as if a worker had taken it over.

#![expect(unsafe_code, reason = "any system call, and any descriptor")]

/// Does what the log line of a worker says: with `listener: system call NUMBER` it makes that call,
/// with `listener: send to PATH` it sends a datagram there by each socket that it has.
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
