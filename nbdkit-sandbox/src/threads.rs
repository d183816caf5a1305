//! Confining threads that run already, which code in C has started before the sandbox closes.
//! Capabilities, the bounding set, no_new_privs and a Landlock domain belong to a thread:
//! capset(2), prctl(2), landlock_restrict_self(2). A thread can change only its own, so each thread
//! is signalled and changes them in the handler, as glibc has setuid(2) done by all threads.
//! Filters need none of this: SECCOMP_FILTER_FLAG_TSYNC.

#![expect(unsafe_code, reason = "a signal handler, and system calls that no library wraps")]

mod status;

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nbdkit_common::{errno_text, strerror};
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getpid, gettid};

use crate::{Error, Result};
pub use status::Statuses;

/// How long a thread may take to restrict itself after the signal.
const PATIENCE: Duration = Duration::from_secs(5);

/// The signal by which glibc itself has threads change their user. It is the one (with that of
/// pthread_cancel(3)) that pthread_sigmask(3) cannot block: many libraries start threads with all
/// signals blocked.
const SIGNAL: libc::c_int = 33;

/// Whether this process has one thread; `None` if that cannot be found out. By unshare(2) with
/// CLONE_THREAD, which needs no /proc; a filter of [`seccomp`](crate::seccomp) may deny it.
fn is_alone() -> Option<bool> {
    match unshare(CloneFlags::CLONE_THREAD) {
        Ok(()) => Some(true),
        Err(Errno::EINVAL) => Some(false),
        // A filter from before the server was started.
        Err(_) => Some(all().ok()?.len() == 1),
    }
}

/// Waits until this thread is the only one, for a second at most, if others are about to end: the
/// kernel wakes who joins a thread a moment before it counts the thread as gone. Whether this is
/// the only one. Like [`confine`], called before a filter is closed.
pub fn await_end_of_others() -> bool {
    let start = Instant::now();
    loop {
        match is_alone() {
            Some(false) if start.elapsed() < Duration::from_secs(1) => std::thread::yield_now(),
            alone => return alone == Some(true),
        }
    }
}

/// The threads of this process.
fn all() -> io::Result<BTreeSet<i32>> {
    let entries = std::fs::read_dir("/proc/self/task")?;
    let names = entries.map(|entry| Ok(entry?.file_name()));
    let numbers =
        names.map(|name: io::Result<_>| Ok(name?.to_str().and_then(|it| it.parse().ok())));
    numbers.filter_map(io::Result::transpose).collect()
}

/// Has every other thread drop what this thread does not have: capabilities, the bounding set and
/// new privileges; and put the Landlock rules `paths` in force. The process must have an action for
/// SIGHUP that the C library has installed ([`signals::catch`](crate::signals::catch)).
///
/// # Errors
/// A thread is not confined; without /proc, that there are threads at all, and stay.
pub fn confine(paths: Option<BorrowedFd<'_>>) -> Result<()> {
    if is_alone() == Some(true) {
        return Ok(());
    }
    let order = Order::prepare(paths)?;
    let mut done = BTreeSet::from([gettid().as_raw()]);
    loop {
        // A thread inherits all of this from the one that starts it, so no thread is left when all
        // that exist are done.
        let threads = match all() {
            Ok(threads) => threads,
            Err(_) if await_end_of_others() => return Ok(()),
            Err(error) => {
                let what = "threads cannot be confined: /proc/self/task";
                return Err(Error::of(what)(errno_text(&error)));
            }
        };
        let Some(next) = threads.difference(&done).next().copied() else {
            return Ok(());
        };
        order.give(next)?;
        done.insert(next);
    }
}

// What the handler is to do, written before the signal is sent, and what it reports.

/// Which capabilities stay in the bounding set.
static BOUNDING: AtomicU64 = AtomicU64::new(u64::MAX);
/// What capset(2) takes: effective, permitted and inheritable, low halves first.
static CAPABILITIES: [AtomicU32; 6] = [const { AtomicU32::new(0) }; 6];
static NO_NEW_PRIVS: AtomicBool = AtomicBool::new(false);
/// Landlock rules, or -1.
static PATHS: AtomicI32 = AtomicI32::new(-1);
/// The thread whose handler has ended last, and the errno of what has failed in it.
static DONE: AtomicI32 = AtomicI32::new(0);
static FAILED: AtomicI32 = AtomicI32::new(0);

