//! The sandbox around code in C: it holds for every thread that a plugin has started, whenever that
//! was. What it stops is tried without the layer that stops it, too. Ours only.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;

use nbdkit_tests::binary::Binary;
use nbdkit_tests::{Ask, Server};
use nix::libc::{EACCES, EPERM};
use nix::unistd::geteuid;

use crate::support::{cc, compile, open};

/// The layers of `-D nbdkit.skip`, nbdkit-worker/src/sandbox/skip.rs.
const CAPABILITIES: u32 = 2;
const PATHS: u32 = 4;
const CALLS: u32 = 8;
const LIMITS: u32 = 16;

/// What the threads of `load`, `get_ready` and `after_fork` have each come to: 0 or an errno.
fn each_thread(server: &Server, order: &str) -> Vec<i32> {
    let mut client = server.connect();
    open(&mut client);
    let mut text = order.as_bytes().to_vec();
    text.push(0);
    assert_eq!(client.call(&Ask::write(0, text)).expect("a reply").error, None);
    let answer = client.call(&Ask::read(0, 64)).expect("a reply").data;
    let answer = String::from_utf8(answer).unwrap();
    let lines = answer.trim_end_matches('\0').lines().enumerate();
    lines
        .map(|(number, line)| {
            let (its, outcome) = line.split_once(' ').unwrap();
            assert_eq!(its.parse(), Ok(number), "{answer}");
            outcome.parse().unwrap()
        })
        .collect()
}

fn server(skip: u32, options: &[&str]) -> Server {
    server_of(&[], skip, options)
}

/// As the plugin is compiled with `flags`.
fn server_of(flags: &[&str], skip: u32, options: &[&str]) -> Server {
    let skip = format!("nbdkit.skip={skip}");
    let plugin = compile("threads.c", flags);
    let builder = Server::nbdkit(["-D", &skip]).binary(Binary::red_team());
    builder.args(options).arg(plugin).start()
}

/// The fields of the status of each thread of the template.
fn statuses(server: &Server) -> Vec<BTreeMap<String, String>> {
    let threads = std::fs::read_dir(format!("/proc/{}/task", server.template()));
    let status = |path: std::path::PathBuf| std::fs::read_to_string(path.join("status")).unwrap();
    let fields = |text: String| {
        let pairs = text.lines().filter_map(|line| line.split_once(':'));
        pairs.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect()
    };
    threads.unwrap().map(|thread| fields(status(thread.unwrap().path()))).collect()
}

#[test]
fn every_thread_of_a_plugin_shows_the_same_sandbox() {
    let mut users = vec![&[][..]];
    if geteuid().is_root() {
        users.push(&["-u", "nobody"]);
    }
    for user in users {
        for level in ["strict", "compat"] {
            let level = format!("--sandbox={level}");
            let server = server(0, &[&[&*level], user].concat());
            let mut client = server.connect();
            open(&mut client);
            let statuses = statuses(&server);
            assert!(statuses.len() >= 4, "{statuses:?}");
            for name in
                ["Uid", "CapPrm", "CapEff", "CapBnd", "NoNewPrivs", "Seccomp", "Seccomp_filters"]
            {
                let values: BTreeSet<_> = statuses.iter().map(|status| &status[name]).collect();
                assert_eq!(values.len(), 1, "{level} {user:?}: {name}: {values:?}");
            }
            let status = &statuses[0];
            assert_eq!((&*status["NoNewPrivs"], &*status["Seccomp"]), ("1", "2"), "{level}");
            if geteuid().is_root() {
                assert_eq!(status["CapBnd"], "0000000000000000", "{level} {user:?}");
            }
        }
    }
}

#[test]
fn a_plugin_with_a_thread_that_cannot_be_confined_is_not_served() {
    for (flag, reason) in [
        (
            "-DDEAF",
            "a thread of the plugin or of a filter does not react, so it cannot be confined",
        ),
        ("-DFILTERED", "seccomp: "),
    ] {
        let plugin = compile("threads.c", &[flag]);
        let start = |option| Server::nbdkit([option, &*plugin]).binary(Binary::ours()).try_start();
        let finished = start("--sandbox=compat").expect_err("refused");
        assert!(finished.stderr.contains(reason), "{}", finished.stderr);
        assert!(start("--sandbox=off").is_ok(), "{flag}");
    }
}

