//! Confining threads that code in C has started before the sandbox closes. Capabilities, the
//! bounding set, no_new_privs and a Landlock domain belong to a thread: capset(2), prctl(2),
//! landlock_restrict_self(2). A thread can change only its own, so each one is signalled and
//! changes them in the handler, as glibc has setuid(2) done by all threads. Filters need none of
//! this: SECCOMP_FILTER_FLAG_TSYNC.

#![expect(unsafe_code, reason = "a signal handler, and system calls that no library wraps")]

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nbdkit_api::{Errno, Error, Result, ResultExt};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getpid, gettid};

/// How long a thread may take to restrict itself after the signal.
const PATIENCE: Duration = Duration::from_secs(5);

/// The signal by which glibc itself has threads change their user. It is the one (with that of
/// pthread_cancel(3)) that pthread_sigmask(3) cannot block: many libraries start threads with all
/// signals blocked.
const SIGNAL: libc::c_int = 33;

/// Whether this process has one thread; `None` if that cannot be found out. Asked of the kernel
/// itself, since /proc may not be there: unshare(2), CLONE_THREAD.
fn is_alone() -> Option<bool> {
    match unshare(CloneFlags::CLONE_THREAD) {
        Ok(()) => Some(true),
        Err(Errno::EINVAL) => Some(false),
        // A filter around this server.
        Err(_) => Some(all().ok()?.len() == 1),
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

/// Takes from every other thread what this thread does not have, and adds the Landlock rules
/// `paths`: no_new_privs, capabilities, the bounding set.
///
/// # Errors
/// One line that says which thread is not confined; without /proc, that there are threads at all.
pub(crate) fn confine_as_this_one(paths: Option<BorrowedFd<'_>>) -> Result<()> {
    if is_alone() == Some(true) {
        return Ok(());
    }
    let order = Order::prepare(paths)?;
    let mut done = BTreeSet::from([gettid().as_raw()]);
    loop {
        // Whoever is started by a thread that is done is born confined; so it is over when all that
        // there are are done.
        let threads = all().or_error(|| "threads cannot be confined: /proc/self/task")?;
        let Some(next) = threads.difference(&done).next().copied() else {
            return Ok(());
        };
        order.give(next)?;
        done.insert(next);
    }
}

// What the handler does, and what it says of that. Written before the signal is sent.

/// Which capabilities stay in the bounding set.
static BOUNDING: AtomicU64 = AtomicU64::new(u64::MAX);
/// What capset(2) takes: effective, permitted and inheritable, low halves first.
static CAPABILITIES: [AtomicU32; 6] = [const { AtomicU32::new(0) }; 6];
static NO_NEW_PRIVS: AtomicBool = AtomicBool::new(false);
/// Landlock rules, or -1.
static PATHS: AtomicI32 = AtomicI32::new(-1);
/// The thread that has done it last, and its errno.
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

/// As long as it lives, [`SIGNAL`] has a thread confine itself.
struct Order {
    before: Action,
}

impl Order {
    fn prepare(paths: Option<BorrowedFd<'_>>) -> Result<Order> {
        let header = Header { version: VERSION, pid: 0 };
        let mut sets = [0_u32; 6];
        // SAFETY: the kernel reads eight bytes and writes the 24 of both halves, all of them ours.
        let got = unsafe { libc::syscall(libc::SYS_capget, &raw const header, sets.as_mut_ptr()) };
        Errno::result(got).or_error(|| "capget")?;
        for (shared, word) in CAPABILITIES.iter().zip(sets) {
            shared.store(word, Ordering::Relaxed);
        }
        let bounding = (0..CAPABILITIES_AT_MOST)
            .filter(|&capability| has_in_bounding_set(capability))
            .fold(0, |set, capability| set | 1_u64 << capability);
        BOUNDING.store(bounding, Ordering::Relaxed);
        let no_new_privs =
            nix::sys::prctl::get_no_new_privs().or_error(|| "prctl: PR_GET_NO_NEW_PRIVS")?;
        NO_NEW_PRIVS.store(no_new_privs, Ordering::Relaxed);
        PATHS.store(paths.map_or(-1, |fd| fd.as_raw_fd()), Ordering::Relaxed);
        // How a handler returns is the C library's affair: as from one of those that it has
        // installed for us (super::leave_signals_to_listener).
        let known = action(libc::SIGHUP, None).or_error(|| "rt_sigaction")?;
        // On the signal stack, if the thread has one: some languages have threads whose stacks are
        // small otherwise.
        let flags = known.flags | libc::SA_ONSTACK as libc::c_ulong;
        let ours = Action { handler: obey as *const () as usize, flags, mask: u64::MAX, ..known };
        let before = action(SIGNAL, Some(&ours)).or_error(|| "rt_sigaction")?;
        Ok(Order { before })
    }

    /// Has a thread confine itself.
    fn give(&self, thread: i32) -> Result<()> {
        let broken = |errno: Errno, what: &str| {
            Error::new(errno, format!("a thread of the plugin or of a filter {what}"))
        };
        let process = getpid().as_raw();
        // SAFETY: takes numbers; the handler for this signal is ours.
        let signalled = |signal: libc::c_int| unsafe {
            libc::syscall(libc::SYS_tgkill, process, thread, signal)
        };
        FAILED.store(0, Ordering::Relaxed);
        // It may have been the last one before, too.
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
                return Err(broken(Errno::ETIMEDOUT, "does not react, so it cannot be confined"));
            }
            std::thread::sleep(Duration::from_micros(100));
        }
        match FAILED.load(Ordering::Relaxed) {
            0 => Ok(()),
            errno => Err(broken(Errno::from_raw(errno), "cannot be confined")),
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
    // SAFETY: the kernel reads and writes structures of ours, with a mask of eight bytes. What
    // `new` has the kernel call is `obey` or what was there before.
    let result = unsafe {
        libc::syscall(libc::SYS_rt_sigaction, signal, new, &raw mut old, size_of::<u64>())
    };
    Errno::result(result).map(|_| old)
}

fn has_in_bounding_set(capability: libc::c_ulong) -> bool {
    // SAFETY: takes numbers.
    unsafe { libc::prctl(libc::PR_CAPBSET_READ, capability, 0, 0, 0) == 1 }
}

/// The handler. Async-signal-safe: system calls and atomics, and errno is as it was.
extern "C" fn obey(_signal: libc::c_int) {
    // SAFETY: the thread's own errno.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: as above.
    let saved = unsafe { *errno };
    let check = |result: libc::c_long| {
        if result != 0 {
            // SAFETY: as above.
            FAILED.store(unsafe { *errno }, Ordering::Relaxed);
        }
    };
    for capability in 0..CAPABILITIES_AT_MOST {
        let stays = BOUNDING.load(Ordering::Relaxed) >> capability & 1 == 1;
        if !stays && has_in_bounding_set(capability) {
            // SAFETY: takes numbers.
            check(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) }.into());
        }
    }
    if NO_NEW_PRIVS.load(Ordering::Relaxed) {
        // SAFETY: takes numbers.
        check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }.into());
    }
    let paths = PATHS.load(Ordering::Relaxed);
    if paths >= 0 {
        // SAFETY: takes numbers; the descriptor is open as long as somebody waits for this.
        check(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, paths, 0) });
    }
    let header = Header { version: VERSION, pid: 0 };
    let sets: [u32; 6] = std::array::from_fn(|n| CAPABILITIES[n].load(Ordering::Relaxed));
    // SAFETY: the kernel reads eight and 24 bytes, all of them ours. The ambient set follows the
    // others.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, sets.as_ptr()) });
    // SAFETY: the thread's own errno.
    unsafe { *errno = saved };
    DONE.store(gettid().as_raw(), Ordering::Release);
}

