//! Kills a process at every step of an operation on shared memory, for the tests of the primitives.
//!
//! A step is an access to shared memory or a futex call, where [`step`] is called; and, more finely
//! and without regard to what the code calls, a machine instruction, of which ptrace(2) carries out
//! one at a time. After each death the test checks that others can go on and what must then hold.
//!
//! A child of a process with several threads may do little, so each of these tests executes the
//! test program once more for itself alone ([`alone`]).

#![expect(unsafe_code, reason = "fork, ptrace, alarm")]

use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};

/// Steps that this process may still take. Ordinary memory: each process has its own.
static LEFT: AtomicU64 = AtomicU64::new(u64::MAX);

/// Kills this process if this is the step that the test has chosen.
pub(super) fn step() {
    if LEFT.load(Ordering::Relaxed) == u64::MAX {
        return;
    }
    if LEFT.fetch_sub(1, Ordering::Relaxed) == 0 {
        kill(Pid::this(), Signal::SIGKILL).unwrap();
    }
}

/// A child process; killed and reaped when it is dropped.
#[derive(Debug)]
pub(super) struct Child(Pid);

impl Child {
    /// Runs `body` in a fork of this process.
    pub(super) fn new(body: impl FnOnce()) -> Child {
        // SAFETY: the child runs the code of a test and ends without returning. Where this process
        // has other threads, which hold locks that the child has not, the tests that call this do
        // nothing but system calls and accesses to memory in `body`.
        match unsafe { fork() }.unwrap() {
            ForkResult::Parent { child } => Child(child),
            ForkResult::Child => {
                let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
                // SAFETY: has no preconditions.
                unsafe { libc::_exit(i32::from(ended.is_err())) }
            }
        }
    }

    /// Waits until it has ended by itself.
    pub(super) fn join(self) {
        let status = waitpid(self.0, None);
        let pid = self.0;
        std::mem::forget(self);
        assert_eq!(status, Ok(WaitStatus::Exited(pid, 0)));
    }

    /// Kills it, and waits until the kernel has released what it had.
    pub(super) fn kill(self) {
        drop(self);
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGKILL);
        while waitpid(self.0, None) == Err(nix::Error::EINTR) {}
    }
}

/// Runs `body` in a process of its own that has one thread: the test program once more, for the
/// test of this name alone, and a fork of that. Ends it by SIGALRM after two minutes, so that a
/// survivor that waits for ever fails the test.
pub(super) fn alone(test: &str, body: impl FnOnce()) {
    const ALONE: &str = "NBDKIT_TEST_ALONE";
    if std::env::var_os(ALONE).is_some_and(|it| it == *test) {
        // libtest's main thread waits for this one and holds no lock meanwhile.
        while awake() > 1 {
            std::thread::yield_now();
        }
        return Child::new(body).join();
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--test-threads=1", "--nocapture"])
        .env(ALONE, test)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {text}", output.status);
    assert!(text.contains("1 passed"), "there is no test {test}: {text}");
}

/// The number of threads of this process that do not sleep.
fn awake() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    tasks.filter(|task| !is_asleep(&task.as_ref().unwrap().path())).count()
}

fn is_asleep(task: &std::path::Path) -> bool {
    let stat = std::fs::read_to_string(task.join("stat")).unwrap();
    // Behind the name, which is in parentheses: proc_pid_stat(5).
    stat.rsplit_once(") ").is_some_and(|(_, state)| state.starts_with('S'))
}

/// Carries out `operation` in a child on what `make` has made, and kills it after each number of
/// steps in turn, until it ends by itself. `check` is called each time; it panics unless others can
/// go on and the invariant holds. The operation is to begin with the process's first use of the
/// object, so that its entering is part of it.
pub(super) fn at_every_step<T>(
    make: impl Fn() -> T,
    operation: impl Fn(&T),
    check: impl Fn(T, &str),
) {
    let mut deaths = 0;
    for steps in 0.. {
        limit_time();
        let object = make();
        let child = Child::new(|| {
            LEFT.store(steps, Ordering::Relaxed);
            operation(&object);
        });
        let died = ends_by_kill(child);
        deaths += usize::from(died);
        check(object, &format!("killed after {steps} accesses"));
        if !died {
            break;
        }
    }
    assert!(deaths > 2, "an operation of {deaths} steps?");
    at_every_instruction(make, operation, check);
}

/// Kills that a test takes, for an operation that has more instructions: each costs a fork and, if
/// the dead one held something, as long as others wait before they look for it. With
/// NBDKIT_TEST_EVERY_INSTRUCTION set, there are as many as there are instructions.
const DEATHS: u64 = 40;

/// Kills after numbers of instructions, beginning with the first one behind a stop. An unoptimised
/// operation has thousands, most of which touch nothing shared: every one of them if there are no
/// more than [`DEATHS`], otherwise those at a stride that is odd, so that loops are met at each of
/// their instructions in turn.
fn at_every_instruction<T>(make: impl Fn() -> T, operation: impl Fn(&T), check: impl Fn(T, &str)) {
    let object = make();
    let all = single_step(traced(|| operation(&object)), u64::MAX);
    check(object, "not killed");
    let every = std::env::var_os("NBDKIT_TEST_EVERY_INSTRUCTION").is_some();
    let stride = if every { 1 } else { (all / DEATHS) | 1 };
    for instructions in (0..all).step_by(stride as usize) {
        limit_time();
        let object = make();
        single_step(traced(|| operation(&object)), instructions);
        check(object, &format!("killed after {instructions} of {all} instructions"));
    }
}

/// Ends this process by SIGALRM a minute after the last call: a survivor waits for ever.
fn limit_time() {
    // SAFETY: has no preconditions.
    unsafe { libc::alarm(60) };
}

fn ends_by_kill(child: Child) -> bool {
    let status = waitpid(child.0, None).unwrap();
    std::mem::forget(child);
    match status {
        WaitStatus::Signaled(_, Signal::SIGKILL, _) => true,
        WaitStatus::Exited(_, 0) => false,
        other => panic!("{other:?}"),
    }
}

/// A child that has stopped right before `body`.
fn traced(body: impl FnOnce()) -> Child {
    let child = Child::new(|| {
        // SAFETY: asks the parent to trace this process; no memory is concerned.
        let asked = unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) };
        assert_eq!(asked, 0, "ptrace: {}", std::io::Error::last_os_error());
        nix::sys::signal::raise(Signal::SIGSTOP).unwrap();
        body();
    });
    let status = waitpid(child.0, None);
    assert_eq!(status, Ok(WaitStatus::Stopped(child.0, Signal::SIGSTOP)));
    child
}

/// Lets a stopped child carry out so many instructions, and kills it. Returns how many it has
/// carried out, fewer if it has ended by itself.
fn single_step(child: Child, instructions: u64) -> u64 {
    for done in 0..instructions {
        // SAFETY: concerns a child that this process traces and that is stopped.
        let result = unsafe { libc::ptrace(libc::PTRACE_SINGLESTEP, child.0.as_raw(), 0, 0) };
        assert_eq!(result, 0, "ptrace: {}", std::io::Error::last_os_error());
        match waitpid(child.0, None).unwrap() {
            WaitStatus::Stopped(_, Signal::SIGTRAP) => {}
            WaitStatus::Exited(_, 0) => {
                std::mem::forget(child);
                return done;
            }
            other => panic!("{other:?}"),
        }
    }
    child.kill();
    instructions
}
