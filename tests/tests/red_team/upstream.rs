//! What must work: a plugin whose disk is somewhere else connects to what it has declared, by the
//! broker or by itself, wherever that has gone meanwhile.

use std::fs::Permissions;
use std::io::Write;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

use nbdkit_tests::Server;
use nbdkit_tests::processes::{children_called, eventually};
use nbdkit_tests::red_team::attack;
use nbdkit_tests::server::{Builder, landlock_is};
use nix::unistd::geteuid;

use crate::bystander::{Bystander, Work};
use crate::confinement::{Starter, builder};
use crate::names::{self, Answer};
use crate::{may_mount, server};

/// Sends `text` to everybody who connects, as long as the process lives or the port is not bound
/// anew.
fn tcp_server(address: impl Into<SocketAddr>, text: &'static str) -> u16 {
    let listener = TcpListener::bind(address.into()).expect("a port");
    let port = listener.local_addr().expect("bound").port();
    std::thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let _ = client.write_all(text.as_bytes());
        }
    });
    port
}

fn unix_server(path: &Path, text: &'static str) {
    let listener = UnixListener::bind(path).expect("a socket");
    std::fs::set_permissions(path, Permissions::from_mode(0o666)).expect("ours");
    std::thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let _ = client.write_all(text.as_bytes());
        }
    });
}

/// For whoever serves.
fn open_to_all(builder: &Builder) {
    let all = Permissions::from_mode(0o777);
    std::fs::set_permissions(builder.dir().path(), all).expect("ours");
}

fn starters() -> impl Iterator<Item = Starter> {
    [Starter::Root, Starter::User]
        .into_iter()
        .filter(|it| geteuid().is_root() || *it == Starter::User)
}

fn fetch(server: &Server, argument: &str) -> Option<String> {
    attack(server, &format!("fetch={argument}"))
}

fn fetched(text: &str) -> Option<String> {
    Some(text.to_owned())
}

/// A client whose export is not opened.
fn not_opened() -> Option<String> {
    Some("not opened".to_owned())
}

fn check_all(builder: Builder, what: &str) {
    let builder = builder.args(["endpoint=unix:{dir}/socket"]);
    open_to_all(&builder);
    unix_server(&builder.dir().join("socket"), "unix");
    let port = tcp_server((Ipv4Addr::LOCALHOST, 0), "tcp");
    let server = builder
        .arg(format!("endpoint=tcp:localhost:{port}"))
        .arg(format!("endpoint=tcp:127.0.0.1:{port}"))
        .start();
    let bystander = Bystander::start(&server, "upstream", Work::Writes(0));
    for _ in 0..2 {
        assert_eq!(fetch(&server, "0"), fetched("unix"), "{what}");
        assert_eq!(fetch(&server, "1"), fetched("tcp"), "{what}");
        assert_eq!(fetch(&server, "2"), fetched("tcp"), "{what}");
    }
    bystander.finish();
}

#[test]
fn what_is_declared_is_connected_to_whoever_serves() {
    for starter in starters() {
        for options in [&[][..], &["--isolation=shared"], &["--sandbox=compat"], &["--sandbox=off"]]
        {
            let builder = builder(starter, 0, options).arg("redteam");
            check_all(builder, &format!("{starter:?} {options:?}"));
        }
    }
    check_all(server(&["redteam"]), "whoever starts the tests");
}

/// With a filter whose scripts have no network; and files beside endpoints.
#[test]
fn files_and_programs_are_no_hindrance() {
    // Without Landlock there is no such server.
    let strict = landlock_is().as_deref() != Some("0");
    for starter in starters().filter(|_| strict) {
        let strict = &["--sandbox=strict", "--filter=log"];
        let builder = builder(starter, 0, strict).args(["redteam", "logscript=true"]);
        check_all(builder, &format!("{starter:?} {strict:?}"));
    }
    for readonly in [&[][..], &["-r"]] {
        let builder = server(readonly).args(["redteam", "diskless=true", "disk={dir}/disk"]);
        std::fs::write(builder.dir().join("disk"), [7; 4096]).expect("written");
        let port = tcp_server((Ipv4Addr::LOCALHOST, 0), "tcp");
        let server = builder.arg(format!("endpoint=tcp:localhost:{port}")).start();
        assert_eq!(fetch(&server, "0"), fetched("tcp"));
        assert_eq!(attack(&server, "files"), fetched("ok 1"));
    }
}

/// A plugin may have one connection for all clients, which it makes before they come.
#[test]
fn a_process_for_all_clients_connects_before_the_first() {
    let port = tcp_server((Ipv4Addr::LOCALHOST, 0), "tcp");
    let endpoint = format!("endpoint=tcp:localhost:{port}");
    let redteam = |starter, options: &[&str]| {
        builder(starter, 0, options).args(["redteam", "early=true", &endpoint])
    };
    for starter in starters() {
        let server = redteam(starter, &["--isolation=shared"]).start();
        let _ = server.wait_for_stderr("error: early: tcp");
        assert_eq!(fetch(&server, "0"), fetched("tcp"));
        let Err(failed) = redteam(starter, &[]).try_start() else { panic!("{starter:?}: started") };
        assert!(failed.stderr.contains("connect: Input/output error"), "{}", failed.stderr);
    }
}

