//! Handles on processes that cannot come to mean another process.

#![expect(unsafe_code, reason = "a signal handler, and the pidfd system calls")]

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::unistd::Pid;

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

/// A process, whatever becomes of its number. pidfd_open(2).
#[derive(Debug)]
pub(crate) struct Process(OwnedFd);

impl Process {
    /// The process that has the number `pid` now.
    ///
    /// # Errors
    /// ESRCH if there is none, ENOSYS before Linux 5.3, EMFILE.
    pub(crate) fn open(pid: Pid) -> nix::Result<Process> {
        // SAFETY: takes two integers; a descriptor that nobody else knows (close-on-exec) comes back.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
        let fd = RawFd::try_from(Errno::result(fd)?).map_err(|_| Errno::EBADF)?;
        // SAFETY: the kernel has just made it for us.
        Ok(Process(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Sends a signal; `None` only checks that the process has not been reaped.
    ///
    /// # Errors
    /// ESRCH, EPERM.
    pub(crate) fn signal(&self, signal: Option<Signal>) -> nix::Result<()> {
        let number = signal.map_or(0, |signal| signal as i32);
        // SAFETY: the descriptor is ours and open; no siginfo is passed.
        let sent = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.0.as_raw_fd(),
                number,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        Errno::result(sent).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_outlives_its_process_and_then_says_so() {
        let mut child = std::process::Command::new("/bin/sleep").arg("60").spawn().unwrap();
        let process = Process::open(Pid::from_raw(child.id() as i32)).unwrap();
        assert_eq!(process.signal(None), Ok(()));
        process.signal(Some(Signal::SIGKILL)).unwrap();
        child.wait().unwrap();
        assert_eq!(process.signal(None), Err(Errno::ESRCH));
    }
}
