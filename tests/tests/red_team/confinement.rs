//! Attacks on the machine and on other processes. Each row is made as root with `-u nobody` and as
//! an ordinary user; then without the layer that stops it, which shows that it is that one, and
//! what comes next.

use std::net::{Ipv4Addr, TcpListener};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

use nbdkit_tests::Server;
use nbdkit_tests::processes::{children_called, eventually};
use nbdkit_tests::red_team::attack;
use nbdkit_tests::server::{Builder, landlock_is};
use nix::libc;
use nix::unistd::{User, geteuid};

use crate::bystander::{Bystander, Work};
use crate::server;

/// What is left out: `-D nbdkit.skip`, nbdkit-worker/src/sandbox/skip.rs.
pub(crate) const NAMESPACES: u32 = 1;
pub(crate) const PATHS: u32 = 4;
pub(crate) const CALLS: u32 = 8;
const LIMITS: u32 = 16;

/// What an attack comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The worker ended, and the log names this system call.
    Refused(&'static str),
    /// It failed with this errno.
    Fails(i32),
    /// It succeeded.
    Succeeds,
    /// It got past the filter; what the kernel then says depends on the machine.
    Reaches,
    /// The worker became another program.
    Becomes,
}

use End::{Becomes, Fails, Reaches, Refused, Succeeds};

/// Who starts the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Starter {
    /// Root, with `-u nobody`.
    Root,
    /// An ordinary user, and who connects is another.
    User,
    /// systemd, as nbdkit@.service says; see [`crate::service`].
    Service,
}

/// An attack.
struct Row {
    attack: &'static str,
    /// Whether the stack declares a path, so that it may open files at all.
    opens: bool,
    /// Without which layers: what it comes to for root and for an ordinary user. All layers first.
    ends: &'static [(u32, End, End)],
}

const EACCES: i32 = libc::EACCES;
const EPERM: i32 = libc::EPERM;
const EMFILE: i32 = libc::EMFILE;
const ENOMEM: i32 = libc::ENOMEM;

/// The filter stops it, and nothing else of ours.
macro_rules! only_filtered {
    ($call:literal) => {
        &[(0, Refused($call), Refused($call)), (CALLS, Reaches, Reaches)]
    };
}

