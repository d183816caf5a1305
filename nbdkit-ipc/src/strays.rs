//! Processes that a dead child has left to this process: scripts and what they have started. The template and the
//! listener adopt orphans (PR_SET_CHILD_SUBREAPER, prctl(2)) and kill these.
//!
//! Each run of a script leads a process group of its own, and nothing else here does, so the group tells a stray from other
//! children. A number read here is a child of this process that has not been reaped, and thus no other process's.

#![forbid(unsafe_code)]

use std::fs;

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

/// The children of this process, ended ones too, and the process group of each. Empty where there is no /proc.
/// proc_tid_children(5), proc_pid_stat(5).
pub fn children() -> Vec<(Pid, Pid)> {
    let mut children = Vec::new();
    let own = std::process::id();
    // One thread in most processes; adopted children may be listed with any.
    let lists = match fs::read_to_string(format!("/proc/self/task/{own}/children")) {
        Ok(list) => vec![list],
        Err(_) => return by_parent(own),
    };
    for word in lists.iter().flat_map(|list| list.split_ascii_whitespace()) {
        if let Some((pid, Some((_, group)))) = word.parse().ok().map(|pid| (pid, stat(pid))) {
            children.push((Pid::from_raw(pid), Pid::from_raw(group)));
        }
    }
    children
}

/// As [`children`], on kernels without CONFIG_PROC_CHILDREN.
fn by_parent(own: u32) -> Vec<(Pid, Pid)> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let children = numbers.filter_map(|pid| {
        let (parent, group) = stat(pid)?;
        (parent.cast_unsigned() == own).then(|| (Pid::from_raw(pid), Pid::from_raw(group)))
    });
    children.collect()
}

/// Parent and process group of a process. Its name, in parentheses, may hold anything.
fn stat(pid: i32) -> Option<(i32, i32)> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let after_name = stat.iter().rposition(|byte| *byte == b')')? + 1;
    let mut fields = str::from_utf8(&stat[after_name..]).ok()?.split_ascii_whitespace().skip(1);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

/// Kills the children for which `is_stray(pid, group)`, each with its group. Returns whether there were any: then look
/// again when one has ended, for its own children come to this process in turn.
///
/// Those in this process's own group are never strays.
pub fn kill_if(is_stray: impl Fn(Pid, Pid) -> bool) -> bool {
    let own = stat(std::process::id().cast_signed()).map(|(_, group)| group);
    let mut any = false;
    for (pid, group) in children() {
        if Some(group.as_raw()) == own || !is_stray(pid, group) {
            continue;
        }
        any = true;
        let _ = kill(pid, Signal::SIGKILL);
        // While this child is not reaped, its group's number is not another's.
        if group.as_raw() > 1 {
            let _ = killpg(group, Signal::SIGKILL);
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
    fn children_are_found_with_their_groups_and_killed_with_them() {
        let mut leader =
            Command::new("/bin/sleep").arg("60").arg0("a) (b").process_group(0).spawn().unwrap();
        let pid = Pid::from_raw(leader.id().cast_signed());
        let parent = std::process::id();
        for found in [stat(pid.as_raw()), by_parent(parent).contains(&(pid, pid)).then_some((0, 0))]
        {
            assert!(found.is_some());
        }
        assert_eq!(stat(pid.as_raw()), Some((parent.cast_signed(), pid.as_raw())));
        assert!(
            kill_if(|child, _| child == pid || by_parent(parent).is_empty())
                || !children().contains(&(pid, pid))
        );
        let _ = leader.kill();
        assert!(!leader.wait().unwrap().success());
    }
}
