//! Moves the other processes into the control group that the listener was moved into, by libvirt
//! for example. cgroups(7).
//!
//! libvirt knows the process id of the listener only. The spawner of root's listener may move the
//! others; that of an ordinary user may if the group was delegated to the user. Processes that the
//! kernel does not let it move stay where they are.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use nix::unistd::Pid;

/// Hierarchies of a process: the controllers, empty for version 2, and the path within.
type Groups = BTreeMap<String, String>;

/// Moves this process, the template and its descendants into the listener's groups.
///
/// The listener names the template, and may have been taken over: the template must be a child of
/// the listener, and is moved to the listener's own groups only.
pub(crate) fn follow(listener: Pid, template: Pid) {
    let Some(target) = groups(listener) else { return };
    let mounts = mounts(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default());
    let mut processes = vec![Pid::this()];
    if parent(template) == Some(listener) {
        // First the template: processes that it forks from then on are in its new group.
        move_to(&target, &mounts, template);
        processes.extend(descendants(template));
    }
    for process in processes {
        move_to(&target, &mounts, process);
    }
}

fn move_to(target: &Groups, mounts: &BTreeMap<String, Mount>, process: Pid) {
    let Some(current) = groups(process) else { return };
    for (controllers, path) in target {
        if current.get(controllers) != Some(path)
            && let Some(directory) = mounts.get(controllers).and_then(|mount| mount.directory(path))
        {
            let _ = fs::write(directory.join("cgroup.procs"), process.to_string());
        }
    }
}

/// The groups of a process. proc_pid_cgroup(5): `NUMBER:CONTROLLERS:PATH`.
fn groups(process: Pid) -> Option<Groups> {
    let text = fs::read_to_string(format!("/proc/{process}/cgroup")).ok()?;
    let group = |line: &str| {
        let mut fields = line.splitn(3, ':').skip(1);
        Some((fields.next()?.to_owned(), fields.next()?.to_owned()))
    };
    text.lines().map(group).collect()
}

/// Where a hierarchy is mounted.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    /// The group that the mount shows at its top.
    root: String,
    at: PathBuf,
}

impl Mount {
    /// Where a group's files are; `None` if this mount does not show it.
    fn directory(&self, path: &str) -> Option<PathBuf> {
        let below = if self.root == "/" { path } else { path.strip_prefix(&self.root)? };
        // A group outside of this namespace is shown with `..` in front.
        let below = below.strip_prefix('/').unwrap_or(below);
        (!below.split('/').any(|part| part == "..")).then(|| self.at.join(below))
    }
}

/// The hierarchies that are mounted, by their controllers. proc_pid_mountinfo(5).
fn mounts(mountinfo: &str) -> BTreeMap<String, Mount> {
    mountinfo.lines().filter_map(mount).collect()
}

fn mount(line: &str) -> Option<(String, Mount)> {
    /// Options of a mount of version 1 that name no controller.
    const NO_CONTROLLERS: [&str; 6] =
        ["ro", "rw", "xattr", "noprefix", "clone_children", "cpuset_v2_mode"];
    let (front, back) = line.split_once(" - ")?;
    let mut front = front.split(' ').skip(3);
    let (root, at) = (front.next()?.to_owned(), PathBuf::from(front.next()?));
    let mut back = back.split(' ');
    let controllers = match back.next()? {
        "cgroup2" => String::new(),
        "cgroup" => {
            let options = back.nth(1)?.split(',');
            let named = |option: &&str| {
                !NO_CONTROLLERS.contains(option) && !option.starts_with("release_agent=")
            };
            options.filter(named).collect::<Vec<_>>().join(",")
        }
        _ => return None,
    };
    Some((controllers, Mount { root, at }))
}

/// The descendants of `ancestor`, from one read of /proc.
fn descendants(ancestor: Pid) -> Vec<Pid> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pid = |entry: fs::DirEntry| entry.file_name().to_str()?.parse().ok().map(Pid::from_raw);
    let families: Vec<(Pid, Pid)> =
        processes.filter_map(pid).filter_map(|pid| Some((pid, parent(pid)?))).collect();
    let mut found = vec![ancestor];
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        let children = families.iter().filter(|family| family.1 == parent).map(|family| family.0);
        let new: Vec<Pid> = children.filter(|child| !found.contains(child)).collect();
        found.extend(new);
        next += 1;
    }
    found
}

/// The parent of a process. proc_pid_stat(5).
fn parent(process: Pid) -> Option<Pid> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name, in parentheses, may contain anything; state and parent follow the last one.
    let (_, fields) = stat.rsplit_once(") ")?;
    fields.split(' ').nth(1)?.parse().ok().map(Pid::from_raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTINFO: &str = "\
24 1 0:22 / /sys rw,nosuid - sysfs sysfs rw
30 24 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate
31 24 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct
32 24 0:28 /docker/1 /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,release_agent=/x,name=systemd
";

    #[test]
    fn both_versions_are_found_where_they_are_mounted() {
        let mounts = mounts(MOUNTINFO);
        let directory = |controllers: &str, path: &str| {
            let directory = mounts.get(controllers)?.directory(path)?;
            directory.to_str().map(str::to_owned)
        };
        let is = |directory: Option<String>, expected: &str| {
            assert_eq!(directory.as_deref(), Some(expected));
        };
        assert_eq!(mounts.len(), 3);
        is(directory("", "/machine/vm"), "/sys/fs/cgroup/unified/machine/vm");
        is(directory("cpu,cpuacct", "/a"), "/sys/fs/cgroup/cpu,cpuacct/a");
        is(directory("name=systemd", "/docker/1/a"), "/sys/fs/cgroup/systemd/a");
        assert_eq!(directory("name=systemd", "/elsewhere"), None);
        assert_eq!(directory("", "/../escaped"), None);
        assert_eq!(directory("memory", "/"), None);
    }

    #[test]
    fn a_process_has_groups_and_descends_from_its_parent() {
        let mut child = std::process::Command::new("/bin/sleep").arg("60").spawn().unwrap();
        let pid = Pid::from_raw(child.id().cast_signed());
        assert_eq!(parent(pid), Some(Pid::this()));
        assert!(descendants(Pid::this()).contains(&pid));
        assert_eq!(groups(pid), groups(Pid::this()));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
