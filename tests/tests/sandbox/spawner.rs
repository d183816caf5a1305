//! The spawner: what it holds, when it ends, what it may not call; and that the templates that it
//! makes are as the first was.

use std::os::unix::fs::chown;

use nbdkit_tests::processes::{children, children_called, eventually};
use nbdkit_tests::server::ours;
use nbdkit_tests::{Ask, Server};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User, geteuid};

use crate::{NONE, statuses};

/// The spawner: made after the pid file, and before the first client is served.
fn spawner(server: &Server) -> i32 {
    eventually("a spawner", || {
        !children_called(server.pid().as_raw(), "nbdkit:spawner").is_empty()
    });
    let _served = server.connected("");
    children_called(server.pid().as_raw(), "nbdkit:spawner")[0]
}

#[test]
fn the_spawner_holds_a_channel_and_a_program_and_is_there_only_to_replace_templates() {
    let disk = ours(&["memory", "1M"]).start();
    let _served = disk.connected("");
    assert_eq!(
        children_called(disk.pid().as_raw(), "nbdkit:spawner"),
        [],
        "a RAM disk is not made anew"
    );
    let mut server = ours(&["null", "1M"]).start();
    let spawner = spawner(&server);
    // As soon as it has learned what a template is.
    eventually("no capabilities", || statuses(spawner)[0]["CapPrm"] == NONE);
    let open = || std::fs::read_dir(format!("/proc/{spawner}/fd")).expect("alive").count();
    eventually("three standard streams, the channel and the template's program", || open() == 5);
    // Without it the server goes on, until a template would have to be replaced.
    let end = |pid| kill(Pid::from_raw(pid), Signal::SIGKILL).expect("ours");
    end(spawner);
    let _ = server.wait_for_stderr("the spawner has ended");
    assert_eq!(server.connected("").call(&Ask::read(0, 1)).expect("served").data, [0]);
    end(server.template());
    assert_eq!(server.wait().code(), Some(1));
    let _ = server.wait_for_stderr("there is nobody to make a new one");
}

#[test]
fn the_spawner_ends_with_the_listener_however_that_ends() {
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let mut server = ours(&["null", "1M"]).start();
        let spawner = spawner(&server);
        server.signal(signal);
        let _ = server.wait();
        let state = || std::fs::read_to_string(format!("/proc/{spawner}/stat"));
        eventually("it ends", || state().map_or(true, |stat| stat.contains(") Z ")));
    }
}

/// What /proc says about what a template may do, and its first child's: the broker or a worker.
fn rights(pid: i32) -> Vec<String> {
    let fields =
        ["Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs"];
    let status = &statuses(pid)[0];
    fields.iter().map(|field| format!("{field} {}", status[*field])).collect()
}

/// The listener and all that descends from it, and whether each has a filter in each thread. Not
/// what scripts run.
fn filtered(server: &Server) -> Vec<(String, bool)> {
    let mut all = vec![server.pid().as_raw()];
    let mut next = 0;
    while let Some(pid) = all.get(next).copied() {
        // One that has ended meanwhile has none.
        if std::fs::exists(format!("/proc/{pid}/task")).is_ok_and(|it| it) {
            all.extend(children(pid));
        }
        next += 1;
    }
    let name = |pid: i32| std::fs::read_to_string(format!("/proc/{pid}/comm"));
    all.into_iter()
        .filter_map(|pid| {
            let name = name(pid).ok()?.trim().to_owned();
            Some((name, statuses(pid).iter().all(|its| its["Seccomp"] == "2")))
        })
        .collect()
}

/// The spawner may just have been started.
fn assert_all_filtered(server: &Server, what: &str) {
    let _client = server.connected("");
    let of = |found: &[(String, bool)], name| {
        found.iter().filter(|it| it.0 == name && it.1).count() == 1
    };
    eventually(what, || {
        let found = filtered(server);
        // A shared template serves by itself.
        let serve = of(&found, "nbdkit:worker") || found.len() == 3;
        serve && of(&found, "nbdkit:spawner") && found.iter().all(|(_, filtered)| *filtered)
    });
}

/// Root that may not administer the machine, as in containers.
const WITHOUT_RIGHT: &str = "setpriv --bounding-set=-sys_admin";

/// Whoever starts the server, and how it is confined: a process without a filter is none that
/// serves clients, or waits to. A template that replaces another has the rights of that, and
/// serves.
#[test]
fn no_process_is_without_a_filter_and_new_templates_are_as_the_first() {
    let plugin = std::fs::read_dir("/usr/lib")
        .expect("libraries")
        .filter_map(|entry| Some(entry.ok()?.path().join("nbdkit/plugins/nbdkit-null-plugin.so")))
        .find(|path| path.exists())
        .expect("Debian's nbdkit is installed");
    let plugin = plugin.to_str().expect("a path").to_owned();
    let script: &[&str] = &["--filter=log", "null", "1M", "logscript=true"];
    let stacks: [&[&str]; 4] = [&["null", "1M"], &["file", "{dir}/disk"], script, &[&plugin, "1M"]];
    let nobody = User::from_name("nobody").expect("users").expect("a nobody");
    let (user, group) = (nobody.uid.as_raw(), nobody.gid.as_raw());
    let as_nobody = format!("setpriv --reuid={user} --regid={group} --clear-groups");
    let starts: &[(&str, &[&str])] = if geteuid().is_root() {
        &[
            ("", &[]),
            ("", &["-u", "nobody"]),
            ("", &["-u", "nobody", "--listener-user=daemon"]),
            ("setpriv --no-new-privs", &["-u", "nobody"]),
            (WITHOUT_RIGHT, &["-u", "nobody"]),
            ("setpriv --no-new-privs", &["-u", "nobody", "--listener-user=daemon"]),
            (&as_nobody, &[]),
        ]
    } else {
        &[("", &[])]
    };
    for (number, stack) in stacks.iter().enumerate() {
        for (prefix, options) in starts {
            let what = format!("{prefix} {options:?} {stack:?}");
            let builder = ours(&[options, *stack].concat());
            let disk = builder.dir().join("disk");
            std::fs::write(&disk, [0; 4096]).expect("written");
            for path in [builder.dir().path(), &disk].into_iter().filter(|_| geteuid().is_root()) {
                chown(path, Some(user), Some(group)).expect("given away");
            }
            let start = format!(r#"exec {prefix} "$0" "$@""#);
            let server = builder.through_shell(&start).start();
            // What such a stack starts may gain privileges, so that its spawner must let it.
            let lacks_right = !geteuid().is_root() || [WITHOUT_RIGHT, &as_nobody].contains(prefix);
            let has_filter = !lacks_right || number < 2;
            if has_filter {
                assert_all_filtered(&server, &what);
            }
            let first = server.template();
            let had = rights(first);
            kill(Pid::from_raw(first), Signal::SIGKILL).expect("ours");
            let _ = server.wait_for_stderr("was killed by SIGKILL");
            let read = server.connected("").call(&Ask::read(0, 512)).expect("served").data;
            assert_eq!(read, [0; 512], "{what}");
            assert_ne!(server.template(), first, "{what}");
            assert_eq!(rights(server.template()), had, "{what}");
            if has_filter {
                assert_all_filtered(&server, &format!("after a replacement: {what}"));
            }
        }
    }
}
