//! Hardening that takes /proc away, in whole or in part, takes no layer of ours away. Root only: it
//! mounts.

use std::fs::read_to_string;
use std::os::unix::fs::chown;

use nbdkit_tests::Ask;
use nbdkit_tests::processes::{descendants, eventually};
use nbdkit_tests::server::landlock_is;
use nix::unistd::User;

use crate::terminal::name;
use crate::{may_mount, server};

/// Filtered, and without new privileges.
const CONFINED: [&str; 2] = ["2", "1"];

/// What is done to /proc in a mount namespace of the server's own.
const WITHOUT_PROC: &str = "umount -l /proc";
const WITH_A_PART: &str = "mount -t proc -o subset=pid,hidepid=2 proc /proc";

/// Seccomp and NoNewPrivs of proc_pid_status(5), for each thread.
fn confined(pid: i32) -> Vec<[String; 2]> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let statuses = threads.filter_map(|thread| read_to_string(thread.path().join("status")).ok());
    let field = |status: &str, name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_default().trim().to_owned()
    };
    statuses.map(|it| [field(&it, "Seccomp:"), field(&it, "NoNewPrivs:")]).collect()
}

#[test]
fn whatever_becomes_of_proc_everybody_who_serves_is_confined() {
    if !may_mount() {
        eprintln!("SKIPPED: takes root, and the right to mount");
        return;
    }
    if landlock_is().is_some() {
        eprintln!("SKIPPED: --sandbox=strict does not start without all of Landlock");
        return;
    }
    let nobody = User::from_name("nobody").expect("users").expect("a nobody");
    let (user, group) = (nobody.uid.as_raw(), nobody.gid.as_raw());
    let become_user = format!("setpriv --reuid={user} --regid={group} --clear-groups");
    for (options, become_user) in [(&["-u", "nobody"][..], ""), (&[], &*become_user)] {
        for change in ["true", WITH_A_PART, WITHOUT_PROC] {
            let what = format!("{options:?} {become_user} {change}");
            let script = format!(
                r#"exec unshare -m sh -c '{change} && exec {become_user} "$0" "$@"' "$0" "$@""#
            );
            let builder = server(options).args(["--sandbox=strict", "file", "{dir}/disk"]);
            std::fs::write(builder.dir().join("disk"), [7; 4096]).expect("written");
            for path in [builder.dir().path().to_owned(), builder.dir().join("disk")] {
                chown(path, Some(user), Some(group)).expect("given away");
            }
            let server = builder.through_shell(&script).start();
            let mut client = server.connect();
            client.handshake().expect("a greeting");
            client.go("", &[]).expect("a reply");
            assert_eq!(client.call(&Ask::read(0, 1)).expect("served").data, [7], "{what}");
            let listener = server.pid().as_raw();
            // The spawner may be without no_new_privs, since the templates that it makes would
            // inherit that.
            let is_spawner =
                |pid: &i32| ["nbdkit:spawner", "nbdkit-spawner"].contains(&&*name(*pid));
            let ours = || -> Vec<i32> {
                let all = [vec![listener], descendants(listener)].concat();
                all.into_iter().filter(|pid| !is_spawner(pid)).collect()
            };
            eventually(&format!("{what}: template, broker and worker"), || ours().len() == 4);
            let is_confined = |pid| {
                let threads = confined(pid);
                !threads.is_empty() && threads.iter().all(|its| *its == CONFINED)
            };
            let spawners = || descendants(listener).into_iter().filter(is_spawner);
            let is_filtered = |pid| confined(pid).iter().all(|[filtered, _]| filtered == "2");
            eventually(&format!("{what}: all are confined"), || {
                ours().into_iter().all(is_confined) && spawners().all(is_filtered)
            });
        }
    }
}
