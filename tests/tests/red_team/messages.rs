//! Attacks on the listener: what a worker says on its channel. There is no layer to leave out: the
//! checks are the code.

use std::fs::Permissions;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use nbdkit_tests::processes::eventually;
use nbdkit_tests::red_team::attack;
use nbdkit_tests::tempdir::TempDir;
use nbdkit_tests::tls::{self, Authority, KeyType};
use nbdkit_tests::uninterrupted;

use nix::sys::signal::Signal;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt};
use nix::unistd::{User, geteuid};

use crate::bystander::{Bystander, Work};
use crate::confinement::CALLS;
use crate::{may_mount, server};

#[test]
fn a_worker_that_breaks_the_rules_of_its_channel_is_ended_and_nobody_else() {
    // Little-endian, as nbdkit-ipc's golden bytes have it: the variant, then an error without a
    // layer, connection 0, no text.
    let log = format!("000000000000000000{}", "00".repeat(16));
    let layer =
        format!("0000000000000000010101000000000000{}{}", "41".repeat(257), "00".repeat(16));
    let serving = "0200000000000000000000000000000000";
    let totals = format!("06000000{}", "ff".repeat(16));
    let refused = "0300000065000000";
    // Ed25519, for two bytes.
    let sign = "040000000000000000000000070802000000000000004141";
    let not_a_message = "not a message of this channel";
    for (what, text, line) in [
        (
            "Forked, as the template says",
            format!("say=05000000{}01000000", "01".repeat(8)),
            not_a_message,
        ),
        (
            "Exited, as the template says",
            format!("say=06000000{}00000000", "01".repeat(8)),
            not_a_message,
        ),
        ("Ready, as the template says", "say=04000000".to_owned(), not_a_message),
        ("noise", "say=ffffffffffffffff".to_owned(), not_a_message),
        ("a truncated record", format!("say={}", &log[..20]), not_a_message),
        ("a record with something behind it", format!("say={log}00"), not_a_message),
        (
            "a string longer than the packet",
            "say=0200000000000000ffffffffffffff7f".to_owned(),
            not_a_message,
        ),
        ("a packet that is too long", "say-much=170000".to_owned(), "truncated packet"),
        (
            "a layer's name that is too long",
            format!("say={layer}"),
            "a log record that is too long",
        ),
        (
            "the handshake's end, twice",
            format!("say={serving},{serving}"),
            "unexpected Serving in phase Serving",
        ),
        ("totals, twice", format!("say={totals},{totals}"), "unexpected Totals in phase Ended"),
        (
            "last words, twice",
            format!("say={refused},{refused}"),
            "unexpected Refused in phase Refused",
        ),
        ("a signature without TLS", format!("say={sign}"), "a key where there is no TLS"),
        ("descriptors", format!("say-with-descriptors={log}"), "descriptors where none belong"),
        (
            "a broker where nothing is declared",
            "say=0500000000000000".to_owned(),
            "a broker where there is none",
        ),
        (
            "an export of another stack",
            "say=0200000001000000000000000000000000".to_owned(),
            "a stack that does not exist",
        ),
        (
            "the broker of another stack",
            "say=0500000001000000".to_owned(),
            "a stack that does not exist",
        ),
        ("Shutdown", "say=01000000".to_owned(), "a shutdown that nothing in its stack may ask for"),
    ] {
        // A worker sends no descriptors; what the listener makes of them shows without the filter.
        let skip = if what == "descriptors" { CALLS } else { 0 };
        let server = server(&["-D", &format!("nbdkit.skip={skip}"), "redteam"]).start();
        let bystander = Bystander::start(&server, what, Work::Writes(0));
        let outcome = attack(&server, &text);
        let expected = format!("): {line}; killed");
        let line = server.wait_for_stderr("protocol violation by worker");
        assert!(line.contains(&expected), "{what}: {line}");
        println!("{what}: {outcome:?}: {line}");
        bystander.finish();
        assert_eq!(attack(&server, "thread").as_deref(), Some("ok 7"), "a new client is served");
    }
}

