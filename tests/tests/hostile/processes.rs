//! The server's processes, from /proc.

use nbdkit_tests::Server;
use nbdkit_tests::processes::{eventually, is_alive, status};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The worker that came into being during `connect`, and what that returned.
pub(crate) fn worker_of<T>(server: &Server, connect: impl FnOnce() -> T) -> (i32, T) {
    let before = server.workers();
    let made = connect();
    let mut new = server.workers();
    new.retain(|pid| !before.contains(pid));
    // A bystander's new clients may be among them, but do not stay.
    eventually("one worker is new and stays", || {
        std::thread::sleep(std::time::Duration::from_millis(20));
        new.retain(|pid| is_alive(*pid));
        new.len() <= 1
    });
    (*new.first().expect("a new worker"), made)
}

pub(crate) fn kill_9(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("a process of ours");
}

/// The most memory that a process has had resident, KiB.
pub(crate) fn peak_kib(pid: i32) -> u64 {
    status(pid, "VmHWM:")
}