/// Whether there are threads is asked of the kernel; which, only /proc says.
#[test]
fn threads_that_cannot_be_checked_for_want_of_proc_are_refused() {
    if !geteuid().is_root() {
        eprintln!("SKIPPED: takes root");
        return;
    }
    let script = r#"exec unshare -m sh -c 'umount -l /proc && exec "$0" "$@"' "$0" "$@""#;
    let start = |plugin: &str, option: &str| {
        let builder = Server::nbdkit([option, plugin]).binary(Binary::ours());
        builder.through_shell(script).try_start()
    };
    let plugin = compile("threads.c", &[]);
    for level in ["--sandbox=compat", "--sandbox=strict"] {
        let finished = start(&plugin, level).expect_err("refused");
        assert!(finished.stderr.contains("threads cannot be confined: "), "{}", finished.stderr);
    }
    assert!(start(&plugin, "--sandbox=off").is_ok());
    assert!(start(&compile("plain.cc", &[]), "--sandbox=compat").is_ok(), "it has none");
}

#[test]
fn no_thread_of_a_plugin_mounts_anything() {
    if !geteuid().is_root() {
        eprintln!("SKIPPED: takes root");
        return;
    }
    // The filter, then the missing capability.
    for (skip, outcome) in [(0, EPERM), (CALLS, EPERM), (CALLS | CAPABILITIES, 0)] {
        let server = server(skip, &["--sandbox=compat"]);
        assert_eq!(each_thread(&server, "mount"), [outcome; 3], "without {skip}");
    }
}

#[test]
fn no_thread_of_a_strict_plugin_opens_what_was_not_allowed() {
    for (skip, outcome) in [(0, EACCES), (CALLS, EACCES), (PATHS, 0)] {
        let server = server(skip, &["--sandbox=strict", "--allow-path=/etc/hostname"]);
        assert_eq!(each_thread(&server, "open /etc/hostname"), [0; 3], "without {skip}");
        assert_eq!(each_thread(&server, "open /etc/passwd"), [outcome; 3], "without {skip}");
    }
    // The same thread is told twice, and there is no other.
    for _ in 0..10 {
        let options = ["--sandbox=strict", "--allow-path=/etc/hostname"];
        let server = server_of(&["-DONE"], CALLS, &options);
        assert_eq!(each_thread(&server, "open /etc/passwd"), [EACCES]);
    }
    // Nothing allowed: the filter alone is enough, and so are the rules.
    for (skip, outcome) in [(PATHS, EACCES), (CALLS, EACCES), (CALLS | PATHS, 0)] {
        let server = server(skip, &["--sandbox=strict"]);
        assert_eq!(each_thread(&server, "open /etc/passwd"), [outcome; 3], "without {skip}");
    }
}

#[test]
fn no_thread_of_a_plugin_becomes_root_by_a_program() {
    if !geteuid().is_root() {
        eprintln!("SKIPPED: takes root");
        return;
    }
    // Where it is readable for all, and set-user-id counts.
    let directory = nbdkit_tests::TempDir::new();
    std::fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).unwrap();
    let program = directory.join("rights");
    let finished = cc("rights.c", &[], &["-o", program.to_str().unwrap()]);
    assert!(finished.status.success(), "{}", finished.stderr);
    std::fs::set_permissions(&program, Permissions::from_mode(0o4755)).unwrap();
    let order = format!("program {}", program.display());
    for (option, outcome) in [("--sandbox=compat", 0), ("--sandbox=off", 9)] {
        let server = server(0, &["-u", "nobody", option]);
        assert_eq!(each_thread(&server, &order), [outcome; 3], "{option}");
    }
    // Root without -u: what it executes has none of root's capabilities, but is root.
    let server = server(LIMITS | CALLS, &["--sandbox=compat", "-u", "nobody"]);
    assert_eq!(each_thread(&server, &order), [9; 3], "no_new_privs is what stops it");
}