const ROWS: &[Row] = &[
    // Files. The filter refuses to open at all where nothing is declared; Landlock has the paths.
    Row {
        attack: "open=/etc/passwd",
        opens: false,
        ends: &[
            (0, Fails(EACCES), Fails(EACCES)),
            (CALLS, Fails(EACCES), Fails(EACCES)),
            (PATHS, Fails(EACCES), Fails(EACCES)),
            (CALLS | PATHS, Succeeds, Succeeds),
        ],
    },
    Row {
        attack: "open=/etc/passwd",
        opens: true,
        ends: &[(0, Fails(EACCES), Fails(EACCES)), (PATHS, Succeeds, Succeeds)],
    },
    // Of the listener: Landlock, and being another user.
    Row {
        attack: "open=/proc/{listener}/environ",
        opens: true,
        ends: &[(0, Fails(EACCES), Fails(EACCES)), (PATHS, Fails(EACCES), Succeeds)],
    },
    // The network: no sockets, no network, no ports (Landlock).
    Row {
        attack: "connect={port}",
        opens: false,
        ends: &[
            (0, Refused("socket"), Refused("socket")),
            (CALLS, Fails(EACCES), Fails(EACCES)),
            (CALLS | PATHS, Fails(libc::ENETUNREACH), Succeeds),
            (CALLS | NAMESPACES, Fails(EACCES), Fails(EACCES)),
            (CALLS | NAMESPACES | PATHS, Succeeds, Succeeds),
        ],
    },
    Row {
        attack: "connect-abstract={abstract}",
        opens: false,
        ends: &[
            (0, Refused("socket"), Refused("socket")),
            (CALLS, Fails(libc::ECONNREFUSED), Fails(EPERM)),
            (CALLS | NAMESPACES, Fails(EPERM), Fails(EPERM)),
            (CALLS | NAMESPACES | PATHS, Succeeds, Succeeds),
        ],
    },
    // Programs and processes.
    Row {
        attack: "exec=/bin/true",
        opens: false,
        ends: &[
            (0, Refused("execve"), Refused("execve")),
            (CALLS, Fails(EACCES), Fails(EACCES)),
            (CALLS | PATHS, Becomes, Becomes),
        ],
    },
    Row {
        attack: "fork",
        opens: false,
        ends: &[(0, Refused("clone"), Refused("clone")), (CALLS, Succeeds, Succeeds)],
    },
    // Code that is not in the program's file.
    Row {
        attack: "map-code",
        opens: false,
        ends: &[(0, Refused("mmap"), Refused("mmap")), (CALLS, Succeeds, Succeeds)],
    },
    Row {
        attack: "make-code",
        opens: false,
        ends: &[(0, Refused("mprotect"), Refused("mprotect")), (CALLS, Succeeds, Succeeds)],
    },
    Row {
        attack: "write-code",
        opens: false,
        ends: &[
            (0, Fails(EACCES), Fails(EACCES)),
            (CALLS, Fails(EACCES), Fails(EACCES)),
            (PATHS, Fails(EACCES), Fails(EACCES)),
            // Not dumpable: its /proc/self is root's. After setuid(2) it is not, whatever we do.
            (CALLS | PATHS, Fails(EACCES), Fails(EACCES)),
            (CALLS | PATHS | LIMITS, Fails(EACCES), Succeeds),
        ],
    },
    Row {
        attack: "signal={listener}",
        opens: false,
        ends: &[
            (0, Refused("kill"), Refused("kill")),
            (CALLS, Fails(EPERM), Fails(EPERM)),
            (CALLS | PATHS, Fails(EPERM), Succeeds),
        ],
    },
    // Siblings share a user and a Landlock domain: it is the filter alone.
    Row {
        attack: "signal={sibling}",
        opens: false,
        ends: &[(0, Refused("kill"), Refused("kill")), (CALLS, Succeeds, Succeeds)],
    },
    Row {
        attack: "trace={sibling}",
        opens: false,
        ends: &[
            (0, Refused("ptrace"), Refused("ptrace")),
            // Not dumpable. After setuid(2) the kernel sees to that by itself.
            (CALLS, Fails(EPERM), Fails(EPERM)),
            (CALLS | LIMITS, Fails(EPERM), Succeeds),
        ],
    },
    Row {
        attack: "read-memory={sibling}",
        opens: false,
        ends: &[
            (0, Refused("process_vm_readv"), Refused("process_vm_readv")),
            (CALLS, Fails(EPERM), Fails(EPERM)),
            (CALLS | LIMITS, Fails(EPERM), Succeeds),
        ],
    },
    Row {
        attack: "trace={listener}",
        opens: false,
        ends: &[
            (0, Refused("ptrace"), Refused("ptrace")),
            (CALLS, Fails(EPERM), Fails(EPERM)),
            (CALLS | PATHS, Fails(EPERM), Succeeds),
        ],
    },
    // The machine.
    Row {
        attack: "mount",
        opens: false,
        ends: &[
            (0, Refused("mount"), Refused("mount")),
            // No capability.
            (CALLS, Fails(EPERM), Fails(EPERM)),
        ],
    },
    Row {
        attack: "become-root",
        opens: false,
        ends: &[
            (0, Refused("setresuid"), Refused("setresuid")),
            (CALLS, Fails(EPERM), Fails(EPERM)),
        ],
    },
    Row { attack: "syscall={unshare},268435456", opens: false, ends: only_filtered!("unshare") },
    Row { attack: "syscall={keyctl},0,-3,1", opens: false, ends: only_filtered!("keyctl") },
    Row { attack: "syscall={add_key}", opens: false, ends: only_filtered!("add_key") },
    Row { attack: "syscall={bpf},0,0,0", opens: false, ends: only_filtered!("bpf") },
    Row {
        attack: "syscall={io_uring_setup},8",
        opens: false,
        ends: only_filtered!("io_uring_setup"),
    },
    Row {
        attack: "syscall={perf_event_open}",
        opens: false,
        ends: only_filtered!("perf_event_open"),
    },
    Row { attack: "syscall={userfaultfd}", opens: false, ends: only_filtered!("userfaultfd") },
    Row { attack: "syscall={finit_module},-1", opens: false, ends: only_filtered!("finit_module") },
    // More than its share.
    Row {
        attack: "fill-memory=8192",
        opens: false,
        ends: &[(0, Fails(ENOMEM), Fails(ENOMEM)), (LIMITS, Succeeds, Succeeds)],
    },
    // Memory that no limit on data counts.
    Row {
        attack: "fill-shared=64",
        opens: false,
        ends: &[(0, Refused("mmap"), Refused("mmap")), (CALLS, Succeeds, Succeeds)],
    },
    Row {
        attack: "fill-memfd=64",
        opens: false,
        ends: &[(0, Fails(EACCES), Fails(EACCES)), (CALLS, Succeeds, Succeeds)],
    },
    Row {
        attack: "fill-descriptors=100000",
        opens: false,
        ends: &[(0, Fails(EMFILE), Fails(EMFILE))],
    },
    Row {
        attack: "raise-descriptors=2000",
        opens: false,
        ends: &[
            (0, Refused("prlimit64"), Refused("prlimit64")),
            (CALLS, Fails(EMFILE), Fails(EMFILE)),
            (CALLS | LIMITS, Succeeds, Succeeds),
        ],
    },
];

