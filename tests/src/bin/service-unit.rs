//! Runs a program under the restrictions of a systemd unit, as far as they can be had without
//! systemd: `service-unit UNIT USER PROGRAM [ARGUMENT...]`. Root. `USER` stands for the unit's
//! `User=`, which this machine need not have.
//!
//! In force: system calls, namespaces and address families (seccomp), capabilities, no_new_privs, a
//! network, IPC and host name of the service's own, and a /proc that hides other users' processes.
//! Not in force: what hides or protects paths (ProtectSystem=, PrivateDevices=), control groups.

#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use nbdkit_sandbox::seccomp::Test::{Has, IsNot};
use nbdkit_sandbox::seccomp::{Action, Line, any, compile, install, with};
use nix::libc as c;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// linux/uapi/asm: `#define __NR_read 0`.
const NUMBERS: &str = "/usr/include/x86_64-linux-gnu/asm/unistd_64.h";

/// RestrictNamespaces=: the names and flags of namespaces.
const NAMESPACES: [(&str, i32); 7] = [
    ("cgroup", c::CLONE_NEWCGROUP),
    ("ipc", c::CLONE_NEWIPC),
    ("mnt", c::CLONE_NEWNS),
    ("net", c::CLONE_NEWNET),
    ("pid", c::CLONE_NEWPID),
    ("user", c::CLONE_NEWUSER),
    ("uts", c::CLONE_NEWUTS),
];

/// MemoryDenyWriteExecute=, RestrictSUIDSGID=, RestrictRealtime=, LockPersonality=, as
/// systemd.exec(5) describes them.
const RESTRICTED: &[(&str, &[Line])] = &[
    (
        "MemoryDenyWriteExecute",
        &[
            with(c::SYS_mmap, &[Has(2, (c::PROT_EXEC | c::PROT_WRITE) as u64)]),
            with(c::SYS_mprotect, &[Has(2, c::PROT_EXEC as u64)]),
            with(c::SYS_pkey_mprotect, &[Has(2, c::PROT_EXEC as u64)]),
            with(c::SYS_shmat, &[Has(2, c::SHM_EXEC as u64)]),
        ],
    ),
    (
        "RestrictSUIDSGID",
        &[
            with(c::SYS_fchmod, &[Has(1, c::S_ISUID as u64)]),
            with(c::SYS_fchmod, &[Has(1, c::S_ISGID as u64)]),
            with(c::SYS_fchmodat, &[Has(2, c::S_ISUID as u64)]),
            with(c::SYS_fchmodat, &[Has(2, c::S_ISGID as u64)]),
        ],
    ),
    (
        "RestrictRealtime",
        &[
            with(c::SYS_sched_setscheduler, &[Has(1, c::SCHED_FIFO as u64)]),
            with(c::SYS_sched_setscheduler, &[Has(1, c::SCHED_RR as u64)]),
        ],
    ),
    ("LockPersonality", &[any(c::SYS_personality)]),
];

