//! Logs a system call of the listener that its seccomp filter has refused, which ends the listener.

#![expect(unsafe_code, reason = "a signal handler")]

use std::os::fd::RawFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, Ordering};

use nbdkit_sandbox::process::exit_now;
use nbdkit_sandbox::seccomp::on_refusal;
use nix::sys::socket::{SockaddrLike, UnixAddr};

use crate::log::syscalls;

/// The descriptor and address that the line is written to, and its prefix.
static LOG: OnceLock<Destination> = OnceLock::new();

struct Destination {
    fd: AtomicI32,
    /// For a datagram socket that is not, or no longer, connected.
    address: Option<UnixAddr>,
    head: Vec<u8>,
}

/// Exit status of a listener whose system call was refused.
const REFUSED: i32 = 1;

/// Sets where the line is written to. Only the first call has an effect.
pub(crate) fn log_to(fd: RawFd, address: Option<UnixAddr>, head: &str) {
    let _ = LOG.set(Destination { fd: fd.into(), address, head: head.as_bytes().to_vec() });
}

/// The log has another descriptor now.
pub(crate) fn redirect(fd: RawFd) {
    if let Some(log) = LOG.get() {
        log.fd.store(fd, Ordering::Relaxed);
    }
}

/// Installs the signal handler that logs a refused system call.
///
/// # Errors
/// sigaction(2) has none for SIGSYS.
pub(crate) fn report() -> nix::Result<()> {
    // SAFETY: `refused` reads a static that is set already and its own stack, and calls write(2),
    // sendto(2) and _exit(2), which are async-signal-safe.
    unsafe { on_refusal(refused) }
}

/// Logs the refused system call, and ends the listener. Async-signal-safe.
fn refused(syscall: u32) -> ! {
    let mut line = Line { bytes: [0; 256], length: 0 };
    let log = LOG.get();
    line.push(log.map_or(b"nbdkit: error: ", |log| &log.head));
    line.push(b"the sandbox refused system call ");
    line.push_number(syscall);
    if let Some(name) = syscalls::name(syscall) {
        line.push(b" (");
        line.push(name.as_bytes());
        line.push(b")");
    }
    line.push(b" to the listener, which ends\n");
    let fd = log.map_or(libc::STDERR_FILENO, |log| log.fd.load(Ordering::Relaxed));
    let (bytes, length) = (line.bytes.as_ptr().cast(), line.length);
    // SAFETY: reads `length` bytes of `line`, which is at least as long; EBADF if the number is no
    // descriptor.
    let written = unsafe { libc::write(fd, bytes, length) };
    if written < 0
        && let Some(to) = log.and_then(|log| log.address.as_ref())
    {
        let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
        // SAFETY: reads `length` bytes of `line`, which is at least as long, and the address, which
        // is in a static; ENOTSOCK if the number is no socket.
        unsafe { libc::sendto(fd, bytes, length, flags, to.as_ptr().cast(), to.len()) };
    }
    exit_now(REFUSED);
}

/// Text on the stack, truncated to its size.
struct Line {
    bytes: [u8; 256],
    length: usize,
}

impl Line {
    fn push(&mut self, text: &[u8]) {
        for (free, byte) in self.bytes.iter_mut().skip(self.length).zip(text) {
            *free = *byte;
            self.length += 1;
        }
    }

    fn push_number(&mut self, number: u32) {
        let mut digits = [0; 10];
        let mut first = digits.len();
        let mut number = number;
        loop {
            first -= 1;
            digits[first] = b'0' + (number % 10) as u8;
            number /= 10;
            if number == 0 {
                break;
            }
        }
        self.push(&digits[first..]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_made_on_the_stack_and_cut_at_its_size() {
        let mut line = Line { bytes: [0; 256], length: 0 };
        for number in [0, 101, u32::MAX] {
            line.push_number(number);
            line.push(b" ");
        }
        assert_eq!(&line.bytes[..line.length], b"0 101 4294967295 ");
        line.push(&[b'x'; 300]);
        assert_eq!(line.length, 256);
    }
}
