//! The workers' sandbox from outside: what /proc says of template, worker and every thread, and
//! what happens when a worker tries what it may not. Each layer has a test that sees it gone with
//! `--sandbox=off`. Ours only.
//!
//! `spawner`: the process that makes new templates.
//!
//! Forbidden calls are made by the red-team plugin: an export `syscall=NUMBER,...`. See also
//! `red_team`.

mod spawner;

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use nbdkit_tests::binary::Binary;
use nbdkit_tests::processes::{children, children_called, eventually};
use nbdkit_tests::red_team::attack;
use nbdkit_tests::server::Builder;
use nbdkit_tests::server::ours;
use nbdkit_tests::{Ask, Server};
use nix::unistd::{Uid, User, geteuid};

/// x86-64 numbers, arch/x86/entry/syscalls/syscall_64.tbl; the tests that use them run on that
/// machine only.
const GETPID: u32 = 39;
const SOCKET: u32 = 41;
const CLONE: u32 = 56;
const FORK: u32 = 57;
const EXECVE: u32 = 59;
const KILL: u32 = 62;
const FCNTL: u32 = 72;
const PTRACE: u32 = 101;
const MMAP: u32 = 9;
const SETSOCKOPT: u32 = 54;
const PRCTL: u32 = 157;
const PRLIMIT64: u32 = 302;
const IOCTL: u32 = 16;
const UNSHARE: u32 = 272;
const TGKILL: u32 = 234;
const BPF: u32 = 321;
const CLONE3: u32 = 435;
const OPEN: u32 = 2;

/// The fields of /proc/PID/task/TID/status, for each thread. Without those that end meanwhile: a
/// thread of the pool, or a program that a script runs.
fn statuses(pid: i32) -> Vec<BTreeMap<String, String>> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let texts =
        threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("status")).ok());
    let fields = |text: String| {
        let pairs = text.lines().filter_map(|line| line.split_once(':'));
        pairs.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect()
    };
    texts.map(fields).collect()
}

/// Whoever owns /proc/PID/ns of a process that is not dumpable is root. proc(5).
fn is_dumpable(pid: i32, user: Uid) -> bool {
    std::fs::metadata(format!("/proc/{pid}/environ")).expect("alive").uid() == user.as_raw()
}