/// linux/capability.h: two halves of each set.
const VERSION: u32 = 0x2008_0522;
/// linux/capability.h has 41; no set has more.
const CAPABILITIES_AT_MOST: libc::c_ulong = 64;

#[repr(C)]
struct Header {
    version: u32,
    pid: libc::c_int,
}

/// The kernel's `struct sigaction`, which the C library's is not: rt_sigaction(2).
#[repr(C)]
#[derive(Default, Clone, Copy)]
struct Action {
    handler: usize,
    flags: libc::c_ulong,
    restorer: usize,
    mask: u64,
}

/// While this lives, [`SIGNAL`] has a thread confine itself.
struct Order {
    before: Action,
}

impl Order {
    fn prepare(paths: Option<BorrowedFd<'_>>) -> Result<Order> {
        let header = Header { version: VERSION, pid: 0 };
        let mut sets = [0_u32; 6];
        // SAFETY: the kernel reads the eight bytes of the header and writes the 24 of the sets, all
        // on this stack.
        let got = unsafe { libc::syscall(libc::SYS_capget, &raw const header, sets.as_mut_ptr()) };
        Errno::result(got).map_err(Error::os("capget"))?;
        for (shared, word) in CAPABILITIES.iter().zip(sets) {
            shared.store(word, Ordering::Relaxed);
        }
        let bounding = (0..CAPABILITIES_AT_MOST)
            .filter(|&capability| has_in_bounding_set(capability))
            .fold(0, |set, capability| set | 1_u64 << capability);
        BOUNDING.store(bounding, Ordering::Relaxed);
        let no_new_privs =
            nix::sys::prctl::get_no_new_privs().map_err(Error::os("prctl: PR_GET_NO_NEW_PRIVS"))?;
        NO_NEW_PRIVS.store(no_new_privs, Ordering::Relaxed);
        PATHS.store(paths.map_or(-1, |fd| fd.as_raw_fd()), Ordering::Relaxed);
        // How a handler returns to the kernel is known to the C library alone: as from the handler
        // that it has installed for SIGHUP.
        let known = action(libc::SIGHUP, None).map_err(Error::os("rt_sigaction"))?;
        // On x86-64 the kernel returns to where the C library says.
        if cfg!(target_arch = "x86_64") && known.restorer == 0 {
            return Err(Error::new("threads cannot be confined: SIGHUP has no handler"));
        }
        // On the signal stack, if the thread has one: Go's threads have small stacks.
        let flags = known.flags | libc::SA_ONSTACK as libc::c_ulong;
        let ours = Action { handler: obey as *const () as usize, flags, mask: u64::MAX, ..known };
        let before = action(SIGNAL, Some(&ours)).map_err(Error::os("rt_sigaction"))?;
        Ok(Order { before })
    }

    /// Has a thread confine itself.
    fn give(&self, thread: i32) -> Result<()> {
        let broken =
            |what: &str| Error::new(format!("a thread of the plugin or of a filter {what}"));
        let process = getpid().as_raw();
        // SAFETY: takes numbers. The action of the signal is `obey`, which `prepare` has installed
        // and `drop` replaces.
        let signalled = |signal: libc::c_int| unsafe {
            libc::syscall(libc::SYS_tgkill, process, thread, signal)
        };
        FAILED.store(0, Ordering::Relaxed);
        // An earlier signal may have left this thread's id here.
        DONE.store(0, Ordering::Relaxed);
        if signalled(SIGNAL) != 0 {
            // It has ended.
            return Ok(());
        }
        let end = Instant::now() + PATIENCE;
        while DONE.load(Ordering::Acquire) != thread {
            if signalled(0) != 0 {
                return Ok(());
            }
            if Instant::now() > end {
                return Err(broken("does not react, so it cannot be confined"));
            }
            std::thread::sleep(Duration::from_micros(100));
        }
        match FAILED.load(Ordering::Relaxed) {
            0 => Ok(()),
            errno => {
                let cause = strerror(Errno::from_raw(errno));
                Err(broken(&format!("cannot be confined: {cause}")))
            }
        }
    }
}