/// A socket of another user's, as root without `-u` may connect to.
#[test]
fn root_connects_to_the_sockets_of_others() {
    if !geteuid().is_root() {
        eprintln!("SKIPPED: takes root");
        return;
    }
    let builder = server(&["redteam", "endpoint=unix:{dir}/socket"]);
    let path = builder.dir().join("socket");
    unix_server(&path, "unix");
    std::os::unix::fs::chown(&path, Some(12345), Some(12345)).expect("given");
    std::fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("ours");
    let server = builder.start();
    assert_eq!(fetch(&server, "0"), fetched("unix"));
}

/// The broker is where the machine's network is, and nobody else who serves.
#[test]
fn template_and_workers_have_no_network_and_the_broker_has() {
    if !may_mount() {
        eprintln!("SKIPPED: takes root, and the right to make namespaces");
        return;
    }
    let port = tcp_server((Ipv4Addr::LOCALHOST, 0), "tcp");
    let builder = builder(Starter::Root, 0, &["-v"]).arg("redteam");
    let server = builder.arg(format!("endpoint=tcp:localhost:{port}")).start();
    // Once it is confined.
    let _ = server.wait_for_stderr(&format!("connects to tcp:localhost:{port}"));
    let mut client = server.connect();
    client.handshake().expect("a greeting");
    client.go("", &[]).expect("a reply");
    let only = |pid: i32, name: &str| {
        eventually(name, || children_called(pid, name).len() == 1);
        children_called(pid, name)[0]
    };
    let template = only(server.pid().as_raw(), "nbdkit:template");
    let (broker, worker) = (only(template, "nbdkit:broker"), only(template, "nbdkit:worker"));
    let network = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net")).expect("alive");
    let ours = network("self");
    assert_eq!(network(&broker.to_string()), ours);
    assert_ne!(network(&template.to_string()), ours);
    assert_eq!(network(&template.to_string()), network(&worker.to_string()));
    let status = std::fs::read_to_string(format!("/proc/{broker}/status")).expect("alive");
    for line in ["Uid:\t65534\t65534", "NoNewPrivs:\t1", "Seccomp:\t2", "CapEff:\t0000000000000000"]
    {
        assert!(status.contains(line), "{line}: {status}");
    }
}

#[test]
fn a_server_that_has_moved_is_found_by_later_clients() {
    for starter in starters() {
        for options in [&[][..], &["--isolation=shared"], &["--sandbox=compat"]] {
            let builder = builder(starter, 0, options).arg("redteam");
            open_to_all(&builder);
            let (path, other) = (builder.dir().join("socket"), builder.dir().join("other"));
            unix_server(&path, "first");
            let server = builder.arg("endpoint=unix:{dir}/socket").start();
            assert_eq!(fetch(&server, "0"), fetched("first"));
            std::fs::remove_file(&path).expect("removed");
            assert_eq!(fetch(&server, "0"), not_opened());
            let _ = server.wait_for_stderr("connect: No such file or directory");
            unix_server(&path, "second");
            assert_eq!(fetch(&server, "0"), fetched("second"));
            unix_server(&other, "third");
            std::fs::remove_file(&path).expect("removed");
            symlink(&other, &path).expect("made");
            assert_eq!(fetch(&server, "0"), fetched("third"));
        }
    }
}

#[test]
fn a_name_is_what_it_leads_to_when_the_client_comes() {
    let Some(names) = names::Files::new() else { return };
    let port = tcp_server((Ipv4Addr::new(127, 0, 0, 2), 0), "two");
    tcp_server((Ipv4Addr::new(127, 0, 0, 3), port), "three");
    for options in [&["-u", "nobody"][..], &["--isolation=shared"], &["--sandbox=compat"]] {
        names.hosts("127.0.0.2 disk.test\n");
        let builder = names.used_by(server(options).arg("redteam"));
        let server = builder.arg(format!("endpoint=tcp:disk.test:{port}")).start();
        assert_eq!(fetch(&server, "0"), fetched("two"), "{options:?}");
        names.hosts("127.0.0.3 disk.test\n");
        assert_eq!(fetch(&server, "0"), fetched("three"), "{options:?}");
        // Nobody is there, and then somebody.
        names.hosts("127.0.0.4 disk.test\n127.0.0.2 disk.test\n");
        assert_eq!(fetch(&server, "0"), fetched("two"), "{options:?}");
        names.hosts("::1 disk.test\n127.0.0.3 disk.test\n");
        assert_eq!(fetch(&server, "0"), fetched("three"), "{options:?}");
        if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok() {
            names.hosts("127.0.0.4 disk.test\n::1 disk.test\n");
            tcp_server_once((Ipv6Addr::LOCALHOST, port), "six");
            assert_eq!(fetch(&server, "0"), fetched("six"), "{options:?}");
        }
        // What a name never leads to.
        names.hosts("169.254.169.254 disk.test\n0.0.0.0 disk.test\n");
        assert_eq!(fetch(&server, "0"), not_opened());
        let _ =
            server.wait_for_stderr(&format!("tcp:disk.test:{port}: connect: Permission denied"));
        names.hosts("");
        assert_eq!(fetch(&server, "0"), not_opened());
        let _ = server.wait_for_stderr(&format!("tcp:disk.test:{port}: getaddrinfo: "));
    }
}

