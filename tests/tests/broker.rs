//! The broker as an operator sees it: what clients get after files were replaced, whoever started
//! the server; and its life.
#![expect(clippy::expect_used, reason = "a test ends where something goes wrong")]

use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nbd_protocol::constants::{Rep, TransmissionFlags};
use nbdkit_tests::binary::Binary;
use nbdkit_tests::processes::{children_called, descriptors, eventually};
use nbdkit_tests::server::Builder;
use nbdkit_tests::{Ask, Client, Server};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User, geteuid};

/// Who starts the server, and as whom it serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Starter {
    Root,
    /// Root, with `-u nobody`.
    Nobody,
    /// An ordinary user.
    User,
}

const STARTERS: [Starter; 3] = [Starter::Root, Starter::Nobody, Starter::User];

fn starters() -> impl Iterator<Item = Starter> {
    STARTERS.into_iter().filter(|it| geteuid().is_root() || *it == Starter::User)
}

fn server(arguments: &[&str]) -> Builder {
    // With the notices, which tell when a template was replaced.
    Server::nbdkit(["-v"]).args(arguments).binary(Binary::ours())
}

fn builder(starter: Starter, arguments: &[&str]) -> Builder {
    let builder = server(&[]);
    // For whoever serves, and for us.
    let open = Permissions::from_mode(0o777);
    std::fs::set_permissions(builder.dir().path(), open).expect("ours");
    match starter {
        Starter::Root => builder.args(arguments),
        Starter::Nobody => builder.args(["-u", "nobody"]).args(arguments),
        Starter::User if geteuid().is_root() => {
            let nobody = User::from_name("nobody").expect("users").expect("a nobody");
            let (user, group) = (nobody.uid.as_raw(), nobody.gid.as_raw());
            let become_user = format!("exec setpriv --reuid={user} --regid={group} --clear-groups");
            builder.through_shell(&format!(r#"{become_user} "$0" "$@""#)).args(arguments)
        }
        Starter::User => builder.args(arguments),
    }
}

fn broker(server: &Server) -> i32 {
    let template = server.template();
    eventually("a broker", || children_called(template, "nbdkit:broker").len() == 1);
    children_called(template, "nbdkit:broker")[0]
}

/// Whether a process is there, and not only waits to be reaped.
fn lives(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.is_ok_and(|stat| !stat.contains(") Z "))
}

fn kill_hard(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("ours");
}

/// A client that has opened an export; `None` if it could not.
fn opened(server: &Server, export: &str) -> Option<Client<UnixStream>> {
    let mut client = server.connect();
    client.handshake().expect("a greeting");
    (client.go(export, &[]).expect("a reply").end.reply == Rep::ACK).then_some(client)
}

/// The first byte of an export as a new client reads it, after it has written it if `write`.
fn visit(server: &Server, export: &str, write: Option<u8>) -> Option<u8> {
    let mut client = opened(server, export)?;
    if let Some(byte) = write {
        assert_eq!(client.call(&Ask::write(0, [byte])).expect("a reply").error, None);
    }
    Some(client.call(&Ask::read(0, 1)).expect("a reply").data[0])
}

/// A file for everybody, of 4 KiB of one value, under its name only when it is complete.
fn put(path: &Path, value: u8) {
    let beside = path.with_extension("new");
    std::fs::write(&beside, [value; 4096]).expect("written");
    std::fs::set_permissions(&beside, Permissions::from_mode(0o666)).expect("ours");
    std::fs::rename(beside, path).expect("replaced");
}

/// With a directory that has one file, `a`.
fn with_directory(arguments: &[&str]) -> Builder {
    let builder = server(arguments);
    std::fs::create_dir(builder.dir().join("disks")).expect("made");
    put(&builder.dir().join("disks/a"), 1);
    builder
}

#[test]
fn a_file_that_was_replaced_is_served_whoever_started_the_server() {
    for starter in starters() {
        let builder = builder(starter, &["file", "{dir}/disk"]);
        let disk = builder.dir().join("disk");
        put(&disk, 1);
        let server = builder.start();
        let mut first = opened(&server, "").expect("opened");
        assert_eq!(visit(&server, "", None), Some(1), "{starter:?}");
        put(&disk, 2);
        assert_eq!(visit(&server, "", Some(9)), Some(9), "{starter:?}");
        assert_eq!(std::fs::read(&disk).expect("a file")[..2], [9, 2], "{starter:?}");
        std::fs::remove_file(&disk).expect("removed");
        assert_eq!(visit(&server, "", None), None, "{starter:?}");
        put(&disk, 3);
        assert_eq!(visit(&server, "", None), Some(3), "{starter:?}");
        // The first has what it had.
        assert_eq!(first.call(&Ask::read(0, 1)).expect("a reply").data, [1]);
        // A new template keeps the new file.
        kill_hard(server.template());
        let _ = server.wait_for_stderr("clients are accepted again");
        assert_eq!(visit(&server, "", None), Some(3), "{starter:?}");
        put(&disk, 4);
        assert_eq!(visit(&server, "", None), Some(4), "{starter:?}");
        assert_eq!(first.call(&Ask::read(0, 1)).expect("a reply").data, [1]);
    }
}

#[test]
fn links_of_a_directory_follow_one_rule_whenever_they_were_made() {
    for starter in starters() {
        let builder = builder(starter, &["file", "dir={dir}/disks"]);
        let (disks, outside) = (builder.dir().join("disks"), builder.dir().join("outside"));
        std::fs::create_dir(&disks).expect("made");
        put(&outside, 1);
        symlink(&outside, disks.join("before")).expect("made");
        let server = builder.start();
        symlink(&outside, disks.join("after")).expect("made");
        for template_is_new in [false, true] {
            if template_is_new {
                kill_hard(server.template());
                let _ = server.wait_for_stderr("clients are accepted again");
            }
            for link in ["before", "after"] {
                assert_eq!(visit(&server, link, Some(7)), Some(7), "{starter:?}: {link}");
            }
        }
        std::fs::remove_file(disks.join("after")).expect("removed");
        let other = server.dir().path().join("other");
        put(&other, 2);
        symlink(&other, disks.join("after")).expect("made");
        assert_eq!(visit(&server, "after", None), Some(2), "{starter:?}");
        // Whoever may write the directory does not get at the processes that serve it.
        symlink("/proc/self/mem", disks.join("memory")).expect("made");
        assert_eq!(visit(&server, "memory", None), None, "{starter:?}");
    }
}

#[test]
fn links_are_refused_if_they_are_not_wanted() {
    let builder = with_directory(&["file", "dir={dir}/disks", "dir-links=no"]);
    symlink("a", builder.dir().join("disks/link")).expect("made");
    let server = builder.start();
    assert_eq!(visit(&server, "a", None), Some(1));
    assert_eq!(visit(&server, "link", None), None);
    let _ = server.wait_for_stderr("open: link: Too many levels of symbolic links");
    let mut client = server.connect();
    client.handshake().expect("a greeting");
    let list = client.list().expect("a list");
    let names: Vec<_> = list.exports.iter().map(|export| export.0.clone()).collect();
    assert_eq!(names, ["a"]);
}

#[test]
fn files_of_split_that_were_replaced_are_served_whoever_started_the_server() {
    for starter in starters() {
        let builder = builder(starter, &["split", "{dir}/a", "{dir}/b"]);
        let (a, b) = (builder.dir().join("a"), builder.dir().join("b"));
        put(&a, 1);
        put(&b, 2);
        let server = builder.start();
        assert_eq!(visit(&server, "", None), Some(1));
        put(&a, 3);
        let mut client = opened(&server, "").expect("opened");
        let data = client.call(&Ask::read(4095, 2)).expect("a reply").data;
        assert_eq!(data, [3, 2], "{starter:?}");
    }
}

/// More clients at once than descriptions were kept open, and each can write.
#[test]
fn fifty_clients_at_once_are_served() {
    let builder = server(&["file", "{dir}/disk"]);
    put(&builder.dir().join("disk"), 1);
    let server = builder.start();
    let mut clients: Vec<_> = (0..50).map(|_| opened(&server, "").expect("opened")).collect();
    for (client, value) in clients.iter_mut().zip(1..) {
        assert_eq!(client.call(&Ask::write(0, [value])).expect("a reply").error, None);
        assert_eq!(client.call(&Ask::flush()).expect("a reply").error, None);
        assert_eq!(client.call(&Ask::read(0, 1)).expect("a reply").data, [value]);
    }
}

/// Permissions that change are those of later clients.
#[test]
fn a_file_that_may_not_be_written_any_more_is_read_only_for_later_clients() {
    let builder = builder(Starter::User, &["file", "{dir}/disk"]);
    let disk = builder.dir().join("disk");
    put(&disk, 1);
    let server = builder.start();
    let is_read_only = || {
        let mut client = server.connect();
        client.handshake().expect("a greeting");
        let answer = client.go("", &[]).expect("a reply");
        let (_, flags) = answer.export()?;
        Some(flags.contains(TransmissionFlags::READ_ONLY))
    };
    assert_eq!(is_read_only(), Some(false));
    let mode = |mode| std::fs::set_permissions(&disk, Permissions::from_mode(mode)).expect("ours");
    if geteuid().is_root() {
        mode(0o444);
        assert_eq!(is_read_only(), Some(true));
        mode(0o400);
        assert_eq!(is_read_only(), None, "not for others");
    }
    mode(0o666);
    assert_eq!(is_read_only(), Some(false));
}

#[test]
fn a_removed_file_takes_up_no_space_once_its_clients_have_gone() {
    if !geteuid().is_root() {
        eprintln!("SKIPPED: takes root");
        return;
    }
    let builder = server(&["--park-idle=0", "file", "{dir}/disk"]);
    let disk = builder.dir().join("disk");
    put(&disk, 1);
    let server = builder.start();
    let mut client = opened(&server, "").expect("opened");
    let template = server.template();
    let holds = |pid| descriptors(pid).iter().any(|it| it.to_string_lossy().contains("/disk"));
    assert!(holds(template) && !holds(broker(&server)) && !holds(server.pid().as_raw()));
    let [worker] = children_called(template, "nbdkit:worker")[..] else { panic!("one worker") };
    let of_worker = descriptors(worker).into_iter().filter(|it| it.ends_with("disk")).count();
    assert_eq!(of_worker, 1);
    std::fs::remove_file(&disk).expect("removed");
    eventually("it is closed", || !holds(template));
    assert_eq!(client.call(&Ask::read(0, 1)).expect("a reply").data, [1]);
}

#[test]
fn a_broker_that_is_killed_is_replaced_with_its_template_and_no_client_notices() {
    let server = with_directory(&["file", "dir={dir}/disks"]).start();
    let mut client = opened(&server, "a").expect("opened");
    let first = broker(&server);
    kill_hard(first);
    let line = server.wait_for_stderr("has ended: the template is replaced");
    assert!(line.contains(&format!("the broker (pid {first})")), "{line}");
    let _ = server.wait_for_stderr("clients are accepted again");
    assert_ne!(broker(&server), first);
    assert_eq!(visit(&server, "a", Some(5)), Some(5));
    assert_eq!(client.call(&Ask::read(0, 1)).expect("a reply").data, [5]);
    let lines = server.stderr_text().lines().filter(|it| it.contains("the broker")).count();
    assert_eq!(lines, 1);
    assert!(!Path::new(&format!("/proc/{first}")).exists(), "it was reaped");
}

/// A worker of a template that was killed asks the broker of the next.
#[test]
fn a_client_in_the_handshake_outlives_template_and_broker() {
    let server = with_directory(&["file", "dir={dir}/disks"]).start();
    let mut client = server.connect();
    client.handshake().expect("a greeting");
    assert_eq!(client.info("a", &[]).expect("a reply").end.reply, Rep::ACK);
    let (template, broker) = (server.template(), broker(&server));
    kill_hard(template);
    let _ = server.wait_for_stderr("clients are accepted again");
    eventually("its broker ends", || !lives(broker));
    assert_eq!(client.go("a", &[]).expect("a reply").end.reply, Rep::ACK);
    assert_eq!(client.call(&Ask::read(0, 1)).expect("a reply").data, [1]);
}

/// One that keeps clients' data cannot be replaced; it serves on.
#[test]
fn a_broker_of_a_stack_that_keeps_data_is_missed_and_the_log_says_so() {
    let builder = server(&["--filter=cow", "file", "{dir}/disk"]);
    let disk = builder.dir().join("disk");
    put(&disk, 1);
    let server = builder.start();
    let mut client = opened(&server, "").expect("opened");
    assert_eq!(client.call(&Ask::write(0, [6])).expect("a reply").error, None);
    let pid = broker(&server);
    kill_hard(pid);
    let _ = server.wait_for_stderr("cannot be opened any more");
    assert_eq!(visit(&server, "", None), Some(6), "what is kept is served");
    put(&disk, 2);
    assert_eq!(visit(&server, "", None), None);
    assert_eq!(client.call(&Ask::read(0, 1)).expect("a reply").data, [6]);
    eventually("it is reaped", || !Path::new(&format!("/proc/{pid}")).exists());
}

#[test]
fn one_process_for_all_clients_asks_the_broker_too() {
    let builder = server(&["--isolation=shared", "file", "{dir}/disk"]);
    let disk = builder.dir().join("disk");
    put(&disk, 1);
    let server = builder.start();
    let mut clients: Vec<_> = (0..20).map(|_| opened(&server, "").expect("opened")).collect();
    put(&disk, 2);
    assert_eq!(visit(&server, "", Some(8)), Some(8));
    assert_eq!(clients[19].call(&Ask::read(0, 1)).expect("a reply").data, [1]);
    // Its clients are not ended, and the last to go makes room.
    kill_hard(broker(&server));
    let _ = server.wait_for_stderr("the template is replaced when its clients have gone");
    assert_eq!(clients[0].call(&Ask::read(0, 1)).expect("a reply").data, [1]);
    drop(clients);
    let _ = server.wait_for_stderr("clients are accepted again");
    assert_eq!(visit(&server, "", None), Some(8));
}

#[test]
fn nothing_is_left_however_the_server_ends() {
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let mut server = with_directory(&["file", "dir={dir}/disks"]).start();
        let _client = opened(&server, "a").expect("opened");
        let (template, broker) = (server.template(), broker(&server));
        let started = Instant::now();
        server.signal(signal);
        let status = server.wait();
        if signal == Signal::SIGTERM {
            assert!(status.success());
            assert!(started.elapsed() < Duration::from_secs(4), "nobody was waited for in vain");
            let gone = |pid| !Path::new(&format!("/proc/{pid}")).exists();
            assert!(gone(template) && gone(broker), "all were reaped");
        }
        eventually("all end", || !lives(template) && !lives(broker));
    }
}

#[test]
fn a_process_for_all_clients_ends_with_its_broker_and_without_complaint() {
    let builder = server(&["--isolation=shared", "file", "{dir}/disk"]);
    put(&builder.dir().join("disk"), 1);
    let mut server = builder.start();
    assert_eq!(visit(&server, "", None), Some(1));
    let broker = broker(&server);
    assert!(server.stop().success());
    let log = server.stderr_text_after_end();
    assert!(!log.contains("error:"), "{log}");
    assert!(!Path::new(&format!("/proc/{broker}")).exists(), "it was reaped");
}

#[test]
fn there_is_a_broker_only_where_one_is_needed() {
    for (arguments, expected) in [
        (&["memory", "1M"][..], 0),
        (&["--filter=error", "memory", "1M", "error-file={dir}/trigger"], 0),
        (&["--sandbox=compat", "file", "{dir}/disk"], 0),
        (&["--sandbox=off", "file", "{dir}/disk"], 0),
        (&["file", "{dir}/disk"], 1),
        (&["--filter=error", "file", "{dir}/disk", "error-file={dir}/trigger"], 1),
    ] {
        let builder = server(arguments);
        put(&builder.dir().join("disk"), 1);
        let server = builder.start();
        assert!(visit(&server, "", None).is_some(), "{arguments:?}");
        // It takes its name when it runs.
        let found = || children_called(server.template(), "nbdkit:broker").len();
        eventually(&format!("{expected}: {arguments:?}"), || found() == expected);
    }
}

/// Looked for by name only.
#[test]
fn a_trigger_file_is_seen_although_nothing_may_be_opened() {
    let builder = server(&["--filter=error", "file", "{dir}/disk", "error=EIO", "error-rate=100%"])
        .arg("error-file={dir}/trigger");
    put(&builder.dir().join("disk"), 1);
    let server = builder.start();
    let mut client = opened(&server, "").expect("opened");
    assert_eq!(client.call(&Ask::read(0, 1)).expect("a reply").error, None);
    std::fs::write(server.dir().path().join("trigger"), "").expect("made");
    assert!(client.call(&Ask::read(0, 1)).expect("a reply").error.is_some());
}

#[test]
fn with_swap_the_broker_is_locked_in_memory_too() {
    if !geteuid().is_root() {
        eprintln!("SKIPPED: takes root");
        return;
    }
    let builder = server(&["--swap", "file", "{dir}/disk"]);
    put(&builder.dir().join("disk"), 1);
    let server = builder.start();
    let broker = broker(&server);
    let locked = || {
        let status = std::fs::read_to_string(format!("/proc/{broker}/status")).expect("alive");
        let line = status.lines().find_map(|line| line.strip_prefix("VmLck:")).expect("a line");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number")
    };
    eventually("locked", || locked() > 1000);
}

/// Where descriptors are few, so are the channels to the broker; who finds its own closed gets
/// another.
#[test]
fn with_few_descriptors_many_clients_are_served_from_a_directory() {
    let builder = with_directory(&["file", "dir={dir}/disks"]);
    let server = builder.through_shell(r#"ulimit -n 88; exec "$0" "$@""#).start();
    let mut early: Vec<_> = (0..10).map(|_| server.connect()).collect();
    for client in &mut early {
        client.handshake().expect("a greeting");
        assert_eq!(client.info("a", &[]).expect("a reply").end.reply, Rep::ACK);
    }
    let _late: Vec<_> = (0..17).map(|_| opened(&server, "a").expect("opened")).collect();
    for client in &mut early {
        assert_eq!(client.go("a", &[]).expect("a reply").end.reply, Rep::ACK);
        assert_eq!(client.call(&Ask::read(0, 1)).expect("a reply").data, [1]);
    }
}
