//! The server's processes, from /proc.

use nbdkit_tests::Server;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The living children of a process.
pub(crate) fn children(pid: i32) -> Vec<i32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let pids = text.unwrap_or_default();
    pids.split_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .filter(|pid| is_alive(*pid))
        .collect()
}

/// Whether a process exists and is no zombie.
pub(crate) fn is_alive(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .ok()
        .and_then(|stat| stat.rsplit_once(") ").map(|(_, rest)| !rest.starts_with('Z')))
        .unwrap_or(false)
}

fn is_worker(pid: i32) -> bool {
    is_called(pid, "nbdkit:worker\n")
}

fn is_called(pid: i32, name: &str) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|its| its == name)
}

/// The template, once there is one.
pub(crate) fn template(server: &Server) -> i32 {
    let mut template = None;
    // Workers whose template has ended are the listener's children too.
    super::eventually("there is a template", || {
        template = children(server.pid().as_raw())
            .into_iter()
            .find(|pid| is_called(*pid, "nbdkit:template\n"));
        template.is_some()
    });
    template.expect("just seen")
}

/// The workers, those of an earlier template too.
pub(crate) fn workers(server: &Server) -> Vec<i32> {
    let orphans = children(server.pid().as_raw());
    let all = orphans.iter().flat_map(|pid| children(*pid)).chain(orphans.iter().copied());
    all.filter(|pid| is_worker(*pid)).collect()
}

/// The worker that came into being during `connect`, and what that returned.
pub(crate) fn worker_of<T>(server: &Server, connect: impl FnOnce() -> T) -> (i32, T) {
    let before = workers(server);
    let made = connect();
    let mut new = workers(server);
    new.retain(|pid| !before.contains(pid));
    // A bystander's new clients may be among them, but do not stay.
    super::eventually("one worker is new and stays", || {
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
    field(pid, "VmHWM:")
}

/// Threads of a process.
pub(crate) fn threads(pid: i32) -> u64 {
    field(pid, "Threads:")
}

fn field(pid: i32, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("alive");
    let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a line");
    line.split_whitespace().next().and_then(|number| number.parse().ok()).expect("a number")
}