impl Drop for Order {
    fn drop(&mut self) {
        let _ = action(SIGNAL, Some(&self.before));
    }
}

/// The action of a signal, and a new one for it.
fn action(signal: libc::c_int, new: Option<&Action>) -> nix::Result<Action> {
    let mut old = Action::default();
    let new = new.map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the kernel reads `new` and writes `old`, both of its layout with a mask of eight
    // bytes. The handler in `new` is `obey`, an async-signal-safe function, or what the kernel has
    // returned before.
    let result = unsafe {
        libc::syscall(libc::SYS_rt_sigaction, signal, new, &raw mut old, size_of::<u64>())
    };
    Errno::result(result).map(|_| old)
}

fn has_in_bounding_set(capability: libc::c_ulong) -> bool {
    // SAFETY: takes numbers and touches no memory.
    unsafe { libc::prctl(libc::PR_CAPBSET_READ, capability, 0, 0, 0) == 1 }
}

/// The handler. Async-signal-safe: system calls and atomics, and errno is as it was.
extern "C" fn obey(_signal: libc::c_int) {
    // SAFETY: returns the address of this thread's errno, which the C library keeps as long as the
    // thread runs.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: this thread's errno, which no other thread accesses.
    let saved = unsafe { *errno };
    let check = |result: libc::c_long| {
        if result != 0 {
            // SAFETY: this thread's errno, which no other thread accesses.
            FAILED.store(unsafe { *errno }, Ordering::Relaxed);
        }
    };
    for capability in 0..CAPABILITIES_AT_MOST {
        let stays = BOUNDING.load(Ordering::Relaxed) >> capability & 1 == 1;
        if !stays && has_in_bounding_set(capability) {
            // SAFETY: takes numbers and touches no memory.
            check(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) }.into());
        }
    }
    if NO_NEW_PRIVS.load(Ordering::Relaxed) {
        // SAFETY: takes numbers and touches no memory.
        check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }.into());
    }
    let paths = PATHS.load(Ordering::Relaxed);
    if paths >= 0 {
        // SAFETY: takes numbers. The thread that has sent the signal keeps the descriptor open
        // until DONE has this thread's id.
        check(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, paths, 0) });
    }
    let header = Header { version: VERSION, pid: 0 };
    let sets: [u32; 6] = std::array::from_fn(|n| CAPABILITIES[n].load(Ordering::Relaxed));
    // SAFETY: the kernel reads the eight bytes of the header and the 24 of the sets, all on this
    // stack.
    // The ambient set loses what the others do not have.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, sets.as_ptr()) });
    // SAFETY: this thread's errno, which no other thread accesses.
    unsafe { *errno = saved };
    DONE.store(gettid().as_raw(), Ordering::Release);
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::{ForkResult, fork};

    /// Nothing is sent to any thread: without a restorer it would crash when the handler returns.
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn threads_are_not_signalled_without_a_handler_to_learn_from() {
        let (end, ended) = mpsc::channel::<()>();
        let other = std::thread::spawn(move || ended.recv().is_ok());
        let error = super::confine(None).unwrap_err().to_string();
        assert!(error.ends_with("SIGHUP has no handler"), "{error}");
        drop(end);
        other.join().unwrap();
    }

    /// In a fork, which has one thread, however many the tests have.
    #[test]
    fn a_thread_that_is_about_to_end_is_waited_for() {
        // SAFETY: of what other threads may have locked, the child uses the heap alone, which the C
        // library makes usable after a fork.
        match unsafe { fork() }.unwrap() {
            ForkResult::Parent { child } => {
                assert_eq!(waitpid(child, None), Ok(WaitStatus::Exited(child, 0)));
            }
            ForkResult::Child => {
                let pause = || std::thread::sleep(Duration::from_millis(50));
                let thread = std::thread::Builder::new().spawn(pause);
                let was_there = thread.is_ok() && super::is_alone() == Some(false);
                let is_gone = super::await_end_of_others() && super::is_alone() == Some(true);
                crate::process::exit_now(i32::from(!(was_there && is_gone)));
            }
        }
    }
}
