//! What a server and all its descendants cost: CPU time, memory, system calls.
//!
//! CPU time is the process's own clock, in nanoseconds, of every living process of the tree
//! (threads that have ended included), plus what ended children left to the parent that waited for
//! them, in the kernel's ticks of 10 ms. It needs neither root nor control groups. Memory is PSS,
//! in which a page that several processes share counts once.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::fs;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::time::ClockId;
use nix::unistd::{Pid, SysconfVar, sysconf};

/// What a line of `/proc/PID/stat` says of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stat {
    parent: i32,
    /// User and system time of children that were waited for, in ticks.
    children_ticks: u64,
}

/// The process and its descendants.
pub(crate) fn members(root: Pid) -> Vec<Pid> {
    tree(root).into_iter().map(|(pid, _)| pid).collect()
}

/// CPU time that the tree has used in its life.
pub(crate) fn cpu_time(root: Pid) -> Duration {
    let per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten();
    let per_second = per_second.and_then(|ticks| u64::try_from(ticks).ok()).unwrap_or(100);
    tree(root)
        .into_iter()
        .map(|(pid, stat)| {
            let own = ClockId::pid_cpu_clock_id(pid).and_then(ClockId::now);
            let own = own.map_or(Duration::ZERO, Duration::from);
            own + Duration::from_nanos(stat.children_ticks * (1_000_000_000 / per_second))
        })
        .sum()
}

/// Proportional set size of the tree, in KiB.
pub(crate) fn pss_kib(root: Pid) -> u64 {
    members(root)
        .into_iter()
        .filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok())
        .filter_map(|text| pss_of(&text))
        .sum()
}

fn pss_of(smaps: &str) -> Option<u64> {
    let line = smaps.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    line.split_whitespace().next()?.parse().ok()
}

fn tree(root: Pid) -> Vec<(Pid, Stat)> {
    let mut all = HashMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        // Gone in the meantime, or unreadable: not ours.
        if let Ok(text) = fs::read_to_string(entry.path().join("stat"))
            && let Some(stat) = stat_of(&text)
        {
            all.insert(pid, stat);
        }
    }
    let descends = |mut pid: i32| {
        // A cycle cannot be, but processes come and go while the directory is read.
        for _ in 0..64 {
            if pid == root.as_raw() {
                return true;
            }
            match all.get(&pid) {
                Some(stat) => pid = stat.parent,
                None => return false,
            }
        }
        false
    };
    let mut tree: Vec<_> = all
        .iter()
        .filter(|(pid, _)| descends(**pid))
        .map(|(pid, stat)| (Pid::from_raw(*pid), *stat))
        .collect();
    tree.sort_by_key(|(pid, _)| *pid);
    tree
}

fn stat_of(line: &str) -> Option<Stat> {
    // The name is in brackets and may hold anything; numbers follow the last bracket, beginning
    // with the third field.
    let (_, numbers) = line.rsplit_once(')')?;
    let fields: Vec<&str> = numbers.split_whitespace().collect();
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    Some(Stat { parent: fields.get(1)?.parse().ok()?, children_ticks: number(16)? + number(17)? })
}

/// Counts the system calls of a tree through the kernel's tracepoint, with perf(1).
#[derive(Debug)]
pub(crate) struct SyscallCounter(Child);

impl SyscallCounter {
    /// Begins to count. `None` where perf or the tracepoint is not to be had.
    pub(crate) fn start(root: Pid) -> Option<SyscallCounter> {
        let pids: Vec<String> = members(root).iter().map(ToString::to_string).collect();
        let child = Command::new("perf")
            .args(["stat", "-x", ",", "-e", "raw_syscalls:sys_enter", "-p", &pids.join(",")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .ok()?;
        // perf does not say when it has attached. The server is idle meanwhile, so waiting longer
        // than needed costs nothing.
        std::thread::sleep(Duration::from_millis(300));
        Some(SyscallCounter(child))
    }

    /// Ends counting. `None` if perf could not count.
    pub(crate) fn stop(mut self) -> Option<u64> {
        kill(Pid::from_raw(i32::try_from(self.0.id()).ok()?), Signal::SIGINT).ok()?;
        let mut text = String::new();
        self.0.stderr.take()?.read_to_string(&mut text).ok()?;
        self.0.wait().ok()?;
        count_of(&text)
    }
}

fn count_of(text: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.contains("raw_syscalls:sys_enter"))?;
    line.split(',').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_and_blanks_does_not_shift_the_fields() {
        let line = "12 (a) b (c) S 7 8 9 10 11 12 13 14 15 16 100 200 30 4 20 0 1 0";
        assert_eq!(stat_of(line), Some(Stat { parent: 7, children_ticks: 34 }));
    }

    #[test]
    fn this_process_costs_something_and_its_child_belongs_to_it() {
        let root = Pid::this();
        assert!(cpu_time(root) > Duration::ZERO);
        assert!(pss_kib(root) > 100);
        let mut child = Command::new("sleep").arg("5").spawn().unwrap();
        assert!(members(root).contains(&Pid::from_raw(child.id().try_into().unwrap())));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Workers end with their clients, and what they have used must not be gone with them.
    #[test]
    fn what_children_of_children_have_used_counts_when_they_have_ended() {
        let busy = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done";
        let script = format!("(sh -c '{busy}'; true); echo done; read line");
        let mut child = Command::new("sh")
            .args(["-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0; 4]).unwrap();
        let root = Pid::from_raw(child.id().try_into().unwrap());
        assert_eq!(members(root), [root]);
        let all = cpu_time(root);
        let own = Duration::from(ClockId::pid_cpu_clock_id(root).unwrap().now().unwrap());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(all > own + Duration::from_millis(20), "{all:?}, of which {own:?} its own");
    }

    #[test]
    fn what_perf_could_not_count_is_not_zero() {
        assert_eq!(count_of("1234,,raw_syscalls:sys_enter,99,100.00,,\n"), Some(1234));
        assert_eq!(count_of("<not counted>,,raw_syscalls:sys_enter,0,100.00,,\n"), None);
    }
}