/// What attacks are aimed at.
struct Targets {
    port: TcpListener,
    _abstract: UnixListener,
    abstract_name: String,
}

impl Targets {
    fn new(starter: Starter) -> Targets {
        let abstract_name = format!("nbdkit-red-team-{}-{starter:?}", std::process::id());
        let address = SocketAddr::from_abstract_name(&abstract_name).expect("a name");
        Targets {
            port: TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port"),
            _abstract: UnixListener::bind_addr(&address).expect("a socket"),
            abstract_name,
        }
    }

    fn aim(&self, attack: &str, server: &Server, sibling: i32) -> String {
        let numbers = [
            ("{listener}", i64::from(server.pid().as_raw())),
            ("{sibling}", i64::from(sibling)),
            ("{port}", i64::from(self.port.local_addr().expect("bound").port())),
            ("{unshare}", libc::SYS_unshare),
            ("{keyctl}", libc::SYS_keyctl),
            ("{add_key}", libc::SYS_add_key),
            ("{bpf}", libc::SYS_bpf),
            ("{io_uring_setup}", libc::SYS_io_uring_setup),
            ("{perf_event_open}", libc::SYS_perf_event_open),
            ("{userfaultfd}", libc::SYS_userfaultfd),
            ("{finit_module}", libc::SYS_finit_module),
        ];
        let attack = attack.replace("{abstract}", &self.abstract_name);
        numbers
            .iter()
            .fold(attack, |attack, (name, number)| attack.replace(name, &number.to_string()))
    }
}

/// Whether a row can be shown here. Where something is taken away (scripts/surroundings.sh), other
/// layers than the one that is said to may stop what is attempted without one.
pub(crate) fn is_shown_here(skip: u32) -> bool {
    skip == 0 || std::env::var_os("NBDKIT_TEST_SURROUNDINGS").is_none()
}

/// Whether Landlock alone stops a row, and the server takes this for a kernel without it.
fn is_open_here(row: &Row) -> bool {
    landlock_is().as_deref() == Some("0") && (row.opens || row.attack.starts_with("open=/proc/"))
}

/// Whether an attack on another's file in /proc was stopped: by us, or because it is not shown
/// (`hidepid=`).
fn is_refused_by_proc(end: &End) -> bool {
    matches!(end, Fails(EACCES | libc::ENOENT | EPERM))
}

