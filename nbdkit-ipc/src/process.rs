//! Handles (pidfd) on processes, as messages carry them.

#![expect(unsafe_code, reason = "the pidfd system calls")]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

/// A handle on a process, which never refers to another one. pidfd_open(2).
#[derive(Debug)]
pub struct Process(OwnedFd);

/// What the kernel reports about a process. `struct pidfd_info` of linux/pidfd.h, its first
/// version.
#[repr(C)]
#[derive(Default)]
struct Info {
    mask: u64,
    control_group: u64,
    pid: u32,
    thread_group: u32,
    parent: u32,
    /// Real, effective, saved and file-system ids of user and group, the exit status.
    ids_and_status: [u32; 9],
}

impl Process {
    /// `_IOWR(PIDFS_IOCTL_MAGIC, 11, struct pidfd_info)` of linux/pidfd.h. Since Linux 6.13.
    pub const GET_INFO: u64 = 0xc040_ff0b;

    /// Opens a handle on the process that has the id `pid` now.
    ///
    /// # Errors
    /// ESRCH if there is none, ENOSYS before Linux 5.3, EMFILE.
    pub fn open(pid: Pid) -> nix::Result<Process> {
        // SAFETY: takes two integers and returns a new descriptor, which is close-on-exec.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
        let fd = RawFd::try_from(Errno::result(fd)?).map_err(|_| Errno::EBADF)?;
        // SAFETY: pidfd_open(2) has just returned this descriptor, and nothing else owns it.
        Ok(Process(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// A descriptor that another process has sent as a handle. Whether it is one is checked when it
    /// is used.
    pub fn from_fd(fd: OwnedFd) -> Process {
        Process(fd)
    }

    /// Sends a signal; `None` only checks that the process has not been reaped.
    ///
    /// # Errors
    /// ESRCH, EPERM; EBADF if the descriptor is no handle on a process.
    pub fn signal(&self, signal: Option<Signal>) -> nix::Result<()> {
        let number = signal.map_or(0, |signal| signal as i32);
        // SAFETY: `self` owns the descriptor, which is open. With a null siginfo the kernel reads
        // no memory.
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

    /// The process's id and its parent's. Needs neither /proc nor a free descriptor. A zombie has
    /// both.
    ///
    /// # Errors
    /// ESRCH if it was reaped, ENOTTY before Linux 6.13.
    pub fn identity(&self) -> nix::Result<(Pid, Pid)> {
        /// PIDFD_INFO_PID: number, thread group and parent.
        const NUMBERS: u64 = 1;
        // Not for any descriptor: what an ioctl(2) does depends on the driver.
        self.signal(None)?;
        let mut info = Info { mask: NUMBERS, ..Info::default() };
        // SAFETY: the descriptor is a handle on a process (checked above), and the kernel writes to
        // the structure at most as many bytes as the number of the ioctl says, which is its size.
        let result = unsafe {
            libc::ioctl(self.0.as_raw_fd(), Self::GET_INFO as libc::Ioctl, &raw mut info)
        };
        Errno::result(result)?;
        let number = |id: u32| Pid::from_raw(id.cast_signed());
        Ok((number(info.thread_group), number(info.parent)))
    }
}

impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_on_a_process_that_has_ended_reports_it() {
        assert_eq!(size_of::<Info>() as u64, (Process::GET_INFO >> 16) & 0x3fff);
        let mut child = std::process::Command::new("/bin/sleep").arg("60").spawn().unwrap();
        let pid = Pid::from_raw(child.id().cast_signed());
        let process = Process::open(pid).unwrap();
        assert_eq!(process.signal(None), Ok(()));
        match process.identity() {
            Ok(identity) => assert_eq!(identity, (pid, Pid::this())),
            Err(errno) => assert_eq!(errno, Errno::ENOTTY, "before Linux 6.13"),
        }
        process.signal(Some(Signal::SIGKILL)).unwrap();
        child.wait().unwrap();
        assert_eq!(process.signal(None), Err(Errno::ESRCH));
        assert_eq!(process.identity(), Err(Errno::ESRCH));
    }

    #[test]
    fn a_descriptor_that_is_no_handle_is_refused() {
        let null = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(Process::from_fd(null.into()).identity(), Err(Errno::EBADF));
    }
}
