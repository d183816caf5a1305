//! OOM scores. When memory is short the kernel is to kill a worker, which costs one client, before
//! the template, which costs a replacement, before the listener. /proc/PID/oom_score_adj, proc(5).
//!
//! They are relative to the score that the server was started with (`OOMScoreAdjust=` of systemd).
//! A process may raise its own score, and lower it again to where it was, without privileges.

#![forbid(unsafe_code)]

use std::fs;
use std::io;
use std::path::Path;

use nix::unistd::Pid;

/// The score of a process that the kernel never kills, linux/oom.h.
pub const NEVER: i32 = -1000;

const MOST: i32 = 1000;

/// How much higher than the listener's the scores of a template and of a worker are.
const TEMPLATE: i32 = 100;
const WORKER: i32 = 200;

/// The file of this process's score.
pub const OWN: &str = "/proc/self/oom_score_adj";

/// The scores of one server's processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scores {
    /// Of the template, and of its broker.
    pub template: i32,
    /// Of a worker.
    pub worker: i32,
}

impl Scores {
    /// The scores of a server whose listener has `base`; `None` if no process of it is to be
    /// killed.
    ///
    /// Near the end of the scale there is less room, but the order stays.
    pub fn above(base: i32) -> Option<Scores> {
        let room = MOST.saturating_sub(base).max(0);
        let template = base + TEMPLATE.min(room / 2);
        (base > NEVER).then_some(Scores { template, worker: base + WORKER.min(room) })
    }
}

/// The score of this process.
///
/// # Errors
/// ENOENT without /proc.
pub fn own() -> io::Result<i32> {
    let text = fs::read_to_string(OWN)?;
    text.trim().parse().map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Keeps this process, and all that it starts from now on, from being killed.
///
/// # Errors
/// EACCES without CAP_SYS_RESOURCE.
pub fn protect() -> io::Result<()> {
    fs::write(OWN, NEVER.to_string())
}

/// Sets the score of a child.
///
/// # Errors
/// EACCES for a lower one than it ever had, unless this process has CAP_SYS_RESOURCE.
pub fn set(pid: Pid, value: i32) -> io::Result<()> {
    fs::write(Path::new("/proc").join(pid.to_string()).join("oom_score_adj"), value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_are_above_templates_and_both_above_the_listener_as_far_as_there_is_room() {
        let scores = |base| Scores::above(base).map(|it| (it.template, it.worker));
        assert_eq!(scores(0), Some((100, 200)));
        assert_eq!(scores(-900), Some((-800, -700)));
        assert_eq!(scores(500), Some((600, 700)));
        assert_eq!(scores(950), Some((975, 1000)));
        assert_eq!(scores(999), Some((999, 1000)));
        assert_eq!(scores(1000), Some((1000, 1000)));
        assert_eq!(scores(-1000), None, "no process of the server is to be killed");
    }
}