/// A server that has left out the layers `skip`.
pub(crate) fn builder(starter: Starter, skip: u32, arguments: &[&str]) -> Builder {
    let skip = format!("nbdkit.skip={skip}");
    let builder = server(&["-D", &skip]).args(arguments);
    match starter {
        Starter::Root => builder.args(["-u", "nobody"]),
        Starter::Service => crate::service::as_unit(builder.args(["-u", "nobody"])),
        Starter::User if geteuid().is_root() => {
            let nobody = User::from_name("nobody").expect("users").expect("a nobody");
            let (user, group) = (nobody.uid.as_raw(), nobody.gid.as_raw());
            std::os::unix::fs::chown(builder.dir().path(), Some(user), Some(group)).expect("given");
            let become_user = format!("exec setpriv --reuid={user} --regid={group} --clear-groups");
            builder.through_shell(&format!(r#"{become_user} "$0" "$@""#))
        }
        Starter::User => builder,
    }
}

pub(crate) fn start(starter: Starter, skip: u32, opens: bool) -> Server {
    let builder = builder(starter, skip, &[]).arg("redteam");
    if opens { builder.arg("path=/etc/hostname").start() } else { builder.start() }
}

pub(crate) fn carry_out(server: &Server, text: &str) -> (End, String) {
    let Some(outcome) = attack(server, text) else {
        // How it ended is in the log, if it was refused; or it is not, and then nothing comes.
        let name = |log: &str| {
            let line =
                log.lines().rfind(|line| line.contains("the sandbox refused system call"))?;
            Some(line.split_once('(')?.1.split_once(')')?.0.to_owned())
        };
        for _ in 0..200 {
            if let Some(name) = name(&server.stderr_text()) {
                return (Refused(String::leak(name)), "the worker ended".to_owned());
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        return (Becomes, "the worker ended without a word".to_owned());
    };
    let errno = outcome.strip_prefix("errno ").and_then(|rest| rest.split(' ').next());
    let end = errno.map_or(Succeeds, |number| Fails(number.parse().expect("a number")));
    (end, outcome)
}

/// Runs the rows of a table with a server that root has started.
pub(crate) fn as_root(run: fn(Starter)) {
    if geteuid().is_root() {
        run(Starter::Root);
    } else {
        eprintln!("SKIPPED: takes root");
    }
}

/// Carries an attack out while another client works on, whose data is checked. `attack`: what the
/// other client's failure is reported with.
pub(crate) fn carry_out_beside(
    server: &Server,
    attack: &'static str,
    text: &str,
    work: Work,
) -> End {
    let bystander = Bystander::start(server, attack, work);
    let (end, words) = carry_out(server, text);
    bystander.finish();
    println!("{text}: {end:?}: {words}");
    end
}

/// The line about an attack that ended in another way than it should.
pub(crate) fn differs(
    starter: Starter,
    skip: u32,
    text: &str,
    end: &End,
    expected: &End,
) -> String {
    format!("{starter:?}: {text} without {skip}: {end:?}, not {expected:?}")
}

pub(crate) fn run(starter: Starter) {
    let targets = Targets::new(starter);
    let mut wrong = Vec::new();
    for row in ROWS.iter().filter(|row| !is_open_here(row)) {
        for (skip, for_root, for_user) in row.ends.iter().filter(|(skip, ..)| is_shown_here(*skip))
        {
            // The unit's own restrictions stop much of what ours are left out for.
            if starter == Starter::Service && *skip != 0 {
                continue;
            }
            let expected = if starter == Starter::User { for_user } else { for_root };
            let server = start(starter, *skip, row.opens);
            let mut sibling = server.connect();
            sibling.handshake().expect("a greeting");
            sibling.go("", &[]).expect("a reply");
            let [template] = children_called(server.pid().as_raw(), "nbdkit:template")[..] else {
                panic!("one template")
            };
            let mut workers = Vec::new();
            eventually("a worker", || !children_called(template, "nbdkit:worker").is_empty());
            workers.extend(children_called(template, "nbdkit:worker"));
            let text = targets.aim(row.attack, &server, workers[0]);
            let as_expected = |end: &End| match expected {
                Fails(EACCES) if text.starts_with("open=/proc/") => is_refused_by_proc(end),
                Reaches => !matches!(end, Refused(_)),
                other => end == other,
            };
            let work = Work::Writes(4096);
            let end = carry_out_beside(&server, row.attack, &text, work);
            if !as_expected(&end) {
                wrong.push(differs(starter, *skip, &text, &end, expected));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
#[cfg(target_arch = "x86_64")]
fn every_attack_of_a_worker_of_root_is_stopped_by_the_layer_that_is_said_to() {
    as_root(run);
}

#[test]
#[cfg(target_arch = "x86_64")]
fn every_attack_of_a_worker_of_an_ordinary_user_is_stopped_too() {
    run(Starter::User);
}

/// Where there is no disk in memory: a limit on files, too.
#[test]
fn a_worker_of_a_stack_that_writes_no_file_makes_none_longer() {
    for (skip, end) in [(0, Fails(EACCES)), (CALLS, Fails(libc::EFBIG)), (CALLS | LIMITS, Succeeds)]
    {
        let server = builder(Starter::User, skip, &["redteam", "diskless=true"]).start();
        assert_eq!(carry_out(&server, "fill-memfd=64").0, end, "without {skip}");
    }
}
