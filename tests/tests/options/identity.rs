//! `-u`, `-g` and `--swap`: as whom, and how, the processes that touch data run. Root only.

use std::os::unix::fs::PermissionsExt;

use nbdkit_tests::binary::Binary;
use nbdkit_tests::processes::{descendants, eventually};
use nbdkit_tests::server::Builder;
use nbdkit_tests::{Ask, Client, Server};
use nix::unistd::{Group, User};

use nbd_protocol::constants::Rep;

use crate::support::{
    DEADLINE, Paths, assert_refused, assert_serves, debian_lacks, line_in, needs_root, open, run,
};

/// A server with these options in a directory where any user may write: Debian's writes its pid
/// file as the new user.
fn server(options: &[&str]) -> Builder {
    let builder = Server::nbdkit(options);
    let anybody = std::fs::Permissions::from_mode(0o777);
    std::fs::set_permissions(builder.dir().path(), anybody).unwrap();
    builder
}

/// The same, serving a script that knows this case, a size and zeroes. Not eval: Debian's keeps its
/// scripts in a directory that the new user may not enter.
fn script_server(options: &[&str], case: &str) -> Builder {
    let builder = server(options).args(["sh", "{dir}/script"]);
    let script = builder.dir().join("script");
    let text = format!(
        r#"#!/bin/sh
        case "$1" in
            {case} ;;
            get_size) echo 1M ;;
            pread) head -c "$3" /dev/zero ;;
            *) exit 2 ;;
        esac
        "#
    );
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    builder
}

/// What a shell command that prints a number prints when a plugin runs it for a client: the size of
/// an export.
fn number_printed_by(options: &[&str], command: &str) -> u64 {
    let server = script_server(options, &format!("get_size) {command}")).start();
    let mut client = server.connect();
    open(&mut client);
    client.export().expect("an export").0
}

fn nobody() -> User {
    User::from_name("nobody").unwrap().expect("there is a nobody")
}

fn nogroup() -> Group {
    Group::from_name("nogroup").unwrap().expect("there is a nogroup")
}

#[test]
fn the_user_is_changed_by_name_and_by_number() {
    if needs_root("-u") {
        return;
    }
    let uid = nobody().uid.to_string();
    for options in [&["-u", "nobody"][..], &["-u", &uid], &["--user=nobody"]] {
        assert_eq!(number_printed_by(options, "id -u").to_string(), uid, "{options:?}");
        assert_eq!(number_printed_by(options, "id -ru").to_string(), uid, "{options:?}");
    }
}

#[test]
fn the_group_is_changed_by_name_and_by_number() {
    if needs_root("-g") {
        return;
    }
    let gid = nogroup().gid.to_string();
    for options in [&["-g", "nogroup"][..], &["-g", &gid], &["--group=nogroup"]] {
        let options = [options, &["-u", "nobody"]].concat();
        assert_eq!(number_printed_by(&options, "id -g").to_string(), gid, "{options:?}");
        assert_eq!(number_printed_by(&options, "id -rg").to_string(), gid, "{options:?}");
    }
}

#[test]
fn supplementary_groups_are_dropped() {
    if needs_root("-g") {
        return;
    }
    let count = number_printed_by(&["-u", "nobody", "-g", "nogroup"], "id -G | wc -w");
    assert_eq!(count, 1);
}

