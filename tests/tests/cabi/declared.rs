//! `nbdkitd_declaration`: what is malformed is refused with one line, and what was not declared is
//! denied. Ours only. The plugin is `tests/cplugins/declared.c`.

use std::net::TcpListener;
use std::time::Duration;

use nbdkit_tests::binary::Binary;
use nbdkit_tests::client::Transport;
use nbdkit_tests::command::Finished;
use nbdkit_tests::processes::status;
use nbdkit_tests::{Ask, Client, Server, TempDir, command};
use nix::libc::{
    AF_INET, AF_INET6, EACCES, EPROTONOSUPPORT, IPPROTO_MPTCP, IPPROTO_SCTP, SOCK_DGRAM,
    SOCK_SEQPACKET, SOCK_STREAM,
};

use crate::support::{cc, compile, open};

fn start(flags: &[&str], arguments: &[&str]) -> Result<Server, Box<Finished>> {
    let plugin = compile("declared.c", flags);
    Server::nbdkit(["-v", &plugin]).args(arguments).binary(Binary::ours()).try_start()
}

fn server(flags: &[&str], arguments: &[&str]) -> Server {
    let server = start(flags, arguments);
    server.unwrap_or_else(|finished| panic!("{flags:?} {arguments:?}: {}", finished.stderr))
}

fn connect(server: &Server) -> Client<std::os::unix::net::UnixStream> {
    let mut client = server.connect();
    open(&mut client);
    client
}

/// What comes of an order that its process survives: 0 or an errno.
fn outcome<T: Transport>(client: &mut Client<T>, order: &str) -> i32 {
    assert_eq!(client.call(&Ask::write(0, order)).expect("a reply").error, None, "{order}");
    let answer = client.call(&Ask::read(0, 16)).expect("a reply").data;
    String::from_utf8(answer).unwrap().trim_end_matches('\0').parse().unwrap()
}

#[test]
fn the_header_compiles_as_c89_and_as_cplusplus() {
    for language in [&["-std=c89"][..], &["-xc++", "-std=c++11"]] {
        let flags = [language, &["-pedantic", "-Wextra"]].concat();
        let finished = cc("confine.c", &flags, &["-c", "-o", "/dev/null"]);
        assert!(finished.status.success(), "{flags:?}: {}", finished.stderr);
    }
}

#[test]
fn a_malformed_declaration_is_one_line_and_no_server() {
    for (flags, arguments, reason) in [
        (&["-DVERSION=2"][..], &[][..], "version 2 is not known to this server, which knows 1"),
        (&["-DVERSION=0"], &[], "version 0 is not known to this server, which knows 1"),
        (&["-DSIZE=7"], &[], "a size of 7 bytes is not that of a declaration"),
        (&["-DSIZE=0xffffffff"], &[], "a size of 4294967295 bytes is not that of a declaration"),
        (&["-DTAIL=1"], &[], "it is newer than this server, and a member beyond 40 bytes is set"),
        (&["-DRESERVED=1"], &[], "reserved is not 0"),
        (&["-DFLAGS=0x8000000000000001"], &[], "flags 0x8000000000000000 are not known"),
        (&["-DISOLATION=0"], &[], "isolation 0 is not known to this server"),
        (&["-DISOLATION=3"], &[], "isolation 3 is not known to this server"),
        (&[], &["read="], "a path has no name"),
        (&[], &["read=etc/passwd"], "the path etc/passwd is not absolute"),
        (&[], &["xread=/etc"], "access 77 to /etc is not known to this server"),
        (&[], &["many=513"], "more than 512 paths and endpoints are declared"),
        (&[], &["many=1000000"], "more than 512 paths and endpoints are declared"),
        (&[], &["unix=sock"], "sock: the path is not absolute"),
        (&[], &["flags=0x100"], "flags 0x100 are not known to this server"),
        (&[], &["tcp="], "a host has no name"),
        (&[], &["tcp=0"], "there is no TCP port 0 of localhost"),
        (&[], &["tcp=65536"], "there is no TCP port 65536 of localhost"),
        // The module may not even look at what the functions return.
        (&["-DIGNORE"], &["read=etc/passwd"], "the path etc/passwd is not absolute"),
        (&["-DSILENT"], &[], "needs failed"),
        (&["-DLOUD"], &[], "it is cold"),
    ] {
        let finished = start(flags, arguments).expect_err(reason);
        assert_eq!(finished.status.code(), Some(1), "{reason}: {}", finished.stderr);
        let errors: Vec<_> =
            finished.stderr.lines().filter(|line| line.contains("error: ")).collect();
        assert!(errors.len() == 1 && errors[0].contains(reason), "{reason}: {errors:?}");
    }
    let path = "read=/".to_owned() + &"x".repeat(5000);
    let finished = start(&[], &[&path]).expect_err("too long");
    assert!(finished.stderr.contains("a path of 5001 bytes is too long"), "{}", finished.stderr);
}

