//! `--log=journal`: the fields that journald gets, by its native protocol.

use std::collections::BTreeMap;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};

use nbdkit_tests::binary::Binary;
use nbdkit_tests::{Ask, command, uninterrupted};

use crate::log::{COMPLAINING, COMPLAINT};
use crate::support::{
    DEADLINE, Foreground, Paths, connect, debian_lacks, needs_root, open, pid_in,
};

type Fields = BTreeMap<String, String>;

fn is_skipped() -> bool {
    debian_lacks("--log=journal") || needs_root("a /run of one's own")
}

/// A server with /run in a mount namespace of its own, where the journal's socket is the file
/// `journal` of the paths.
fn with_run(paths: &Paths, arguments: &[&str]) -> Command {
    let script = r#"
        mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/journal &&
        ln -s "$0" /run/systemd/journal/socket && exec "$@""#;
    let mut command = Command::new("unshare");
    command.args(["-m", "/bin/sh", "-c", script]).arg(paths.path("journal"));
    command.arg(Binary::under_test().path()).args(["-f", "--log=journal"]);
    command.args(["-U", &paths.text("sock"), "-P", &paths.text("pid")]).args(arguments);
    command.stdin(Stdio::null());
    command
}

/// A server that logs to a journal of ours.
fn start(paths: &Paths, arguments: &[&str]) -> (UnixDatagram, Foreground) {
    let journal = paths.bind_service("journal");
    let server = Foreground::start(&mut with_run(paths, arguments));
    let _ = pid_in(&paths.path("pid"));
    (journal, server)
}

/// The fields of a message, each with its length before it.
fn parse(mut bytes: &[u8]) -> Fields {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
    let mut fields = Fields::new();
    while !bytes.is_empty() {
        let end = bytes.iter().position(|byte| *byte == b'\n').expect("a name");
        let (name, rest) = (text(&bytes[..end]), &bytes[end + 1..]);
        let (length, rest) = rest.split_first_chunk().expect("a length");
        let (value, rest) = rest.split_at(usize::try_from(u64::from_le_bytes(*length)).unwrap());
        assert_eq!(fields.insert(name, text(value)), None, "a field comes once");
        bytes = rest.strip_prefix(b"\n").expect("the end of the value");
    }
    fields
}

/// Waits for a message with these words.
fn message(journal: &UnixDatagram, words: &str) -> Fields {
    let mut bytes = vec![0; 256 * 1024];
    loop {
        let length = uninterrupted(|| journal.recv(&mut bytes))
            .unwrap_or_else(|error| panic!("{words}: {error}"));
        let fields = parse(&bytes[..length]);
        if fields["MESSAGE"].contains(words) {
            return fields;
        }
    }
}

fn cause_a_complaint(paths: &Paths) {
    let mut client = connect(&paths.path("sock"));
    open(&mut client);
    assert!(client.call(&Ask::read(0, 512)).expect("a reply").error.is_some());
}

#[test]
fn lines_have_fields_that_a_journal_is_searched_by() {
    if is_skipped() {
        return;
    }
    let paths = Paths::new();
    let filter = ["--filter=nofilter"];
    let (journal, server) = start(&paths, &[&filter[..], &COMPLAINING].concat());
    cause_a_complaint(&paths);
    let fields = message(&journal, COMPLAINT);
    let (pid, uid) = (std::process::id(), nix::unistd::getuid());
    let peer = format!("pid {pid} uid {uid}");
    let head = format!("eval[1]: client {peer}: ");
    assert!(fields["MESSAGE"].starts_with(&head), "{fields:?}");
    for (name, value) in [
        ("PRIORITY", "3"),
        ("SYSLOG_IDENTIFIER", "nbdkit"),
        ("CONNECTION", "1"),
        ("PEER", &peer),
        ("UID", &uid.to_string()),
        ("EXPORT", ""),
        ("STACK", "nofilter eval"),
    ] {
        assert_eq!(fields.get(name).map(String::as_str), Some(value), "{name}: {fields:?}");
    }
    assert_eq!(server.stderr(), "");
}

#[test]
fn a_notice_has_its_priority_and_no_client() {
    if is_skipped() {
        return;
    }
    let paths = Paths::new();
    let (journal, _server) = start(&paths, &["--sandbox=off", "null"]);
    let fields = message(&journal, "without a sandbox");
    assert_eq!(fields["PRIORITY"], "5");
    let names: Vec<&str> = fields.keys().map(String::as_str).collect();
    assert_eq!(names, ["MESSAGE", "PRIORITY", "STACK", "SYSLOG_IDENTIFIER"]);
}

/// The export's name is the client's; in the message it is escaped.
#[test]
fn what_a_client_chooses_cannot_forge_a_field() {
    if is_skipped() {
        return;
    }
    let paths = Paths::new();
    let (journal, _server) = start(&paths, &["--log-connections", "memory", "1M"]);
    let forged = "evil\nPRIORITY=0\nUID=0\n";
    let mut client = connect(&paths.path("sock"));
    client.handshake().expect("a greeting");
    client.go(forged, &[]).expect("a reply");
    client.disconnect().expect("sent");
    let fields = message(&journal, "connection ended");
    assert_eq!((&*fields["EXPORT"], &*fields["PRIORITY"]), (forged, "5"));
    assert_eq!(fields["REASON"], "client left");
    assert!(fields["MESSAGE"].contains(r"evil\nPRIORITY=0\nUID=0\n"), "{fields:?}");
}

/// The listener is confined by then, and makes no sockets any more.
#[test]
fn a_journal_that_is_restarted_gets_lines_again() {
    if is_skipped() {
        return;
    }
    let paths = Paths::new();
    let (mut journal, _server) = start(&paths, &COMPLAINING);
    for _ in 0..3 {
        cause_a_complaint(&paths);
        let _ = message(&journal, COMPLAINT);
        drop(journal);
        paths.await_closed("journal");
        // Nobody is there for this one.
        cause_a_complaint(&paths);
        std::fs::remove_file(paths.path("journal")).unwrap();
        journal = paths.bind_service("journal");
    }
}

#[test]
fn without_a_journal_the_server_does_not_start() {
    if is_skipped() {
        return;
    }
    let paths = Paths::new();
    let finished = command::run(&mut with_run(&paths, &["null"]), DEADLINE);
    assert_eq!(finished.status.code(), Some(1), "{finished:?}");
    let line = "--log=journal: /run/systemd/journal/socket: No such file or directory\n";
    assert_eq!(finished.stderr, format!("nbdkit: error: {line}"));
}
