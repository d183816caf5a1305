//! The processes of a server under test, from /proc, and waiting for what they do.
//! proc_pid_task(5), proc_pid_status(5).

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nbd_protocol::constants::Rep;

use crate::{Client, Server};

/// How long a test waits for what must happen. Nothing takes that long, not even on a machine that
/// does much else.
const DEADLINE: Duration = Duration::from_secs(20);

/// Waits until `condition` holds.
///
/// # Panics
/// It does not hold in time.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The living children of a process, of all its threads. None if there is no such process.
pub fn children(pid: i32) -> Vec<i32> {
    let mut last = listed_children(pid);
    loop {
        let list = listed_children(pid);
        if list == last {
            return list.into_iter().filter(|pid| is_alive(*pid)).collect();
        }
        last = list;
    }
}

/// The children, ended ones too, as the kernel lists them, which skips one for each that is reaped
/// once it is listed. A list that comes a second time lacks none: whoever is reaped while the first
/// is read is not in the second. proc_tid_children(5).
fn listed_children(pid: i32) -> Vec<i32> {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    threads
        .filter_map(|thread| std::fs::read_to_string(thread.ok()?.path().join("children")).ok())
        .flat_map(|line| numbers(&line))
        .collect()
}

fn numbers(line: &str) -> Vec<i32> {
    line.split_whitespace().filter_map(|number| number.parse().ok()).collect()
}

/// The living children that are called so, by themselves or by the file that they have just begun
/// to execute.
pub fn children_called(pid: i32, called: &str) -> Vec<i32> {
    let file = called.replace(':', "-");
    let is = |pid: &i32| name(*pid).is_some_and(|its| its == called || its == file);
    children(pid).into_iter().filter(is).collect()
}

/// All that descends from a process and lives, without it: parents before their children.
pub fn descendants(pid: i32) -> Vec<i32> {
    let mut found = children(pid);
    let mut next = 0;
    while let Some(parent) = found.get(next) {
        found.extend(children(*parent));
        next += 1;
    }
    found
}

/// Whether a process exists and is no zombie.
pub fn is_alive(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .ok()
        .and_then(|stat| stat.rsplit_once(") ").map(|(_, fields)| !fields.starts_with('Z')))
        .unwrap_or(false)
}

/// The name of a process (comm), at most 15 bytes.
pub fn name(pid: i32) -> Option<String> {
    let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(comm.trim_end().to_owned())
}

/// A number of a process's status: `field` with its colon.
///
/// # Panics
/// There is no such process, or no such field.
pub fn status(pid: i32, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("alive");
    let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("a line");
    line.split_whitespace().next().and_then(|number| number.parse().ok()).expect("a number")
}

/// Threads of a process.
///
/// # Panics
/// There is no such process.
pub fn threads(pid: i32) -> u64 {
    status(pid, "Threads:")
}

/// What the descriptors of a process lead to. Users other than root may not look at processes that
/// are confined.
///
/// # Panics
/// There is no such process, or it may not be looked at.
pub fn descriptors(pid: i32) -> Vec<PathBuf> {
    std::fs::read_dir(format!("/proc/{pid}/fd"))
        .expect("alive")
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .collect()
}

/// Those of ours; Debian's nbdkit is one process.
impl Server {
    /// The template, once there is one.
    ///
    /// # Panics
    /// There is none in time.
    pub fn template(&self) -> i32 {
        let mut template = None;
        // Workers whose template has ended are the listener's children too.
        eventually("there is a template", || {
            template = children_called(self.pid().as_raw(), "nbdkit:template").pop();
            template.is_some()
        });
        template.expect("just seen")
    }

    /// The workers, those of an earlier template too.
    pub fn workers(&self) -> Vec<i32> {
        let listener = self.pid().as_raw();
        let orphans = children_called(listener, "nbdkit:worker");
        let templates = children(listener);
        let workers = templates.iter().flat_map(|pid| children_called(*pid, "nbdkit:worker"));
        workers.chain(orphans).collect()
    }

    /// A client of `export` in the transmission phase.
    ///
    /// # Panics
    /// The export cannot be opened.
    pub fn connected(&self, export: &str) -> Client<UnixStream> {
        let mut client = self.connect();
        client.handshake().expect("a greeting");
        assert_eq!(client.go(export, &[]).expect("a reply").end.reply, Rep::ACK);
        client
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};

    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;

    use super::*;

    /// A child is found although those before it end and are reaped while they are listed.
    #[test]
    fn no_child_is_missed_while_others_end() {
        for _ in 0..300 {
            let script = "for i in 1 2 3 4 5 6 7 8; do : & done; sleep 60 & echo $!; wait";
            let mut parent = Command::new("sh")
                .args(["-c", script])
                .stdout(Stdio::piped())
                .spawn()
                .expect("a shell");
            let own = Pid::from_raw(parent.id().try_into().expect("a process id"));
            let mut line = String::new();
            let mut output = BufReader::new(parent.stdout.take().expect("its output"));
            output.read_line(&mut line).expect("a number");
            let last = line.trim().parse().expect("a process id");
            let found = (0..50).all(|_| children(own.as_raw()).contains(&last));
            kill(Pid::from_raw(last), Signal::SIGKILL).expect("a process of ours");
            parent.wait().expect("its end");
            assert!(found);
        }
    }
}