/// A transcript as TLS 1.3 has it, signed once; then once more, and before that something that is
/// no transcript.
#[test]
fn a_worker_gets_one_signature_and_only_of_a_handshake() {
    if !tls::is_possible() {
        return;
    }
    let dir = TempDir::new();
    Authority::new(&dir.join("ca"), "Test Authority")
        .issue_server(&dir.join("server"), KeyType::Ecdsa);
    let certificates = format!("--tls-certificates={}", dir.join("server").display());
    let hexadecimal =
        |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    // ECDSA on P-256 with SHA-256.
    let sign_with = |key: &str, message: &[u8]| {
        let length = (message.len() as u64).to_le_bytes();
        format!("0400000000000000{key}0304{}{}", hexadecimal(&length), hexadecimal(message))
    };
    let sign = |message: &[u8]| sign_with("00000000", message);
    let transcript = [&[b' '; 64][..], b"TLS 1.3, server CertificateVerify\0", &[7; 32]].concat();
    let signed = sign(&transcript);
    for (what, text, line) in [
        ("a letter", sign(b"I owe you"), "a signature of something that is no handshake"),
        (
            "a client's part of a handshake",
            sign(&[&[b' '; 64][..], b"TLS 1.3, client CertificateVerify\0", &[7; 32]].concat()),
            "a signature of something that is no CertificateVerify",
        ),
        ("another key", sign_with("01000000", &transcript), "a key that does not exist"),
        ("a second signature", format!("{signed},{signed}"), "unexpected Key in phase Keyed"),
    ] {
        let server = server(&[&certificates, "--tls=on", "redteam"]).start();
        let bystander = Bystander::start(&server, what, Work::Writes(0));
        let outcome = attack(&server, &format!("say={text}"));
        let expected = format!("): {line}; killed");
        let line = server.wait_for_stderr("protocol violation by worker");
        assert!(line.contains(&expected), "{what}: {line}");
        println!("{what}: {outcome:?}: {line}");
        bystander.finish();
        assert_eq!(attack(&server, "thread").as_deref(), Some("ok 7"), "a new client is served");
    }
}

#[test]
fn a_packet_that_no_socket_takes_stays_with_the_worker() {
    let server = server(&["redteam"]).start();
    let outcome = attack(&server, "say-much=10000000").expect("it lives");
    assert_eq!(outcome, format!("errno {}", nix::libc::EMSGSIZE));
}

#[test]
fn a_worker_has_one_channel() {
    let server = server(&["redteam"]).start();
    assert_eq!(attack(&server, "channels").as_deref(), Some("ok 1"));
}

#[test]
fn a_stack_that_may_stop_the_server_may() {
    let mut server = server(&["--filter=exitlast", "redteam"]).start();
    let _ = attack(&server, "say=01000000");
    assert!(server.wait().success());
}

#[test]
fn a_flood_of_records_is_cut_and_others_are_served() {
    let server = server(&["redteam"]).start();
    let bystander = Bystander::start(&server, "a flood of 100000 records", Work::Writes(0));
    assert_eq!(attack(&server, "flood=100000").as_deref(), Some("ok"));
    bystander.finish();
    assert_eq!(attack(&server, "log=after").as_deref(), Some("ok"), "another client logs");
    let _ = server.wait_for_stderr("error: after");
    let lines = server.stderr_text().lines().filter(|line| line.contains("flood")).count();
    println!("{lines} lines of 100000");
    assert!((200..2000).contains(&lines), "{lines}");
}