fn main() -> ExitCode {
    match run() {
        Ok(never) => match never {},
        Err(error) => {
            eprintln!("service-unit: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<std::convert::Infallible> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [unit, user, program @ ..] = &arguments[..] else {
        return Err("usage: service-unit UNIT USER PROGRAM [ARGUMENT...]".into());
    };
    let unit = Unit::read(&std::fs::read_to_string(unit)?);
    unit.separate()?;
    unit.filter()?;
    let capabilities = |key: &str| {
        let names = unit.words(key).map(|name| format!(",+{}", &name[4..].to_lowercase()));
        format!("-all{}", names.collect::<String>())
    };
    let ambient = capabilities("AmbientCapabilities");
    let mut command = Command::new("setpriv");
    command.args(["--no-new-privs", "--clear-groups"]);
    command.args([format!("--reuid={user}"), format!("--regid={user}")]);
    command.args([format!("--inh-caps={ambient}"), format!("--ambient-caps={ambient}")]);
    command.arg(format!("--bounding-set={}", capabilities("CapabilityBoundingSet")));
    Err(command.args(program).exec().into())
}

/// The settings of a unit, each with all of its values.
struct Unit(BTreeMap<String, Vec<String>>);

impl Unit {
    fn read(text: &str) -> Unit {
        let mut settings: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for line in text.lines().filter(|line| !line.starts_with(['#', '['])) {
            if let Some((key, value)) = line.split_once('=') {
                settings.entry(key.to_owned()).or_default().push(value.to_owned());
            }
        }
        Unit(settings)
    }

    fn values(&self, key: &str) -> impl Iterator<Item = &str> {
        self.0.get(key).into_iter().flatten().map(String::as_str)
    }

    fn words(&self, key: &str) -> impl Iterator<Item = &str> {
        self.values(key).flat_map(str::split_whitespace)
    }

    fn is(&self, key: &str) -> bool {
        self.values(key).last() == Some("yes")
    }

    /// Makes the service's own namespaces, and a /proc that shows less.
    fn separate(&self) -> Result<()> {
        let mut own = CloneFlags::CLONE_NEWNS;
        for (key, flag) in [
            ("PrivateNetwork", CloneFlags::CLONE_NEWNET),
            ("PrivateIPC", CloneFlags::CLONE_NEWIPC),
            ("ProtectHostname", CloneFlags::CLONE_NEWUTS),
        ] {
            own.set(flag, self.is(key));
        }
        unshare(own)?;
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)?;
        let subset = self.values("ProcSubset").any(|value| value == "pid");
        let hidden = self.values("ProtectProc").any(|value| value == "invisible");
        let options = match (subset, hidden) {
            (true, true) => "subset=pid,hidepid=invisible",
            (true, false) => "subset=pid",
            (false, true) => "hidepid=invisible",
            (false, false) => "",
        };
        Ok(mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), Some(options))?)
    }

    /// Installs filters for what the unit restricts.
    fn filter(&self) -> Result<()> {
        let calls = self.calls()?;
        let lines: Vec<Line> = calls.into_iter().map(any).collect();
        let eperm = Action::Fail(c::EPERM);
        install(&compile(&[&lines], eperm, Action::Allow)?)?;
        let mut refused: Vec<Line> = Vec::new();
        for (key, lines) in RESTRICTED.iter().filter(|(key, _)| self.is(key)) {
            assert!(!lines.is_empty(), "{key}");
            refused.extend_from_slice(lines);
        }
        let permitted: Vec<&str> = self.words("RestrictNamespaces").collect();
        for (name, flag) in NAMESPACES {
            if !permitted.contains(&name) {
                // There are seven of them, in one process that becomes another program.
                let test: &'static [_] = Box::leak(Box::new([Has(0, flag as u64)]));
                refused.extend([with(c::SYS_clone, test), with(c::SYS_unshare, test)]);
            }
        }
        install(&compile(&[&refused], Action::Allow, eperm)?)?;
        if self.words("RestrictAddressFamilies").eq(["AF_UNIX"]) {
            let others = [with(c::SYS_socket, &[IsNot(0, c::AF_UNIX as u64)])];
            install(&compile(&[&others], Action::Allow, Action::Fail(c::EAFNOSUPPORT))?)?;
        }
        // As systemd does: what cannot be looked into must not be used.
        let absent = [any(c::SYS_clone3)];
        Ok(install(&compile(&[&absent], Action::Allow, Action::Fail(c::ENOSYS))?)?)
    }

    /// The numbers of SystemCallFilter=.
    fn calls(&self) -> Result<BTreeSet<i64>> {
        let mut names = members("@default")?;
        for line in self.values("SystemCallFilter") {
            let (removes, line) = match line.strip_prefix('~') {
                Some(line) => (true, line),
                None => (false, line),
            };
            for word in line.split_whitespace() {
                let set =
                    if word.starts_with('@') { members(word)? } else { [word.to_owned()].into() };
                if removes {
                    names.retain(|name| !set.contains(name));
                } else {
                    names.extend(set);
                }
            }
        }
        let numbers = std::fs::read_to_string(NUMBERS)?;
        let number = |line: &str| {
            let (name, number) = line.strip_prefix("#define __NR_")?.split_once(' ')?;
            names.contains(name).then(|| number.trim().parse().ok())?
        };
        Ok(numbers.lines().filter_map(number).collect())
    }
}

/// The system calls of one of systemd's sets, with those of the sets in it.
fn members(set: &str) -> Result<BTreeSet<String>> {
    let output = Command::new("systemd-analyze").args(["syscall-filter", set]).output()?;
    if !output.status.success() {
        return Err(format!("systemd-analyze syscall-filter {set} fails").into());
    }
    let mut names = BTreeSet::new();
    for word in String::from_utf8(output.stdout)?.lines().skip(1).map(str::trim) {
        match word.as_bytes() {
            [b'@', ..] => names.extend(members(word)?),
            [b'#', ..] | [] => {}
            _ => {
                names.insert(word.to_owned());
            }
        }
    }
    Ok(names)
}