#[test]
fn older_and_newer_structures_load_as_far_as_they_ask_for_nothing_unknown() {
    for flags in [&["-DOLD", "-DLOUD"][..], &["-DTAIL=0"], &["-DSIZE=24"]] {
        let server = server(flags, &[]);
        assert_eq!(outcome(&mut connect(&server), "open /etc/passwd"), EACCES, "{flags:?}");
    }
}

#[test]
fn needs_may_ask_for_one_process() {
    let server = server(&[], &["flags=0x80"]);
    let _clients = [connect(&server), connect(&server)];
    assert!(server.workers().is_empty());
    let finished = start(&[], &["flags=0x80", "--isolation=connection"]).expect_err("refused");
    assert!(finished.stderr.contains("keeps its state in one process"), "{}", finished.stderr);
    let _ = server.wait_for_stderr("sandbox=strict");
}

#[test]
fn what_was_declared_is_opened_and_nothing_else() {
    let dir = TempDir::new();
    let path = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    for directory in ["read", "write"] {
        std::fs::create_dir(dir.join(directory)).unwrap();
        std::fs::write(dir.join(directory).join("file"), "x").unwrap();
    }
    let declared = [format!("read={}", path("read")), format!("write={}", path("write"))];
    let declared: Vec<&str> = declared.iter().map(String::as_str).collect();
    let writing = server(&[], &declared);
    let mut client = connect(&writing);
    for (order, expected) in [
        (format!("open {}", path("read/file")), 0),
        (format!("create {}", path("read/new")), EACCES),
        (format!("unlink {}", path("read/file")), EACCES),
        (format!("open {}", path("write/file")), 0),
        (format!("create {}", path("write/new")), 0),
        (format!("unlink {}", path("write/new")), 0),
        ("open /etc/passwd".to_owned(), EACCES),
    ] {
        assert_eq!(outcome(&mut client, &order), expected, "{order}");
    }
    let reading = server(&[], &[&["-r"], &declared[..]].concat());
    let mut client = reading.connect();
    open(&mut client);
    assert!(client.call(&Ask::write(0, "x")).expect("a reply").error.is_some(), "read-only");
}

#[test]
fn only_declared_ports_are_connected_to() {
    let [declared, other] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let port = |listener: &TcpListener| listener.local_addr().unwrap().port();
    let server = server(&[], &[&format!("tcp={}", port(&declared))]);
    let mut client = connect(&server);
    let connect = |listener| format!("connect {}", port(listener));
    assert_eq!(outcome(&mut client, &connect(&declared)), 0);
    assert_eq!(outcome(&mut client, &connect(&other)), EACCES);
    // What Landlock does not restrict the ports of.
    for (family, kind, protocol, expected) in [
        (AF_INET, SOCK_STREAM, IPPROTO_MPTCP, EPROTONOSUPPORT),
        (AF_INET6, SOCK_STREAM, IPPROTO_MPTCP, EPROTONOSUPPORT),
        (AF_INET, SOCK_STREAM, IPPROTO_SCTP, EPROTONOSUPPORT),
        (AF_INET, SOCK_SEQPACKET, 0, EPROTONOSUPPORT),
        (AF_INET, SOCK_DGRAM, 0, 0),
    ] {
        let order = format!("socket {family} {kind} {protocol}");
        assert_eq!(outcome(&mut client, &order), expected, "{order}");
    }
}

/// System calls that kill the worker; the server logs which one it was.
#[test]
fn what_no_declaration_allows_ends_the_worker_and_no_other() {
    let server = server(&[], &[]);
    let mut other = connect(&server);
    for (order, call) in [
        (format!("socket {AF_INET} {SOCK_STREAM} 0"), "socket"),
        ("fork".to_owned(), "clone"),
        ("unlink /tmp/x".to_owned(), "unlink"),
    ] {
        let mut client = connect(&server);
        assert!(client.call(&Ask::write(0, &*order)).is_err(), "{order}");
        let line = server.wait_for_stderr(&format!("({call}) to the worker"));
        assert!(line.contains("the sandbox refused"), "{order}: {line}");
        assert_eq!(outcome(&mut other, "open /etc/passwd"), EACCES, "another client");
    }
}

