//! The listener's own last words: its filter refused a system call, which ends it. The log says which.

#![expect(unsafe_code, reason = "a signal handler")]

use std::os::fd::RawFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, Ordering};

use nbdkit_ipc::process::exit_now;

use crate::log::syscalls;

/// Where the line goes, and how it begins: what the log needs before the text.
static LOG: AtomicI32 = AtomicI32::new(libc::STDERR_FILENO);
static HEAD: OnceLock<Vec<u8>> = OnceLock::new();

/// Exit status of a listener that was refused a system call.
const REFUSED: i32 = 1;

/// Says where a line of the log would go now.
pub(crate) fn log_to(fd: RawFd, head: &str) {
    LOG.store(fd, Ordering::Relaxed);
    let _ = HEAD.set(head.as_bytes().to_vec());
}

/// Has a refused system call logged.
///
/// # Errors
/// None that a kernel has for this.
pub(crate) fn report() -> nix::Result<()> {
    // SAFETY: it reads statics, and calls write(2) and _exit(2): all async-signal-safe.
    unsafe { nbdkit_sandbox_policy::on_refusal(refused) }
}

/// A system call was refused.
fn refused(syscall: u32) -> ! {
    let mut line = Line { bytes: [0; 256], length: 0 };
    line.push(HEAD.get().map_or(b"nbdkit: error: ", Vec::as_slice));
    line.push(b"the sandbox refused system call ");
    line.push_number(syscall);
    if let Some(name) = syscalls::name(syscall) {
        line.push(b" (");
        line.push(name.as_bytes());
        line.push(b")");
    }
    line.push(b" to the listener, which ends\n");
    // SAFETY: writes bytes of ours; a number that is no descriptor is an error.
    unsafe {
        libc::write(LOG.load(Ordering::Relaxed), line.bytes.as_ptr().cast(), line.length);
    }
    exit_now(REFUSED);
}

/// Text on the stack; what does not fit is cut.
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
