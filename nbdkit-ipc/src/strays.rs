//! Strays: scripts, and processes that scripts have started, whose parent has ended. Template and
//! listener adopt them (PR_SET_CHILD_SUBREAPER, prctl(2)) and kill them.
//!
//! Each run of a script leads a process group of its own, and no other process does, so the group
//! distinguishes strays from other children. A process id that is read here is that of a child
//! which was not reaped: it cannot be another process's.

#![forbid(unsafe_code)]

use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The children of this process, ended ones too. None where there is no /proc.
/// proc_tid_children(5).
///
/// Adopted processes are listed with the first thread, as the processes that it has forked. Other
/// threads fork none that outlive them. The list lacks none, for only the first thread reaps those,
/// which is the one that reads it: while it was read, none went from it.
pub fn children() -> Vec<Pid> {
    let own = std::process::id();
    let Ok(list) = fs::read_to_string(format!("/proc/self/task/{own}/children")) else {
        return by_parent(own);
    };
    list.split_ascii_whitespace().filter_map(|word| word.parse().ok().map(Pid::from_raw)).collect()
}

/// As [`children`], on kernels without CONFIG_PROC_CHILDREN.
fn by_parent(own: u32) -> Vec<Pid> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let is_child = |pid: &i32| stat(*pid).is_some_and(|(parent, _)| parent.cast_unsigned() == own);
    numbers.filter(is_child).map(Pid::from_raw).collect()
}

/// The process group of a child, ended or not.
pub fn group(child: Pid) -> Option<Pid> {
    stat(child.as_raw()).map(|(_, group)| Pid::from_raw(group))
}

/// Parent and process group of a process. Its name, in parentheses, may hold anything.
fn stat(pid: i32) -> Option<(i32, i32)> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let after_name = stat.iter().rposition(|byte| *byte == b')')? + 1;
    let mut fields = str::from_utf8(&stat[after_name..]).ok()?.split_ascii_whitespace().skip(1);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

/// Kills all children but those that are known and those in groups that are kept. Returns whether
/// there were any: then it is to be called again when one has ended, whose children this process
/// adopts in turn.
///
/// Children in this process's own group are never strays. Groups are not killed as such: a process
/// may join any group of its session, the one of the shell that started the server among them, and
/// the listener may kill those.
pub fn kill_unknown(is_known: impl Fn(Pid) -> bool, is_kept: impl Fn(Pid) -> bool) -> bool {
    let unknown: Vec<Pid> = children().into_iter().filter(|pid| !is_known(*pid)).collect();
    if unknown.is_empty() {
        return false;
    }
    let own = group(Pid::this());
    let mut any = false;
    for pid in unknown {
        if group(pid).is_some_and(|group| Some(group) != own && !is_kept(group)) {
            any = true;
            let _ = kill(pid, Signal::SIGKILL);
        }
    }
    any
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    #[test]
    fn children_are_found_with_their_groups_and_killed() {
        let mut leader =
            Command::new("/bin/sleep").arg("60").arg0("a) (b").process_group(0).spawn().unwrap();
        let pid = Pid::from_raw(leader.id().cast_signed());
        let parent = std::process::id();
        assert_eq!(stat(pid.as_raw()), Some((parent.cast_signed(), pid.as_raw())));
        assert_eq!(group(pid), Some(pid));
        assert!(by_parent(parent).contains(&pid));
        // Other tests have children, too.
        assert!(!kill_unknown(|child| child != pid, |group| group == pid));
        assert!(!kill_unknown(|_| true, |_| false));
        // This thread is not the first, with which children are listed, but then the parent is
        // asked for.
        if children().contains(&pid) {
            assert!(kill_unknown(|child| child != pid, |_| false));
        } else {
            leader.kill().unwrap();
        }
        assert!(!leader.wait().unwrap().success());
    }
}