/// A shell script that starts the server as nobody, in the group disk too, and with these options
/// of setpriv(1).
fn as_a_member_of_disk(more: &str) -> String {
    let nobody = nobody().uid;
    format!(r#"exec setpriv --reuid={nobody} --regid={nobody} --groups=6 {more} "$0" "$@""#)
}

#[test]
fn a_group_comes_without_others_also_for_ordinary_users_who_may_change_it() {
    if needs_root("-g") {
        return;
    }
    let groups = |options: &[&str], more: &str| {
        let builder = script_server(options, "get_size) id -G | wc -w");
        builder.through_shell(&as_a_member_of_disk(more)).try_start().map(|server| {
            let mut client = server.connect();
            open(&mut client);
            client.export().expect("an export").0
        })
    };
    let may = "--inh-caps=+setgid --ambient-caps=+setgid";
    assert_eq!(groups(&["-g", "nogroup"], may).expect("served"), 1);
    assert_eq!(groups(&[], may).expect("served"), 2, "without -g they stay");
    let finished = groups(&["-g", "nogroup"], "").expect_err("refused");
    assert!(finished.stderr.contains("setgroups: Operation not permitted"), "{}", finished.stderr);
}

#[test]
fn what_the_user_may_not_read_is_not_served() {
    if needs_root("-u") {
        return;
    }
    let builder = server(&["-u", "nobody", "-g", "nogroup", "file", "{dir}/secret"]);
    let dir = builder.dir().path().to_owned();
    std::fs::write(dir.join("secret"), vec![1; 4096]).unwrap();
    std::fs::set_permissions(dir.join("secret"), std::fs::Permissions::from_mode(0o600)).unwrap();
    let server = builder.start();
    let mut client = server.connect();
    client.handshake().expect("a greeting");
    // Debian's server closes the connection when open fails; ours may answer.
    if let Ok(answer) = client.go("", &[]) {
        assert_ne!(answer.end.reply, Rep::ACK);
    }
}

#[test]
fn a_root_only_file_that_configuration_needs_is_read_before_the_change() {
    if needs_root("-u") {
        return;
    }
    let case = "config_complete) test $(id -u) = 0 || { echo already changed >&2; exit 1; }";
    let server = script_server(&["-u", "nobody"], case).start();
    assert_serves(&mut server.connect());
}

#[test]
fn scripts_of_the_command_line_run_as_the_new_user_and_are_removed() {
    if needs_root("-u") || debian_lacks("scripts of eval that the new user may run") {
        return;
    }
    let paths = Paths::new();
    // $0 is the script, in the directory that must go.
    let size = format!("get_size=dirname $0 >> {}; echo 1M", paths.write("where", ""));
    for name in [paths.path("where"), paths.dir.path().to_owned()] {
        std::fs::set_permissions(name, std::fs::Permissions::from_mode(0o777)).unwrap();
    }
    // The sandbox would keep the script from writing where we look.
    let options = ["--sandbox=off", "-u", "nobody", "eval", &size, "pread=head -c $3 /dev/zero"];
    let mut server = server(&options).start();
    assert_serves(&mut server.connect());
    assert!(server.stop().success());
    let directory = line_in(&paths.path("where"));
    assert!(!std::path::Path::new(directory.lines().next().unwrap()).exists(), "{directory}");
    assert!(!server.stderr_text_after_end().contains("could not"), "{directory}");
}

#[test]
fn a_privileged_port_is_bound_before_the_change() {
    if needs_root("-u") {
        return;
    }
    // A port below 1024 that nothing uses here.
    let free = |port: &u16| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok();
    let port = (900..1000).find(free).expect("a free port");
    let _server = server(&["-u", "nobody", "-i", "127.0.0.1", "-p", &port.to_string()])
        .arg("null")
        .without_unix_socket()
        .start();
    assert_serves(&mut Client::new(std::net::TcpStream::connect(("127.0.0.1", port)).unwrap()));
}

#[test]
fn unknown_users_and_groups_are_refused() {
    if needs_root("-u") {
        return;
    }
    for (option, name) in [("-u", "nosuchuser"), ("-g", "nosuchgroup")] {
        let paths = Paths::new();
        assert_refused(["-f", "-U", &paths.text("sock"), option, name, "null"], &[name]);
    }
}

#[test]
fn unknown_users_are_refused_before_the_command_returns() {
    if needs_root("-u") || debian_lacks("a look at -u before the fork") {
        return;
    }
    for (option, name) in [("-u", "nosuchuser"), ("-g", "nosuchgroup")] {
        let paths = Paths::new();
        assert_refused(["-U", &paths.text("sock"), option, name, "null"], &[name]);
    }
}

#[test]
fn an_ordinary_user_cannot_become_another() {
    if needs_root("to become an ordinary user first") {
        return;
    }
    let setpriv = std::process::Command::new("setpriv").arg("--version").output();
    if setpriv.is_err() {
        eprintln!("SKIPPED: there is no setpriv");
        return;
    }
    let nobody = nobody().uid.to_string();
    let mut command = std::process::Command::new("setpriv");
    command.args(["--reuid", &nobody, "--regid", &nobody, "--clear-groups"]);
    command.arg(Binary::under_test().path());
    command.args(["-f", "-u", "daemon", "null", "-U", "-"]);
    let finished = nbdkit_tests::command::run(&mut command, DEADLINE);
    if finished.stderr.contains("setpriv:") {
        eprintln!("SKIPPED: the ordinary user may not run this build: {}", finished.stderr);
        return;
    }
    assert_eq!(finished.status.code(), Some(1), "{finished:?}");
    assert!(finished.stderr.to_lowercase().contains("setuid"), "{finished:?}");
}

/// Kilobytes that a process has locked into memory, proc(5).
fn locked(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmLck:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// A process and all below it.
fn family(pid: i32) -> Vec<i32> {
    [vec![pid], descendants(pid)].concat()
}

#[test]
fn swap_locks_whoever_serves_a_client_into_memory() {
    if needs_root("--swap") {
        return;
    }
    let server = Server::nbdkit(["--swap", "memory", "1M"]).start();
    let mut client = server.connect();
    open(&mut client);
    assert_eq!(client.call(&Ask::write(0, vec![1; 65536])).expect("a reply").error, None);
    // The last one is the youngest: the worker, or the only process of Debian's.
    let serving = *family(server.pid().as_raw()).last().expect("the server itself");
    eventually("the memory is locked", || locked(serving) > 1000);

    let server = Server::nbdkit(["memory", "1M"]).start();
    let mut client = server.connect();
    open(&mut client);
    let family = family(server.pid().as_raw());
    assert!(family.iter().all(|pid| locked(*pid) == 0), "locked without --swap");
}

#[test]
fn swap_that_is_not_permitted_is_one_line_and_status_1() {
    if needs_root("to become an ordinary user first") {
        return;
    }
    if std::process::Command::new("prlimit").arg("--version").output().is_err() {
        eprintln!("SKIPPED: there is no prlimit");
        return;
    }
    let nobody = nobody().uid.to_string();
    let mut command = std::process::Command::new("prlimit");
    command.args(["--memlock=0", "setpriv", "--reuid", &nobody, "--regid", &nobody]);
    command.args(["--clear-groups", "--bounding-set=-all", "--inh-caps=-all"]);
    command.arg(Binary::under_test().path());
    command.args(["--swap", "null", "-U", "-", "--run", "nbdinfo --size \"$uri\""]);
    let finished = nbdkit_tests::command::run(&mut command, DEADLINE);
    assert!(!finished.status.success(), "{finished:?}");
    assert!(finished.stderr.contains("mlockall"), "{finished:?}");
}

#[test]
fn swap_works_with_a_changed_user() {
    if needs_root("--swap") {
        return;
    }
    // Workers lock their memory as that user, so the limit has to be raised first, which a root in
    // a container may not do.
    let status = std::fs::read_to_string("/proc/self/status").expect("our own status");
    let effective =
        status.lines().find_map(|line| line.strip_prefix("CapEff:")).expect("capabilities");
    let effective = u64::from_str_radix(effective.trim(), 16).expect("a mask");
    let sys_resource = 1 << 24;
    if Binary::under_test().is_ours() && effective & sys_resource == 0 {
        eprintln!("SKIPPED: without CAP_SYS_RESOURCE nobody may lock enough memory");
        return;
    }
    let finished = run(["--swap", "-u", "nobody", "-U", "-", "null", "--run", "exit 4"]);
    assert_eq!(finished.status.code(), Some(4), "{finished:?}");
}
