//! Whether somebody has moved this process to another control group: libvirt starts a server and then moves the one process
//! that it knows. The others follow, which takes rights that the spawner may have. cgroups(7).

#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, Read, Seek};
use std::time::{Duration, Instant};

use super::Server;
use super::rebuild::Maker;

/// How often is looked at most: it is a matter of two system calls, and the kernel takes a lock that is everybody's.
const LOOKS: Duration = Duration::from_millis(100);

/// The longest list of groups that makes sense, bytes: a path for each hierarchy, of which the kernel has some fifteen.
const MAX_GROUPS: u64 = 64 * 1024;

/// What is known of the listener's groups.
pub(super) struct Groups {
    /// /proc/self/cgroup, open.
    file: File,
    known: Vec<u8>,
    looked: Option<Instant>,
}

impl Groups {
    /// Those of now.
    pub(super) fn of_this_process() -> io::Result<Groups> {
        let mut groups =
            Groups { file: File::open("/proc/self/cgroup")?, known: Vec::new(), looked: None };
        groups.known = groups.read()?;
        Ok(groups)
    }

    fn read(&mut self) -> io::Result<Vec<u8>> {
        self.file.rewind()?;
        let mut groups = Vec::new();
        (&self.file).take(MAX_GROUPS).read_to_end(&mut groups)?;
        Ok(groups)
    }

    /// Whether they have changed, unless that was asked only just now.
    fn changed(&mut self, now: Instant) -> bool {
        if self.looked.is_some_and(|at| now.saturating_duration_since(at) < LOOKS) {
            return false;
        }
        self.looked = Some(now);
        match self.read() {
            Ok(groups) if groups != self.known => {
                self.known = groups;
                true
            }
            _ => false,
        }
    }
}

impl Server {
    /// A client has come: before it is handed over, the others are told to follow, if they have to.
    pub(super) fn follow_groups(&mut self, now: Instant) {
        if let (Some(groups), Maker::Spawner(spawner), Some(template)) =
            (&mut self.groups, &self.maker, &self.template)
            && groups.changed(now)
        {
            spawner.follow(template.pid());
            self.log.debug(|| "moved to another control group: the template follows".to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_looked_at_now_and_then() {
        let mut groups = Groups::of_this_process().unwrap();
        let now = Instant::now();
        assert!(!groups.changed(now));
        groups.known = b"0::/elsewhere\n".to_vec();
        assert!(!groups.changed(now + LOOKS / 2));
        assert!(groups.changed(now + LOOKS));
        assert!(!groups.changed(now + 2 * LOOKS), "what they have become is known");
    }
}