/// What /proc says of every thread, open from before the sandbox closes, when it can be opened,
/// until it is read.
pub(crate) struct Statuses(Vec<File>);

/// What must be the same for all threads. proc_pid_status(5).
const SAME: [&str; 11] = [
    "Uid",
    "Gid",
    "Groups",
    "CapInh",
    "CapPrm",
    "CapEff",
    "CapBnd",
    "CapAmb",
    "NoNewPrivs",
    "Seccomp",
    "Seccomp_filters",
];

impl Statuses {
    /// Of this thread first. Empty if it is the only one.
    ///
    /// # Errors
    /// There are others, and /proc is not there.
    pub(crate) fn open() -> Result<Statuses> {
        if is_alone() == Some(true) {
            return Ok(Statuses(Vec::new()));
        }
        let ours = gettid().as_raw();
        let what = || "threads cannot be checked: /proc/self/task";
        let others = all().or_error(what)?.into_iter().filter(|it| *it != ours);
        let open = |thread| match File::open(format!("/proc/self/task/{thread}/status")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            opened => opened.or_error(what).map(Some),
        };
        let files = std::iter::once(ours).chain(others).map(open);
        files.filter_map(Result::transpose).collect::<Result<_>>().map(Statuses)
    }

    /// Checks that every thread is confined as this one is; with `filters`, that it is by filters.
    ///
    /// # Errors
    /// One line that says which is not.
    pub(crate) fn check(&self, filters: bool) -> Result<()> {
        let mut ours = None;
        for file in &self.0 {
            let mut text = vec![0; 16 << 10];
            let length = match file.read_at(&mut text, 0) {
                // It has ended.
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => continue,
                length => length.or_error(|| "/proc/self/task: status")?,
            };
            text.truncate(length);
            let fields = fields(&String::from_utf8_lossy(&text));
            let ours = ours.get_or_insert_with(|| fields.clone());
            let filtered = |fields: &[Option<String>]| {
                let of =
                    |name| SAME.iter().position(|it| *it == name).and_then(|n| fields[n].clone());
                of("NoNewPrivs").as_deref() == Some("1") && of("Seccomp").as_deref() == Some("2")
            };
            if *ours != fields || (filters && !filtered(&fields)) {
                let different = SAME.iter().zip(ours.iter().zip(&fields));
                let names: Vec<&str> =
                    different.filter(|(_, (a, b))| a != b).map(|(name, _)| *name).collect();
                return Err(Error::new(
                    Errno::EPERM,
                    format!(
                        "a thread of the plugin or of a filter is not confined as the server is: {}",
                        names.join(", ")
                    ),
                ));
            }
        }
        Ok(())
    }
}

/// The values of [`SAME`] in a status.
fn fields(status: &str) -> Vec<Option<String>> {
    let value = |name: &str| {
        let lines = status.lines().filter_map(|line| line.split_once(':'));
        let mut values = lines.filter(|(its, _)| *its == name).map(|(_, value)| value.trim());
        values.next().map(str::to_owned)
    };
    SAME.into_iter().map(value).collect()
}
