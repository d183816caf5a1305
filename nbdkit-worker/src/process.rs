//! System calls that have no safe wrapper: signal handlers, which end a client or report a refused
//! system call, and giving unused memory back to the kernel. Template, worker and broker run this.

#![expect(unsafe_code, reason = "signal handlers, madvise, malloc_trim")]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, Ordering};
use std::time::Duration;

use nbdkit_api::{ResultExt, client};
use nbdkit_ipc::{WorkerExit, refusal};
pub(crate) use nbdkit_sandbox::process::{
    close_all_but, close_range, exit_now, fork, is_single_threaded,
};
use nbdkit_sandbox::{seccomp, signals};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpid, gettid};

use crate::connection::activity::{self, Activity};

/// Waits for a child to end, at most so many milliseconds.
pub(crate) fn wait_for(child: Pid, milliseconds: u16) {
    for _ in 0..milliseconds {
        match waitpid(child, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => {}
            Ok(_) | Err(_) => return,
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Whether a regular file is open for writing, a memfd for example. Files of /proc have no size and
/// no limit of it.
pub(crate) fn has_writable_file() -> bool {
    descriptors().into_iter().any(|number| {
        // SAFETY: takes numbers; EBADF if one is no descriptor.
        let flags = unsafe { libc::fcntl(number, libc::F_GETFL) };
        if flags == -1 || flags & libc::O_ACCMODE == libc::O_RDONLY {
            return false;
        }
        // SAFETY: borrowed for fstat(2) and fstatfs(2) only. It was open at the fcntl(2) before; if
        // a thread of code in C closes it meanwhile, they fail or report another file, and nothing
        // is read or written through it.
        let file = unsafe { BorrowedFd::borrow_raw(number) };
        let is_proc =
            || fstatfs(file).is_ok_and(|system| system.filesystem_type() == PROC_SUPER_MAGIC);
        !nix::sys::stat::fstat(file).is_ok_and(|stat| stat.st_mode & libc::S_IFMT != libc::S_IFREG)
            && !is_proc()
    })
}

/// All descriptors of this process; without /proc, all numbers that may be one.
fn descriptors() -> Vec<RawFd> {
    /// What Linux allows, unless fs.nr_open was raised.
    const MOST: u64 = 1 << 20;
    if let Ok(entries) = std::fs::read_dir("/proc/self/fd") {
        let name = |entry: std::io::Result<std::fs::DirEntry>| {
            entry.ok()?.file_name().to_str()?.parse().ok()
        };
        return entries.filter_map(name).collect();
    }
    // Without /proc any number may be one.
    let most = getrlimit(Resource::RLIMIT_NOFILE).map_or(MOST, |(most, _)| most.min(MOST));
    (0..RawFd::try_from(most).unwrap_or(RawFd::MAX)).collect()
}

/// Gives the free memory that malloc keeps back to the kernel. malloc keeps more of it after large
/// blocks were freed. malloc_trim(3).
pub(crate) fn release_heap() {
    // SAFETY: takes a number. malloc_trim is thread-safe and moves no block that is in use.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}

/// For `--swap`: malloc never returns memory to the kernel, uses one arena, and maps no large
/// blocks separately, so that every thread allocates from what [`reserve_heap`] has added to the
/// heap. Inherited by forks. mallopt(3).
pub(crate) fn keep_heap() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in
        [(libc::M_MMAP_MAX, 0), (libc::M_TRIM_THRESHOLD, -1), (libc::M_ARENA_MAX, 1)]
    {
        // SAFETY: takes numbers. mallopt takes malloc's lock, so other threads may allocate.
        unsafe { libc::mallopt(parameter, value) };
    }
}

/// For `--swap`: grows the heap until it has a free block of so many bytes. With mlockall(2),
/// MCL_FUTURE, its pages are allocated at once.
///
/// # Errors
/// ENOMEM: there is not enough memory, or RLIMIT_MEMLOCK is reached.
pub(crate) fn reserve_heap(bytes: usize) -> nbdkit_api::Result<()> {
    let mut block = Vec::<u8>::new();
    block.try_reserve_exact(bytes).map_err(|_| {
        let mib = bytes >> 20;
        let text = format!("{mib} MiB cannot be locked (raise RLIMIT_MEMLOCK, see ulimit -l)");
        nbdkit_api::Error::new(nbdkit_api::Errno::ENOMEM, text)
    })?;
    // Keeps the compiler from removing the allocation, which is freed unused.
    std::hint::black_box(block.as_mut_ptr());
    Ok(())
}

/// For `--swap`: touches the pages of this thread's stack that serving a client may use. To be
/// called before mlockall(2): a locked stack that grows beyond RLIMIT_MEMLOCK ends the process by
/// SIGSEGV.
#[inline(never)]
pub(crate) fn touch_stack() {
    /// Several times what requests use, with a page of the zstd allocator on the stack, and TLS,
    /// bytes.
    const DEPTH: usize = 512 * 1024;
    std::hint::black_box(&mut [0_u8; DEPTH]);
}

/// Gives the pages of the stack back that calls which have returned have used, below the caller's
/// frames. Only on a worker's first thread, whose stack has nothing mapped below it for 128 MiB.
#[inline(never)]
pub(crate) fn release_stack() {
    /// More than a handshake or a request uses, bytes.
    const REACH: usize = 64 * 1024;
    /// The frames of this function and of what it calls, bytes.
    const OURS: usize = 1024;
    /// Where pages are larger, madvise(2) may fail, and nothing is given back.
    const PAGE: usize = 4096;
    if !IS_WORKER.load(Ordering::Relaxed) || gettid() != getpid() {
        return;
    }
    let here = 0_u8;
    let end = (&raw const here as usize).saturating_sub(OURS) & !(PAGE - 1);
    // SAFETY: no live frame is below the stack pointer, and `OURS` leaves those of this call alone.
    // The kernel keeps a gap of 128 MiB between this thread's stack and other mappings, so the
    // range is of the stack only, or unmapped.
    unsafe {
        libc::madvise(
            std::ptr::without_provenance_mut(end.saturating_sub(REACH)),
            REACH,
            libc::MADV_DONTNEED,
        );
    }
}

/// Has the signals that a terminal or a service manager sends to all processes at once do nothing:
/// the listener gets them too, and sends messages. And has SIGIO end the client of a worker, see
/// [`end_client_on_message`].
pub(crate) fn leave_signals_to_listener() {
    // These can be caught, so this does not fail.
    let _ = signals::catch(&signals::of_all_processes());
    let handler = SigHandler::Handler(messaged);
    let action = SigAction::new(handler, SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler only touches atomics, and calls poll(2), shutdown(2), sigaction(2) and
    // setitimer(2), which are async-signal-safe or, like setitimer(2), a system call that uses no
    // memory but its arguments'.
    let _ = unsafe { sigaction(Signal::SIGIO, &action) };
}

// Descriptors of this process for signal handlers. 0, which is the null device here, stands for
// none, and not -1: variables that are zero at first are in .bss, on the page that a worker writes
// anyway. Each further page that it writes is copied.

/// The client's socket of this worker.
static CLIENT: AtomicI32 = AtomicI32::new(0);
/// What its connection does. Null before there is one; then it lives for ever.
static ACTIVITY: AtomicPtr<Activity> = AtomicPtr::new(std::ptr::null_mut());
/// The control channel of this worker, see [`end_client_on_message`].
static WATCHED: AtomicI32 = AtomicI32::new(0);
/// The control channel on which a refused system call is reported.
static REPORTS: AtomicI32 = AtomicI32::new(0);
/// Whether this process is a worker, or a broker. Otherwise it is a template.
static IS_WORKER: AtomicBool = AtomicBool::new(false);
static IS_BROKER: AtomicBool = AtomicBool::new(false);
static IS_WATCHER: AtomicBool = AtomicBool::new(false);

/// For `--swap`: the kernel may need this process to free memory, and must not make it wait for
/// memory. PR_SET_IO_FLUSHER, prctl(2). Without CAP_SYS_RESOURCE it fails, which is ignored.
pub(crate) fn become_io_flusher() {
    /// linux/prctl.h
    const PR_SET_IO_FLUSHER: libc::c_int = 57;
    // SAFETY: takes numbers and touches no memory.
    unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) };
}

/// Sets that this process is a broker, and its control channel, for [`report_refusals`].
pub(crate) fn set_broker_channel(channel: impl AsFd) {
    set_channel(channel, false);
    IS_BROKER.store(true, Ordering::Relaxed);
}

/// Sets that this process is a watcher, and its control channel, for [`report_refusals`].
pub(crate) fn set_watcher_channel(channel: impl AsFd) {
    set_channel(channel, false);
    IS_WATCHER.store(true, Ordering::Relaxed);
}

/// Sets whether this process is a worker or a template, and its control channel, for
/// [`report_refusals`].
pub(crate) fn set_channel(channel: impl AsFd, is_worker: bool) {
    REPORTS.store(channel.as_fd().as_raw_fd(), Ordering::Relaxed);
    IS_WORKER.store(is_worker, Ordering::Relaxed);
}

/// Has a system call that the sandbox refuses reported on the control channel, and end the process.
/// Forks inherit the handler.
///
/// # Errors
/// sigaction(2) has none for SIGSYS.
pub(crate) fn report_refusals() -> nbdkit_api::Result<()> {
    // SAFETY: it reads atomics, and calls send(2) and _exit(2): all async-signal-safe.
    unsafe { seccomp::on_refusal(refused) }.or_error(|| "sigaction: SIGSYS")
}

/// A system call was refused: reports its number, and ends the process. Async-signal-safe.
fn refused(syscall: u32) -> ! {
    let packet = if IS_WORKER.load(Ordering::Relaxed) {
        refusal::from_worker(syscall)
    } else if IS_BROKER.load(Ordering::Relaxed) {
        refusal::from_broker(syscall)
    } else if IS_WATCHER.load(Ordering::Relaxed) {
        refusal::from_watcher(syscall)
    } else {
        refusal::from_template(syscall)
    };
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    // SAFETY: sends the bytes of an array of ours; a number that is no descriptor is an error.
    unsafe {
        libc::send(REPORTS.load(Ordering::Relaxed), packet.as_ptr().cast(), packet.len(), flags);
    }
    exit_now(WorkerExit::Forbidden.code());
}

/// Whether the listener has sent `Quiesce`, or has ended.
static QUIESCING: AtomicBool = AtomicBool::new(false);

/// Whether the server is stopping.
pub(crate) fn is_quiescing() -> bool {
    QUIESCING.load(Ordering::Relaxed)
}

/// SIGIO: the listener has sent a message, or has ended. Unless it is an answer, it is `Quiesce`.
extern "C" fn messaged(_signal: libc::c_int) {
    // The kernel queues a message and then signals: the signal of an answer may arrive when the
    // answer has been read, and O_ASYNC is set again. See AwaitMessage.
    let watched = WATCHED.load(Ordering::Relaxed);
    if watched == 0 {
        return;
    }
    let mut channel = libc::pollfd { fd: watched, events: libc::POLLIN, revents: 0 };
    // SAFETY: poll(2) is async-signal-safe and writes one structure, on this stack. errno is this
    // thread's, and is restored for the code that was interrupted.
    let waiting = unsafe {
        let errno = libc::__errno_location();
        let saved = *errno;
        let waiting = libc::poll(&raw mut channel, 1, 0);
        *errno = saved;
        waiting
    };
    if waiting != 0 {
        end_client();
    }
}

/// Ends the client as the signal does, for code that has read the message itself: once it is quiet.
/// Async-signal-safe.
pub(crate) fn end_client() {
    if QUIESCING.swap(true, Ordering::Relaxed) {
        return;
    }
    // Only now: until here a plugin may have had a timer of its own.
    let handler = SigHandler::Handler(look);
    let action = SigAction::new(handler, SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: the handler only touches atomics, and calls shutdown(2) and setitimer(2), as above.
    let _ = unsafe { sigaction(Signal::SIGALRM, &action) };
    set_timer(activity::LOOK);
    look(libc::SIGALRM);
}

/// SIGALRM, every [`activity::LOOK`] once the server stops: if the client is quiet, makes its
/// socket read as ended. That ends the wait for the next request whether it has begun or not, and
/// costs the data path no system call.
extern "C" fn look(_signal: libc::c_int) {
    // SAFETY: null, or by `end_client_on_message` from an Arc that is never released.
    let activity = unsafe { ACTIVITY.load(Ordering::Acquire).as_ref() };
    if !activity.is_none_or(Activity::is_quiet) {
        if activity.is_some_and(Activity::is_refused) {
            client::set_stopping();
        }
        return;
    }
    set_timer(Duration::ZERO);
    let fd = CLIENT.load(Ordering::Relaxed);
    if fd > 0 {
        // SAFETY: shutdown(2) is async-signal-safe and takes numbers. The number is, or was, that
        // of the client's socket; another descriptor of this worker would concern this client, too.
        // errno is this thread's, and is restored for the code that was interrupted.
        unsafe {
            let errno = libc::__errno_location();
            let saved = *errno;
            libc::shutdown(fd, libc::SHUT_RD);
            *errno = saved;
        }
    }
}

/// Has SIGALRM sent every `interval`; never, if that is zero. Async-signal-safe.
fn set_timer(interval: Duration) {
    let tv_usec = interval.subsec_micros().into();
    let interval = libc::timeval { tv_sec: 0, tv_usec };
    let timer = libc::itimerval { it_interval: interval, it_value: interval };
    // SAFETY: reads one structure. It fails for numbers out of range only. errno is this thread's,
    // and is restored for the code that was interrupted.
    unsafe {
        let errno = libc::__errno_location();
        let saved = *errno;
        libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut());
        *errno = saved;
    }
}

/// Has SIGIO sent whenever `channel` has a message or is closed, and `client`, which is doing
/// `activity`, end when it arrives.
///
/// # Errors
/// Those of fcntl(2).
pub(crate) fn end_client_on_message(
    channel: impl AsFd,
    client: impl AsFd,
    activity: Arc<Activity>,
) -> nix::Result<()> {
    ACTIVITY.store(Arc::into_raw(activity).cast_mut(), Ordering::Release);
    CLIENT.store(client.as_fd().as_raw_fd(), Ordering::Relaxed);
    WATCHED.store(channel.as_fd().as_raw_fd(), Ordering::Relaxed);
    // SAFETY: F_SETOWN takes a process id by value.
    let result = unsafe {
        libc::fcntl(channel.as_fd().as_raw_fd(), libc::F_SETOWN, std::process::id() as libc::pid_t)
    };
    nix::errno::Errno::result(result)?;
    fcntl(channel.as_fd(), FcntlArg::F_SETFL(OFlag::O_ASYNC))?;
    // One that has arrived before raises no signal.
    messaged(libc::SIGIO);
    Ok(())
}

/// While this lives, a message on the channel of [`end_client_on_message`] is an answer and does
/// not end the client. If another message has arrived when it is dropped, `end` is called, which is
/// [`end_client`].
pub(crate) struct AwaitMessage<'a> {
    channel: BorrowedFd<'a>,
    end: fn(),
}

/// See [`AwaitMessage`].
///
/// # Errors
/// Those of fcntl(2).
pub(crate) fn await_message(channel: &impl AsFd, end: fn()) -> nix::Result<AwaitMessage<'_>> {
    let channel = channel.as_fd();
    fcntl(channel, FcntlArg::F_SETFL(OFlag::empty()))?;
    Ok(AwaitMessage { channel, end })
}

impl Drop for AwaitMessage<'_> {
    fn drop(&mut self) {
        // First O_ASYNC, then poll(2): no message can arrive unnoticed between the two.
        let watched = fcntl(self.channel, FcntlArg::F_SETFL(OFlag::O_ASYNC));
        let waiting = poll(&mut [PollFd::new(self.channel, PollFlags::POLLIN)], PollTimeout::ZERO);
        if watched.is_err() || waiting != Ok(0) {
            (self.end)();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heap_that_cannot_be_had_is_an_error_with_a_way_out() {
        reserve_heap(1 << 20).unwrap();
        let error = reserve_heap(isize::MAX as usize / 2).unwrap_err();
        assert!(error.message().contains("ulimit -l"), "{error}");
    }
}
