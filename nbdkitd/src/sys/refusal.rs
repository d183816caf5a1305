//! Logs a system call of the listener that its seccomp filter has refused, which ends the listener.

#![expect(unsafe_code, reason = "a signal handler")]

use std::os::fd::RawFd;
use std::sync::OnceLock;

use nbdkit_sandbox::process::exit_now;
use nbdkit_sandbox::seccomp::on_refusal;
use nix::sys::socket::{SockaddrLike, UnixAddr};

use crate::log::syscalls;

/// The descriptor and address that the line is written to, and its prefix.
static LOG: OnceLock<Place> = OnceLock::new();

struct Place {
    fd: RawFd,
    /// For a datagram socket that is not, or no longer, connected.
    address: Option<UnixAddr>,
    head: Vec<u8>,
}

/// Exit status of a listener whose system call was refused.
const REFUSED: i32 = 1;

/// Sets where the line is written to. Only the first call has an effect.
pub(crate) fn log_to(fd: RawFd, address: Option<UnixAddr>, head: &str) {
    let _ = LOG.set(Place { fd, address, head: head.as_bytes().to_vec() });
}

/// Installs the signal handler that logs a refused system call.
///
/// # Errors
/// None that a kernel has for this.
pub(crate) fn report() -> nix::Result<()> {
    // SAFETY: it reads statics that are set, and calls write(2), sendto(2) and _exit(2): all
    // async-signal-safe.
    unsafe { on_refusal(refused) }
}

/// A system call was refused.
fn refused(syscall: u32) -> ! {
    let mut line = Line { bytes: [0; 256], length: 0 };
    let place = LOG.get();
    line.push(place.map_or(b"nbdkit: error: ", |place| &place.head));
    line.push(b"the sandbox refused system call ");
    line.push_number(syscall);
    if let Some(name) = syscalls::name(syscall) {
        line.push(b" (");
        line.push(name.as_bytes());
        line.push(b")");
    }
    line.push(b" to the listener, which ends\n");
    let fd = place.map_or(libc::STDERR_FILENO, |place| place.fd);
    let (bytes, length) = (line.bytes.as_ptr().cast(), line.length);
    // SAFETY: writes bytes of this function's buffer; a number that is no descriptor is an error.
    let written = unsafe { libc::write(fd, bytes, length) };
    if written < 0
        && let Some(to) = place.and_then(|place| place.address.as_ref())
    {
        let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
        // SAFETY: sends bytes of this function's buffer to an address in a static; a number that is
        // no socket is an error.
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
        for (place, byte) in self.bytes.iter_mut().skip(self.length).zip(text) {
            *place = *byte;
            self.length += 1;
        }
    }

    fn push_number(&mut self, number: u32) {
        let mut digits = [0; 10];
        let mut first = digits.len();
        let mut rest = number;
        loop {
            first -= 1;
            digits[first] = b'0' + (rest % 10) as u8;
            rest /= 10;
            if rest == 0 {
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
    fn a_line_is_made_without_memory_and_cut_where_it_ends() {
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