/// The same for one client, so that the port can be bound again.
fn tcp_server_once(address: impl Into<SocketAddr>, text: &'static str) {
    let listener = TcpListener::bind(address.into()).expect("a port");
    std::thread::spawn(move || {
        if let Ok((mut client, _)) = listener.accept() {
            let _ = client.write_all(text.as_bytes());
        }
    });
}

/// By DNS, as glibc asks it: with an answer that fits, one that is too long for UDP, and none.
/// Files are opened meanwhile.
#[test]
fn names_are_resolved_by_dns() {
    let Some(names) = names::Files::new() else { return };
    let port = tcp_server((Ipv4Addr::LOCALHOST, 0), "tcp");
    for options in [&["-u", "nobody"][..], &["--isolation=shared"], &["--sandbox=compat"]] {
        for disk in [&[][..], &["disk={dir}/disk"]] {
            let builder = names.used_by(server(options).arg("redteam").args(disk));
            std::fs::write(builder.dir().join("disk"), [7; 4096]).expect("written");
            let server = ["short.test", "long.test", "silent.test", "unknown.test"]
                .iter()
                .fold(builder, |builder, name| builder.arg(format!("endpoint=tcp:{name}:{port}")))
                .start();
            assert_eq!(fetch(&server, "0"), fetched("tcp"), "{options:?} {disk:?}");
            assert_eq!(fetch(&server, "1"), fetched("tcp"), "{options:?} {disk:?}");
            assert_eq!(fetch(&server, "3"), not_opened(), "{options:?} {disk:?}");
            let _ = server.wait_for_stderr("getaddrinfo: Name or service not known");
            if options.contains(&"--sandbox=compat") {
                continue;
            }
            let [template] = children_called(server.pid().as_raw(), "nbdkit:template")[..] else {
                panic!("one template")
            };
            let [broker] = children_called(template, "nbdkit:broker")[..] else {
                panic!("one broker")
            };
            let maps = std::fs::read_to_string(format!("/proc/{broker}/maps")).expect("alive");
            let code: Vec<&str> = maps.lines().filter(|line| line.contains("r-xp")).collect();
            assert!(code.iter().any(|line| line.contains("libc.so")), "{maps}");
            assert!(!code.iter().any(|line| line.contains("hesiod")), "no code was loaded: {maps}");
            let started = Instant::now();
            std::thread::scope(|scope| {
                let waits = scope.spawn(|| fetch(&server, "2,1500"));
                names.until_asked(Answer::None);
                assert_eq!(fetch(&server, "0"), fetched("tcp"), "{options:?} {disk:?}");
                assert_eq!(waits.join().expect("served"), not_opened());
            });
            let _ = server.wait_for_stderr("connect: Connection timed out");
            assert!(started.elapsed() < names::PATIENCE, "the resolver's is longer");
        }
    }
}

#[test]
fn a_full_backlog_is_waited_for() {
    for options in [&[][..], &["--isolation=shared"], &["--sandbox=compat"]] {
        let builder = server(options).args(["redteam", "endpoint=unix:{dir}/socket"]);
        let path = builder.dir().join("socket");
        let listener = UnixListener::bind(&path).expect("a socket");
        let backlog = nix::sys::socket::Backlog::new(1).expect("small");
        nix::sys::socket::listen(&listener, backlog).expect("listening");
        let server = builder.start();
        // These two fill it: connect(2) of the next would block.
        let _clients: Vec<_> =
            (0..2).map(|_| std::os::unix::net::UnixStream::connect(&path).expect("room")).collect();
        assert_eq!(fetch(&server, "0,300"), not_opened(), "{options:?}");
        let _ = server.wait_for_stderr("connect: Resource temporarily unavailable");
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| fetch(&server, "0"));
            std::thread::sleep(Duration::from_millis(100));
            for _ in 0..3 {
                let (mut client, _) = listener.accept().expect("a client");
                let _ = client.write_all(b"unix");
            }
            assert_eq!(waits.join().expect("served"), fetched("unix"), "{options:?}");
        });
    }
}
