//! Whether this process was moved to another control group: libvirt starts a server and then moves
//! the one process that it knows. The other processes follow; moving them takes rights that the
//! spawner may have. cgroups(7).

#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, Read, Seek};
use std::time::{Duration, Instant};

/// Shortest interval between two reads of the file: a read is two system calls, and takes a global
/// lock of the kernel.
const INTERVAL: Duration = Duration::from_millis(100);

/// The longest list of groups that makes sense, bytes: a path for each hierarchy, of which the
/// kernel has some fifteen.
const MAX_GROUPS: u64 = 64 * 1024;

/// The listener's control groups, as last read.
pub(super) struct Groups {
    /// /proc/self/cgroup, open.
    file: File,
    known: Vec<u8>,
    read_at: Option<Instant>,
}

impl Groups {
    /// The current ones.
    pub(super) fn of_this_process() -> io::Result<Groups> {
        let mut groups =
            Groups { file: File::open("/proc/self/cgroup")?, known: Vec::new(), read_at: None };
        groups.known = groups.read()?;
        Ok(groups)
    }

    fn read(&mut self) -> io::Result<Vec<u8>> {
        self.file.rewind()?;
        let mut groups = Vec::new();
        (&self.file).take(MAX_GROUPS).read_to_end(&mut groups)?;
        Ok(groups)
    }

    /// Whether the groups have changed. False if they were read only just now.
    pub(super) fn changed(&mut self, now: Instant) -> bool {
        if self.read_at.is_some_and(|at| now.saturating_duration_since(at) < INTERVAL) {
            return false;
        }
        self.read_at = Some(now);
        match self.read() {
            Ok(groups) if groups != self.known => {
                self.known = groups;
                true
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_read_once_in_an_interval() {
        let mut groups = Groups::of_this_process().unwrap();
        let now = Instant::now();
        assert!(!groups.changed(now));
        groups.known = b"0::/elsewhere\n".to_vec();
        assert!(!groups.changed(now + INTERVAL / 2));
        assert!(groups.changed(now + INTERVAL));
        assert!(!groups.changed(now + 2 * INTERVAL), "a change is reported once");
    }
}