/// As if the listener itself was taken over: its own filter.
#[test]
fn a_listener_that_makes_a_call_it_never_makes_ends_and_the_log_says_why() {
    let ptrace = nix::libc::SYS_ptrace;
    let text = format!("log=listener: system call {ptrace}");
    let mut server = server(&["redteam"]).start();
    let _ = attack(&server, &text);
    assert_eq!(server.wait().code(), Some(1));
    let line = server.wait_for_stderr("to the listener, which ends");
    assert!(
        line.starts_with(&format!(
            "nbdkit: error: the sandbox refused system call {ptrace} (ptrace)"
        )),
        "{line}"
    );

    let mut server = self::server(&["--log={dir}/log", "redteam"]).start();
    let _ = attack(&server, &text);
    assert_eq!(server.wait().code(), Some(1));
    let log = std::fs::read_to_string(server.dir().path().join("log")).expect("a log");
    assert!(log.contains("to the listener, which ends"), "{log}");

    // To the file that was opened anew, and not to the descriptor that the old one had.
    let mut server = self::server(&["--log={dir}/log", "redteam"]).start();
    let (log, old) = (server.dir().path().join("log"), server.dir().path().join("old"));
    std::fs::rename(&log, &old).expect("renamed");
    server.signal(Signal::SIGUSR1);
    let logged = |words: &str| std::fs::read_to_string(&log).is_ok_and(|text| text.contains(words));
    eventually("the log is opened anew", || logged("opened anew"));
    let _ = attack(&server, &text);
    assert_eq!(server.wait().code(), Some(1));
    assert!(logged("to the listener, which ends"));

    // To the journal and to the system log, by sockets that it has had all along.
    if may_mount() {
        let script = "mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/journal && \
                      ln -s {dir}/journal /run/systemd/journal/socket && exec \"$0\" \"$@\"";
        let builder = self::server(&["--log=journal", "redteam"]);
        let journal = UnixDatagram::bind(builder.dir().join("journal")).expect("a socket");
        journal.set_read_timeout(Some(Duration::from_secs(20))).expect("a socket");
        let script = format!(r#"exec unshare -m sh -c '{script}' "$0" "$@""#);
        let mut server = builder.through_shell(&script).start();
        let _ = attack(&server, &text);
        assert_eq!(server.wait().code(), Some(1));
        let mut buffer = [0; 4096];
        let last_words = loop {
            let length = uninterrupted(|| journal.recv(&mut buffer)).expect("its last words");
            let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
            if text.contains("to the listener, which ends") {
                break text;
            }
        };
        let head = "PRIORITY=3\nSYSLOG_IDENTIFIER=nbdkit\nMESSAGE=the sandbox refused system call ";
        assert!(
            last_words.starts_with(head) && last_words.ends_with("which ends\n"),
            "{last_words}"
        );

        let script = "mount -t tmpfs tmpfs /dev && mknod -m 666 /dev/null c 1 3 && \
                      ln -s {dir}/devlog /dev/log && exec \"$0\" \"$@\"";
        let builder = self::server(&["--log=syslog", "redteam"]);
        let system_log = UnixDatagram::bind(builder.dir().join("devlog")).expect("a socket");
        system_log.set_read_timeout(Some(Duration::from_secs(20))).expect("a socket");
        let script = format!(r#"exec unshare -m sh -c '{script}' "$0" "$@""#);
        let mut server = builder.through_shell(&script).start();
        let _ = attack(&server, &text);
        assert_eq!(server.wait().code(), Some(1));
        let mut buffer = [0; 4096];
        let mut line = String::new();
        while !line.contains("to the listener, which ends") {
            let length = uninterrupted(|| system_log.recv(&mut buffer)).expect("its last words");
            line = String::from_utf8_lossy(&buffer[..length]).into_owned();
        }
        assert!(line.starts_with("<27>nbdkit["), "LOG_DAEMON, LOG_ERR: {line}");
    }

    // Without the filter the call is made.
    let server = self::server(&["--sandbox=off", "redteam"]).start();
    assert_eq!(attack(&server, &text).as_deref(), Some("ok"));
    assert_eq!(attack(&server, "thread").as_deref(), Some("ok 7"));
}

/// A datagram service that everybody may send to, or only root, who may enter its directory.
fn service(directory: &Path, name: &str, mode: u32) -> UnixDatagram {
    let path = directory.join(name);
    std::fs::create_dir(&path).expect("a directory");
    let service = UnixDatagram::bind(path.join("socket")).expect("a socket");
    let anybody = Permissions::from_mode(0o777);
    std::fs::set_permissions(path.join("socket"), anybody).expect("ours");
    std::fs::set_permissions(path, Permissions::from_mode(mode)).expect("ours");
    setsockopt(&service, sockopt::PassCred, &true).expect("a Unix socket");
    service.set_nonblocking(true).expect("a socket");
    service
}

/// The user that has sent something to it. unix(7), SCM_CREDENTIALS.
fn sender(service: &UnixDatagram) -> Option<u32> {
    let (mut buffer, mut control) = ([0; 64], nix::cmsg_space!(nix::libc::ucred));
    let mut place = [std::io::IoSliceMut::new(&mut buffer)];
    let flags = MsgFlags::empty();
    let message = recvmsg::<()>(service.as_raw_fd(), &mut place, Some(&mut control), flags).ok()?;
    message.cmsgs().ok()?.find_map(|message| match message {
        ControlMessageOwned::ScmCredentials(credentials) => Some(credentials.uid()),
        _ => None,
    })
}

/// What a listener that was taken over is to services of the machine that take uid 0 for root, by a
/// socket that it has.
#[test]
fn a_listener_is_not_root_to_unix_services() {
    if !geteuid().is_root() {
        return println!("skipped: needs root");
    }
    let daemon = User::from_name("daemon").expect("users").expect("a daemon").uid.as_raw();
    for (user, to_all, to_root) in [("daemon", Some(daemon), None), ("root", Some(0), Some(0))] {
        let builder = server(&[&*format!("--listener-user={user}"), "redteam"]);
        let directory = builder.dir().path().to_owned();
        let (all, root) = (service(&directory, "all", 0o755), service(&directory, "root", 0o700));
        std::fs::set_permissions(&directory, Permissions::from_mode(0o755)).expect("ours");
        let server = builder.env("NOTIFY_SOCKET", directory.join("all/socket")).start();
        // That clients may come, and then what the attacker has it send.
        eventually("the notification", || sender(&all) == to_all);
        for name in ["root", "all"] {
            let path = directory.join(name).join("socket");
            let text = format!("log=listener: send to {}", path.display());
            assert_eq!(attack(&server, &text).as_deref(), Some("ok"));
        }
        eventually("the second one was sent", || sender(&all) == to_all);
        assert_eq!(sender(&root), to_root, "{user}");
    }
}