/// Asserts what /proc shows of a confined process.
fn assert_confined(pid: i32, filters: u32, user: Uid, capabilities: &str) {
    for status in statuses(pid) {
        let field = |name: &str| status.get(name).map_or("", String::as_str);
        assert_eq!(field("NoNewPrivs"), "1", "{status:?}");
        assert_eq!(field("Seccomp"), "2", "{status:?}");
        assert_eq!(field("Seccomp_filters"), filters.to_string(), "{status:?}");
        for set in ["CapEff", "CapPrm"] {
            assert_eq!(field(set), capabilities, "{set}: {status:?}");
        }
        for set in ["CapInh", "CapAmb"] {
            assert_eq!(field(set), NONE, "{set}: {status:?}");
        }
        // An ordinary user may not empty it, and does not need to: nothing is gained by exec any
        // more.
        if geteuid().is_root() {
            assert_eq!(field("CapBnd"), NONE, "{status:?}");
        }
        let ids = |id: u32| [id; 4].map(|id| id.to_string()).join("\t");
        assert_eq!(field("Uid"), ids(user.as_raw()), "{status:?}");
    }
    if !user.is_root() {
        assert!(!is_dumpable(pid, user), "others of the user may look into it");
    }
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits"));
    // Like its memory, not for others of the user to see, on kernels that say so.
    if let Ok(limits) = limits {
        let limit = |name: &str| {
            let line = limits.lines().find(|line| line.starts_with(name)).expect("a limit");
            line[name.len()..].split_whitespace().take(2).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(limit("Max core file size"), "0 0");
        assert_eq!(limit("Max msgqueue size"), "0 0");
    }
}

const NONE: &str = "0000000000000000";

#[test]
fn template_and_worker_and_every_thread_are_confined() {
    // Requests that wait make the pool start threads.
    let server = ours(&["--filter=delay", "memory", "1M", "rdelay=200ms"]).start();
    let mut client = server.connected("");
    for _ in 0..4 {
        client.send(&Ask::read(0, 512)).expect("sent");
    }
    let template = server.template();
    let [worker] = children(template)[..] else { panic!("one worker") };
    eventually("a second thread", || statuses(worker).len() > 1);
    assert_confined(template, 3, geteuid(), NONE);
    assert_confined(worker, 4, geteuid(), NONE);
}

#[test]
fn root_that_becomes_nobody_keeps_nothing() {
    if !geteuid().is_root() {
        eprintln!("skipped: takes root");
        return;
    }
    let server = ours(&["-u", "nobody", "null", "1M"]).start();
    let _client = server.connected("");
    let nobody = User::from_name("nobody").expect("users").expect("a nobody").uid;
    let template = server.template();
    let [worker] = children(template)[..] else { panic!("one worker") };
    for pid in [template, worker] {
        let filters = if pid == worker { 4 } else { 3 };
        assert_confined(pid, filters, nobody, NONE);
        assert!(statuses(pid).iter().all(|status| status["Groups"].split(' ').count() <= 1));
    }
}

/// Its own namespaces: only root may make them.
#[test]
fn root_gives_workers_namespaces_of_their_own() {
    if !geteuid().is_root() {
        eprintln!("skipped: takes root");
        return;
    }
    let shares = |option: &str| {
        let server = ours(&[option, "null", "1M"]).start();
        let _client = server.connected("");
        let [worker] = children(server.template())[..] else { panic!("one worker") };
        ["net", "ipc", "uts", "mnt"].map(|name| {
            let of = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/{name}"));
            of(&worker.to_string()).expect("alive") == of("self").expect("us")
        })
    };
    // Mounts are the machine's: a copy of them would keep file systems in use.
    assert_eq!(shares("--sandbox=strict"), [false, false, false, true]);
    assert_eq!(shares("--sandbox=compat"), [true, false, false, true]);
    assert_eq!(shares("--sandbox=off"), [true; 4]);
}

/// Root without -u may be asked to serve what only root can open.
#[test]
fn a_file_of_another_user_is_served_with_one_capability_of_the_broker() {
    if !geteuid().is_root() {
        eprintln!("skipped: takes root");
        return;
    }
    let builder = ours(&["file", "{dir}/disk"]);
    let path = builder.dir().join("disk");
    std::fs::write(&path, [7; 4096]).expect("written");
    let nobody = User::from_name("nobody").expect("users").expect("a nobody");
    std::os::unix::fs::chown(&path, Some(nobody.uid.as_raw()), None).expect("given away");
    std::fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("closed");
    let server = builder.start();
    let mut client = server.connected("");
    assert_eq!(client.call(&Ask::read(0, 4)).expect("a reply").data, [7; 4]);
    assert_eq!(client.call(&Ask::write(0, *b"w")).expect("a reply").error, None);
    assert_eq!(holders(&server), "0000000000000002", "CAP_DAC_OVERRIDE is number 1");
    let read_only = ours(&["-r", "file"]).arg(&path).start();
    let mut client = read_only.connected("");
    assert_eq!(client.call(&Ask::read(0, 4)).expect("a reply").data, [b'w', 7, 7, 7]);
    assert_eq!(holders(&read_only), "0000000000000004", "CAP_DAC_READ_SEARCH is number 2");
}

/// The capabilities of the broker, where nobody else has any.
fn holders(server: &Server) -> String {
    let template = server.template();
    let brokers = || -> Vec<i32> {
        let comm = |pid: &i32| std::fs::read_to_string(format!("/proc/{pid}/comm"));
        let is = |pid: &i32| comm(pid).is_ok_and(|its| its.trim() == "nbdkit:broker");
        children(template).into_iter().filter(is).collect()
    };
    eventually("a broker", || !brokers().is_empty());
    let [broker] = brokers()[..] else { panic!("one broker") };
    eventually("it is confined", || statuses(broker)[0]["Seccomp"] == "2");
    let capabilities = statuses(broker)[0]["CapEff"].clone();
    assert_confined(broker, 1, geteuid(), &capabilities);
    assert_confined(template, 3, geteuid(), NONE);
    for worker in children(template).into_iter().filter(|pid| *pid != broker) {
        assert_confined(worker, 4, geteuid(), NONE);
    }
    capabilities
}

#[test]
fn the_listener_is_confined_once_it_serves_and_not_without_a_sandbox() {
    let state = |option: &str| {
        let server = ours(&[option, "null", "1M"]).start();
        let _client = server.connected("");
        let status = statuses(server.pid().as_raw()).remove(0);
        let spawners = children_called(server.pid().as_raw(), "nbdkit:spawner").len();
        (status["NoNewPrivs"].clone(), status["Seccomp"].clone(), spawners)
    };
    assert_eq!(state("--sandbox=strict"), ("1".to_owned(), "2".to_owned(), 1));
    assert_eq!(state("--sandbox=compat"), ("1".to_owned(), "2".to_owned(), 1));
    assert_eq!(state("--sandbox=off"), ("0".to_owned(), "0".to_owned(), 0));
}

#[test]
fn without_a_sandbox_none_of_it_is_there_and_the_log_says_so() {
    let server = ours(&["-v", "--sandbox=off", "null", "1M"]).start();
    let _client = server.connected("");
    let [worker] = children(server.template())[..] else { panic!("one worker") };
    let status = &statuses(worker)[0];
    assert_eq!((&*status["NoNewPrivs"], &*status["Seccomp"]), ("0", "0"));
    assert!(is_dumpable(worker, geteuid()));
    let _ = server.wait_for_stderr("--sandbox=off: clients are served without a sandbox");
}

#[test]
fn compat_refuses_a_list_and_keeps_paths_open() {
    let server = ours(&["--sandbox=compat", "null", "1M"]).start();
    let _client = server.connected("");
    let template = server.template();
    let status = &statuses(template)[0];
    assert_eq!((&*status["NoNewPrivs"], &*status["Seccomp"]), ("1", "2"));
    assert_eq!(status["Seccomp_filters"], "3");
}

/// What a worker's call came to.
#[derive(Debug, PartialEq)]
enum Outcome {
    /// The worker lives and the call returned with this errno.
    Errno(i32),
    /// The worker is gone, and the log says why.
    Refused,
}

use Outcome::{Errno, Refused};

/// Has a worker of `server` make a system call.
fn call(server: &Server, number: u32, arguments: &[u64]) -> Outcome {
    let arguments = arguments.iter().map(|argument| format!(",{}", argument.cast_signed()));
    let export = format!("syscall={number}{}", arguments.collect::<String>());
    let refused = format!("the sandbox refused system call {number} (");
    let count = || server.stderr_text().lines().filter(|line| line.contains(&refused)).count();
    let before = count();
    let Some(text) = attack(server, &export) else {
        eventually(&refused, || count() > before);
        return Refused;
    };
    Errno(text.strip_prefix("errno ").map_or(0, |number| number.parse().expect("a number")))
}

fn caller(options: &[&str]) -> Server {
    let builder = Server::nbdkit(options).binary(Binary::red_team());
    builder.arg("redteam").start()
}

#[test]
#[cfg(target_arch = "x86_64")]
fn a_forbidden_call_costs_its_client_only_and_is_named() {
    let server = caller(&["--filter=nozero"]);
    let mut bystander = server.connected("");
    assert_eq!(call(&server, PTRACE, &[]), Refused);
    let line = server.wait_for_stderr("refused system call");
    assert!(line.contains("101 (ptrace) to the worker (pid "), "{line}");
    assert!(line.contains("client pid ") && line.contains("stack nozero redteam)"), "{line}");
    assert_eq!(bystander.call(&Ask::read(0, 512)).expect("served still").data, [0; 512]);
    assert_eq!(server.connected("").call(&Ask::read(0, 1)).expect("a new client").data, [0]);
    let lines = server.stderr_text();
    assert_eq!(lines.lines().filter(|line| line.contains("error")).count(), 1, "{lines}");
}

#[test]
#[cfg(target_arch = "x86_64")]
fn arguments_are_held_against_the_list() {
    let server = caller(&[]);
    let (eacces, enosys, ebadf, efault) = (13, 38, 9, 14);
    for (number, arguments, outcome) in [
        (GETPID, &[][..], None),
        // Two megabytes of memory, to read and write; to execute.
        (MMAP, &[0, 2 << 20, 3, 0x22, u64::MAX, 0], None),
        (MMAP, &[0, 2 << 20, 7, 0x22, u64::MAX, 0], Some(Refused)),
        (SOCKET, &[2, 1, 0], Some(Refused)),
        (SOCKET, &[1, 1, 0], Some(Refused)),
        // Processes, in every way.
        (FORK, &[], Some(Refused)),
        (CLONE, &[17], Some(Refused)),
        (CLONE3, &[0, 0], Some(Errno(enosys))),
        (EXECVE, &[0, 0, 0], Some(Refused)),
        (UNSHARE, &[0x1000_0000], Some(Refused)),
        // Signals to others: the listener, one by one.
        (KILL, &[1, 0], Some(Refused)),
        (TGKILL, &[1, 1, 6], Some(Refused)),
        (FCNTL, &[0, 8, 1], Some(Refused)),
        (FCNTL, &[u64::from(u32::MAX), 1, 0], Some(Errno(ebadf))),
        // BLKGETSIZE64 and BLKRRPART of nothing.
        (IOCTL, &[u64::from(u32::MAX), 0x8008_1272, 0], Some(Errno(ebadf))),
        (IOCTL, &[u64::from(u32::MAX), 0x125f, 0], Some(Refused)),
        // SO_RCVTIMEO and SO_ATTACH_FILTER, IPT_SO_SET_REPLACE, of nothing.
        (SETSOCKOPT, &[u64::from(u32::MAX), 1, 20, 0, 0], Some(Errno(ebadf))),
        (SETSOCKOPT, &[u64::from(u32::MAX), 1, 26, 0, 0], Some(Refused)),
        (SETSOCKOPT, &[u64::from(u32::MAX), 0, 64, 0, 0], Some(Refused)),
        // A pointer to new limits whose lower half is zero.
        (PRLIMIT64, &[0, 7, 0, 0], None),
        (PRLIMIT64, &[0, 7, 1 << 32, 0], Some(Refused)),
        // PR_SET_NAME of nothing, PR_SET_DUMPABLE, PR_SET_MM.
        (PRCTL, &[15, 0], Some(Errno(efault))),
        (PRCTL, &[4, 1], Some(Refused)),
        (PRCTL, &[35, 1], Some(Refused)),
        // TIOCSTI
        (IOCTL, &[u64::from(u32::MAX), 0x5412, 0], Some(Refused)),
        (BPF, &[], Some(Refused)),
        (OPEN, &[], Some(Refused)),
        // openat(2) fails as in a file that is not ours.
        (257, &[0, 0, 0], Some(Errno(eacces))),
    ] {
        let got = call(&server, number, arguments);
        match outcome {
            Some(outcome) => assert_eq!(got, outcome, "{number} {arguments:x?}"),
            None => assert_ne!(got, Refused, "{number} {arguments:x?}"),
        }
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn the_same_calls_pass_without_a_sandbox_and_fail_softly_in_compat() {
    // ESRCH: there is nothing to trace under that number. EPERM: the filter. EBADF: it got as far
    // as the descriptor.
    let off = caller(&["--sandbox=off"]);
    assert_eq!(call(&off, PTRACE, &[16, 0x7fff_fff0]), Errno(3));
    assert_eq!(call(&off, FCNTL, &[u64::from(u32::MAX), 8, 1]), Errno(9));
    let compat = caller(&["--sandbox=compat"]);
    assert_eq!(call(&compat, PTRACE, &[16, 0x7fff_fff0]), Errno(1));
    assert_eq!(call(&compat, FCNTL, &[u64::from(u32::MAX), 8, 1]), Errno(9));
}

/// What compat refuses in another way than by the list of what no server of disks calls. Without a
/// sandbox the kernel answers.
#[test]
#[cfg(target_arch = "x86_64")]
fn compat_refuses_namespaces_by_every_number_and_families_and_the_terminals_input() {
    const X32: u32 = 0x4000_0000;
    let (eperm, ebadf, einval, enosys, eafnosupport) = (1, 9, 22, 38, 97);
    let no_descriptor = u64::from(u32::MAX);
    let servers =
        ["compat", "programs", "off"].map(|level| caller(&[&format!("--sandbox={level}")]));
    for (number, arguments, refused, off) in [
        // A size that no kernel takes.
        (CLONE3, &[0, 0][..], enosys, einval),
        (UNSHARE | X32, &[0x1000_0000], eperm, enosys),
        (GETPID | X32, &[], eperm, enosys),
        // TIOCSTI and TIOCLINUX, of nothing; high bits, which the kernel does not look at.
        (IOCTL, &[no_descriptor, 0x5412], eperm, ebadf),
        (IOCTL, &[no_descriptor, 0x5412 | 1 << 32], eperm, ebadf),
        (IOCTL, &[no_descriptor, 0x541c], eperm, ebadf),
        // AF_UNIX, AF_INET and AF_NETLINK of NETLINK_ROUTE, with a type that there is not.
        (SOCKET, &[1, 7, 0], 94, 94),
        (SOCKET, &[2, 7, 0], 94, 94),
        (SOCKET, &[16, 7, 0], 94, 94),
        // AF_PACKET: the machine's packets.
        (SOCKET, &[17, 7, 0], eafnosupport, 94),
    ] {
        for (server, level) in servers.iter().zip(["compat", "programs", "off"]) {
            // A machine may have x32, or no packets.
            let expected = if level == "off" { off } else { refused };
            let got = call(server, number, arguments);
            let lenient = level == "off" && (number & X32 != 0 || arguments.first() == Some(&17));
            assert!(
                got == Errno(expected) || lenient,
                "{level} {number:#x} {arguments:x?}: {got:?}"
            );
        }
    }
}

/// As on a kernel that lacks something: `-D nbdkit.lacks` and `nbdkit.landlock` of
/// nbdkit-worker/src/sandbox/skip.rs.
fn on_a_kernel(flag: &str, options: &[&str]) -> Builder {
    let builder = Server::nbdkit(["-v", "-D", flag]).binary(Binary::red_team());
    builder.args(options).args(["redteam", "path=/etc/hostname"])
}

#[test]
fn a_layer_that_the_kernel_lacks_is_said_and_ends_the_start_where_all_are_demanded() {
    for (flag, words) in [
        ("nbdkit.lacks=8", "this kernel has no seccomp filters: system calls are not restricted"),
        (
            "nbdkit.lacks=4",
            "this kernel has no Landlock: paths are not restricted but by permissions",
        ),
    ] {
        let server = on_a_kernel(flag, &[]).start();
        let notices = |text: &str| text.matches(words).count();
        let _client = server.connected("");
        let _ = server.wait_for_stderr(words);
        assert_eq!(notices(&server.stderr_text()), 1, "{flag}");
        let finished = on_a_kernel(flag, &["--sandbox=strict"]).try_start().expect_err(flag);
        let line = format!("nbdkit: error: --sandbox=strict: {words}");
        assert!(finished.stderr.contains(&line), "{}", finished.stderr);
    }
}

#[test]
fn what_an_old_landlock_does_not_restrict_is_said_once_and_the_rest_is_restricted() {
    for (version, lacks) in [
        (2, "truncation, TCP, ioctl of devices, signals and abstract sockets"),
        (4, "ioctl of devices, signals and abstract sockets"),
    ] {
        let flag = format!("nbdkit.landlock={version}");
        let server = on_a_kernel(&flag, &["--sandbox=strict"]).start();
        let words = format!("version {version}, which does not restrict: {lacks}");
        let _ = server.wait_for_stderr(&words);
        assert_eq!(attack(&server, "open=/etc/hostname").as_deref(), Some("ok"));
        assert_eq!(attack(&server, "open=/etc/passwd").as_deref(), Some("errno 13"));
        assert_eq!(server.stderr_text().matches(&words).count(), 1);
    }
}

/// One process for all, so all connections go; the next clients find a new one.
#[test]
#[cfg(target_arch = "x86_64")]
fn a_forbidden_call_in_a_shared_process_is_named_and_the_process_replaced() {
    let server = caller(&["-v", "--isolation=shared"]);
    assert_eq!(call(&server, PTRACE, &[]), Refused);
    let line = server.wait_for_stderr("refused system call");
    assert!(line.contains("101 (ptrace) to the template (pid "), "{line}");
    let _ = server.wait_for_stderr("the template was replaced");
    assert_eq!(server.connected("").call(&Ask::read(0, 1)).expect("served").data, [0]);
}

/// A script that tries to reach a file beside its own directory.
fn scripted(option: &str) -> (Vec<u8>, String) {
    let script = "case $1 in get_size) echo 512;; \
        pread) (cat \"$secret\" 2>/dev/null || printf refused; : > \"$tmpdir/made\" && printf made) \
        | dd bs=512 conv=sync count=1 iflag=fullblock 2>/dev/null;; *) exit 2;; esac";
    let builder = ours(&[option, "sh", "{dir}/script"]);
    let secret = builder.dir().join("secret");
    std::fs::write(&secret, "secret").expect("written");
    let path = builder.dir().join("script");
    std::fs::write(&path, format!("#!/bin/sh\nsecret='{}'\n{script}\n", secret.display()))
        .expect("written");
    std::fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("executable");
    let mut server = builder.start();
    let mut client = server.connected("");
    let data = client.call(&Ask::read(0, 512)).expect("a reply").data;
    drop(client);
    assert!(server.stop().success());
    (data, server.stderr_text_after_end())
}

#[test]
fn a_script_reaches_the_system_and_its_directory_and_nothing_else() {
    let (data, log) = scripted("--sandbox=strict");
    assert!(data.starts_with(b"refusedmade\0"), "{}", data.escape_ascii());
    assert_eq!(log, "", "its directory is removed without a word");
    let (data, _) = scripted("--sandbox=off");
    assert!(data.starts_with(b"secretmade\0"), "{}", data.escape_ascii());
}