#[test]
fn only_a_module_that_declares_it_stops_the_server() {
    let mut declared = server(&["-DFLAGS=NBDKITD_SHUTDOWN"], &[]);
    // The reply may or may not come before the end.
    let _ = connect(&declared).call(&Ask::write(0, "shutdown"));
    assert!(declared.wait().success());
    // A flag that depends on the configuration.
    let mut configured = server(&[], &["flags=4"]);
    let _ = connect(&configured).call(&Ask::write(0, "shutdown"));
    assert!(configured.wait().success());
    let undeclared = server(&[], &[]);
    let mut client = connect(&undeclared);
    let _ = client.call(&Ask::write(0, "shutdown"));
    let _ = undeclared.wait_for_stderr("violation");
    assert_eq!(outcome(&mut connect(&undeclared), "open /etc/passwd"), EACCES);
}

#[test]
fn programs_and_isolation_follow_the_declaration() {
    let dumped = |flags: &[&str]| {
        let mut command = std::process::Command::new(Binary::ours().path());
        command.args(["--dump-plugin", &compile("declared.c", flags)]);
        let finished = command::run(&mut command, Duration::from_secs(60));
        assert!(finished.status.success(), "{}", finished.stderr);
        let ours = |line: &&str| {
            ["sandbox=", "isolation=", "needs_"].iter().any(|key| line.starts_with(key))
        };
        finished.stdout.lines().filter(ours).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(dumped(&[]), ["sandbox=strict", "isolation=connection"]);
    let flags = ["-DFLAGS=NBDKITD_PROGRAMS|NBDKITD_TRUST_ROOTS", "-DISOLATION=1"];
    let expected =
        ["sandbox=programs", "isolation=shared", "needs_programs=1", "needs_trust_roots=1"];
    assert_eq!(dumped(&flags), expected);

    let server = server(&["-DISOLATION=NBDKITD_ISOLATION_SHARED"], &[]);
    let (mut one, mut other) = (connect(&server), connect(&server));
    assert_eq!(outcome(&mut one, "pid"), outcome(&mut other, "pid"), "one process");
    assert_eq!(status(server.template(), "Seccomp:"), 2);
    let _ = server.wait_for_stderr("sandbox=strict isolation=shared");
    let flags = ["-DISOLATION=NBDKITD_ISOLATION_SHARED"];
    let finished = start(&flags, &["--isolation=connection"]).expect_err("refused");
    assert!(finished.stderr.contains("keeps its state in one process"), "{}", finished.stderr);
}

#[test]
fn the_command_line_overrules_the_level() {
    for (option, expected) in [("--sandbox=compat", 0), ("--sandbox=off", 0)] {
        let server = server(&[], &[option]);
        assert_eq!(outcome(&mut connect(&server), "open /etc/passwd"), expected, "{option}");
    }
    let server = server(&[], &["--allow-path=/etc/passwd"]);
    assert_eq!(outcome(&mut connect(&server), "open /etc/passwd"), 0);
    assert_eq!(outcome(&mut connect(&server), "open /etc/group"), EACCES);
    let server = start(&[], &["--isolation=shared"]).expect("a server");
    let (mut one, mut other) = (connect(&server), connect(&server));
    assert_eq!(outcome(&mut one, "pid"), outcome(&mut other, "pid"), "one process");
}

#[test]
fn certificates_of_authorities_are_read_where_they_are_declared() {
    let bundle = "/etc/ssl/certs/ca-certificates.crt";
    if !std::path::Path::new(bundle).exists() {
        eprintln!("SKIPPED: no {bundle}");
        return;
    }
    for (flags, expected) in [(&["-DFLAGS=NBDKITD_TRUST_ROOTS"][..], 0), (&[], EACCES)] {
        let server = server(flags, &[]);
        let mut client = connect(&server);
        assert_eq!(outcome(&mut client, &format!("open {bundle}")), expected, "{flags:?}");
        assert_eq!(outcome(&mut client, "open /etc/hostname"), EACCES, "{flags:?}");
    }
}

#[test]
fn a_filter_declares_as_a_plugin_does() {
    for (flags, expected) in [
        (&["-DDECLARED"][..], "sandbox=strict isolation=connection"),
        (&[], "sandbox=compat isolation=shared"),
    ] {
        let filter = format!("--filter={}", compile("declaring-filter.c", flags));
        let server =
            Server::nbdkit(["-v", &filter, "memory", "64K"]).binary(Binary::ours()).start();
        let mut client = connect(&server);
        let data = client.call(&Ask::read(0, 4)).expect("a reply").data;
        assert_eq!(data, [0; 4]);
        let _ = server.wait_for_stderr(expected);
    }
}
