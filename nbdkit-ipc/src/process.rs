//! fork(2), closing descriptors and exiting in a fork, and handles (pidfd) on processes.

#![expect(
    unsafe_code,
    reason = "fork, _exit, descriptors of the parent, and the pidfd system calls"
)]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;

use nix::errno::Errno;
use nix::libc;
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::signal::Signal;
use nix::unistd::{ForkResult, Pid};

/// fork(2). Returns the child's id, or `None` in the child.
///
/// # Errors
/// EAGAIN, ENOMEM; EBUSY if this process has more than one thread, because the child would have
/// only this one and the locks that others have taken.
pub fn fork() -> nix::Result<Option<Pid>> {
    // A directory has a link for itself, one from its parent, and one from each subdirectory: each
    // thread.
    if std::fs::metadata("/proc/self/task").is_ok_and(|task| task.nlink() != 3) {
        return Err(Errno::EBUSY);
    }
    // SAFETY: the process is single-threaded (checked above, and nothing in between starts a
    // thread), so the child may go on as if nothing had happened.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(Some(child)),
        ForkResult::Child => Ok(None),
    }
}

/// Exits at once, without destructors: in a fork, what they would remove belongs to the parent.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: _exit has no preconditions and does not return.
    unsafe { libc::_exit(status) }
}

/// In a fork, or at the start of a program: closes all descriptors but the standard streams and
/// `kept`.
///
/// # Errors
/// None that a kernel has for this.
pub fn close_all_but(kept: &[BorrowedFd<'_>]) -> nix::Result<()> {
    let mut kept: Vec<RawFd> = kept.iter().map(AsRawFd::as_raw_fd).collect();
    kept.sort_unstable();
    let mut first = libc::STDERR_FILENO + 1;
    for end in kept.into_iter().chain([RawFd::MAX]) {
        if first < end {
            close_range(first, end - 1)?;
        }
        first = end.saturating_add(1);
    }
    Ok(())
}

/// In a fork, or at the start of a program: closes descriptors of the parent that the process does
/// not need.
///
/// # Errors
/// None that a kernel has for this.
pub fn close_range(first: RawFd, last: RawFd) -> nix::Result<()> {
    // SAFETY: takes numbers. By contract with the callers, forks that end without dropping anything
    // they have inherited and programs that have just begun, nothing of what owned these
    // descriptors is used or dropped any more.
    let closed = unsafe { libc::close_range(first.cast_unsigned(), last.cast_unsigned(), 0) };
    match Errno::result(closed) {
        // Before Linux 5.9: one by one. The limit was lowered when fewer were open.
        Err(Errno::ENOSYS) => {
            let (most, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
            let last = last.min(RawFd::try_from(most).unwrap_or(RawFd::MAX));
            for number in first..=last {
                // SAFETY: takes a number. As for close_range(2) above, the callers uphold that
                // nothing which owned these descriptors is used or dropped any more.
                unsafe { libc::close(number) };
            }
            Ok(())
        }
        other => other.map(drop),
    }
}

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
    rest: [u32; 9],
}

impl Process {
    /// `_IOWR(PIDFS_IOCTL_MAGIC, 11, struct pidfd_info)` of linux/pidfd.h. Since Linux 6.13.
    pub const GET_INFO: u64 = 0xc040_ff0b;

    /// Opens a handle on the process that has the id `pid` now.
    ///
    /// # Errors
    /// ESRCH if there is none, ENOSYS before Linux 5.3, EMFILE.
    pub fn open(pid: Pid) -> nix::Result<Process> {
        // SAFETY: takes two integers; a descriptor that nobody else knows (close-on-exec) comes
        // back.
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

    #[test]
    fn a_process_with_threads_does_not_fork() {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || stopped.recv().is_ok());
        assert_eq!(fork(), Err(Errno::EBUSY));
        drop(stop);
        thread.join().unwrap();
    }
}
