//! A listener that is moved into another control group, as libvirt does, takes the other processes
//! along.

use std::path::PathBuf;

use nbdkit_tests::Server;
use nbdkit_tests::processes::{descendants, eventually};

use crate::support::{connect, debian_lacks, needs_root, open};

/// A group of our own. Removed when dropped, when it is empty.
struct Group(PathBuf);

impl Group {
    /// Below every hierarchy that is mounted and takes processes: version 2 and the controller pids
    /// of version 1.
    fn all() -> Vec<Group> {
        let mountinfo = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let usable = |line: &str| {
            let (front, back) = line.split_once(" - ")?;
            let (kind, options) = (back.split(' ').next()?, back.split(' ').nth(2)?);
            let pids = kind == "cgroup" && options.split(',').any(|option| option == "pids");
            let at = front.split(' ').nth(4).filter(|_| kind == "cgroup2" || pids)?;
            let path = PathBuf::from(at).join(format!("nbdkitd-test-{}", std::process::id()));
            std::fs::create_dir(&path).ok()?;
            Some(Group(path))
        };
        mountinfo.lines().filter_map(usable).collect()
    }

    fn take(&self, pid: i32) -> std::io::Result<()> {
        std::fs::write(self.0.join("cgroup.procs"), pid.to_string())
    }

    fn members(&self) -> Vec<i32> {
        let text = std::fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        eventually("the group is empty", || std::fs::remove_dir(&self.0).is_ok());
    }
}

/// All that descends from the listener, and the listener.
fn family(listener: i32) -> Vec<i32> {
    let mut family = [vec![listener], descendants(listener)].concat();
    family.sort_unstable();
    family
}

#[test]
fn the_others_follow_the_listener_into_a_group() {
    if debian_lacks("more than one process") || needs_root("to move processes") {
        return;
    }
    let groups = Group::all();
    if groups.is_empty() {
        eprintln!("SKIPPED: no control group can be made here");
    }
    for group in groups {
        for user in [&[][..], &["-u", "nobody"]] {
            let server = Server::nbdkit([user, &["null", "1M"]].concat()).start();
            let listener = server.pid().as_raw();
            let mut client = connect(server.socket());
            open(&mut client);
            if let Err(error) = group.take(listener) {
                eprintln!("SKIPPED: {}: {error}", group.0.display());
                break;
            }
            assert!(family(listener).len() > 3, "a template, a spawner, a worker");
            eventually(&format!("all are in {}", group.0.display()), || {
                // The listener looks when a client comes, and not too often.
                drop(connect(server.socket()));
                let mut members = group.members();
                members.sort_unstable();
                members == family(listener)
            });
        }
    }
}
