//! What confines scripts: `--sandbox=programs`, the default, and `--sandbox=strict` with
//! `--allow-path` and `--allow-net`. Ours only.

use std::net::TcpListener;

use nbd_protocol::constants::{InfoType, Rep};
use nbdkit_tests::binary::Binary;
use nbdkit_tests::server::Builder;
use nbdkit_tests::{Ask, Server, TempDir, command};
use nix::unistd::geteuid;

use crate::support::{DEADLINE, Starter, has, write, write_script};

const HINT: &str = "the sandbox may have refused this";

/// A server whose script runs `command` for each read and fails if that does. Options first.
fn reading(options: &[&str], command: &str) -> Builder {
    let builder = Server::nbdkit(options).binary(Binary::ours()).args(["sh", "{dir}/script"]);
    let dir = builder.dir().path().display().to_string();
    let command = command.replace("{dir}", &dir);
    let cases = format!(
        "get_size) echo 1M ;;\npread) {{ {command}; }} >/dev/null || exit 1; head -c $3 /dev/zero ;;"
    );
    write_script(builder.dir(), "script", "/bin/bash", &cases);
    write(builder.dir(), "beside", "x", 0o644);
    builder
}

/// Whether two reads work, and what was logged.
fn outcome(builder: Builder) -> (bool, String) {
    let mut server = builder.start();
    let mut client = server.connected("");
    let mut read = || client.call(&Ask::read(0, 512)).expect("a reply").error.is_none();
    let works = read();
    assert_eq!(works, read());
    drop(client);
    server.stop();
    (works, server.stderr_text_after_end())
}

#[test]
fn a_strict_sandbox_allows_what_the_command_line_allows() {
    for (command, allowed) in [
        ("cat {dir}/beside", &["--allow-path={dir}/beside"][..]),
        ("cat {dir}/beside", &["--allow-path={dir}"]),
        ("echo >>{dir}/beside", &["--allow-path={dir}/beside:rw"]),
        ("echo >{dir}/new && mkdir {dir}/made && rm -r {dir}/made", &["--allow-path={dir}:rw"]),
        ("cp /bin/true {dir}/run && {dir}/run", &["--allow-path={dir}:rw"]),
    ] {
        let strict = |options: &[&str]| {
            let builder = reading(&[&["--sandbox=strict"], options].concat(), command);
            outcome(builder)
        };
        let (works, log) = strict(&[]);
        assert!(!works, "{command}");
        let hints = log.lines().filter(|line| line.contains(HINT)).count();
        assert_eq!(hints, 1, "once for a connection: {command}\n{log}");
        assert_eq!(strict(allowed), (true, String::new()), "{command} {allowed:?}");
        if allowed[0].ends_with(":rw") {
            let read_only = allowed[0].replace(":rw", "");
            assert!(!strict(&[&read_only]).0, "{command} {read_only}");
        }
        assert_eq!(outcome(reading(&[], command)), (true, String::new()), "{command}");
    }
}

#[test]
fn a_strict_sandbox_has_the_network_if_it_is_allowed() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("bound").port();
    let command = format!("exec 3<>/dev/tcp/127.0.0.1/{port}");
    let strict =
        |options: &[&str]| outcome(reading(&[&["--sandbox=strict"], options].concat(), &command));
    let (works, log) = strict(&[]);
    assert!(!works);
    assert!(log.contains(HINT), "{log}");
    assert_eq!(strict(&["--allow-net"]), (true, String::new()));
    assert!(outcome(reading(&[], &command)).0, "as in nbdkit");
}

/// A file of /etc that everybody may read and that no program needs.
fn unneeded() -> &'static str {
    let all = ["/etc/debian_version", "/etc/issue.net", "/etc/issue", "/etc/fstab", "/etc/motd"];
    let found = all.into_iter().find(|path| std::fs::read(path).is_ok());
    found.expect("each of them is on most machines")
}

#[test]
fn a_strict_sandbox_has_of_etc_what_programs_need() {
    let strict = |options: &[&str], command: &str| {
        outcome(reading(&[&["--sandbox=strict"], options].concat(), command))
    };
    for (program, command) in [
        ("cat", "cat /etc/passwd"),
        ("id", "[ $(id -un 0) = root ]"),
        ("date", "[ $(TZ=:/etc/localtime date +%Y) -gt 2000 ]"),
        // By a link in /etc/alternatives on Debian.
        ("awk", "awk 'BEGIN { exit 0 }'"),
        ("getent", "getent services http"),
        ("bash", "bash -lc true"),
        ("/usr/bin/perl", "/usr/bin/perl -MPOSIX -e 1"),
        ("/usr/bin/python3", "[ -z \"$(/usr/bin/python3 -c 'import ssl' 2>&1)\" ]"),
        ("openssl", "openssl version"),
    ] {
        if has(program) {
            assert_eq!(strict(&[], command), (true, String::new()), "{command}");
        }
    }
    let unneeded = unneeded();
    for options in [&[][..], &["--allow-net"]] {
        for command in [format!("cat {unneeded}"), "ls /etc".to_owned()] {
            let (works, log) = strict(options, &command);
            assert!(!works && log.contains(HINT), "{command} {options:?}: {log}");
        }
    }
    let allowed = (true, String::new());
    assert_eq!(strict(&["--allow-path=/etc"], &format!("cat {unneeded}")), allowed);
    assert_eq!(strict(&["--allow-net"], "getent ahosts localhost"), allowed);
    assert_eq!(strict(&["--allow-net"], "cat /etc/resolv.conf"), allowed);
    assert!(!strict(&[], "cat /etc/resolv.conf").0);
    assert!(outcome(reading(&[], &format!("cat {unneeded}"))).0, "as in nbdkit");
}

/// Each connection is told once, also where one process serves them all.
#[test]
fn the_hint_comes_once_for_each_connection() {
    for isolation in ["connection", "shared"] {
        let isolation = format!("--isolation={isolation}");
        let builder = reading(&["--sandbox=strict", &isolation], "cat {dir}/beside");
        let mut server = builder.start();
        for _ in 0..2 {
            let mut client = server.connected("");
            for _ in 0..3 {
                assert!(client.call(&Ask::read(0, 512)).expect("a reply").error.is_some());
            }
        }
        server.stop();
        let log = server.stderr_text_after_end();
        let hints: Vec<&str> = log.lines().filter(|line| line.contains(HINT)).collect();
        assert_eq!(hints.len(), 2, "{log}");
        for (connection, hint) in (1..).zip(&hints) {
            assert!(hint.contains(&format!("sh[{connection}]: ")), "{hint}");
        }
    }
}

#[test]
fn scripts_of_filters_are_confined_and_explained_too() {
    let dir = TempDir::new();
    let path = dir.path().display().to_string();
    let log = format!("logscript=[ $act = Read ] && echo >>{path}/log");
    let desc = format!("exportdesc=script:cat {path}/log");
    for parameter in [log, desc] {
        let filter =
            if parameter.starts_with("log") { "--filter=log" } else { "--filter=exportname" };
        let read = |options: &[&str]| {
            let builder = Server::nbdkit(options).binary(Binary::ours());
            let mut server = builder.args([filter, "memory", "1M", &parameter]).start();
            let mut client = server.connect();
            client.handshake().expect("a greeting");
            let answer = client.go("", &[InfoType::DESCRIPTION]).expect("a reply");
            assert_eq!(answer.end.reply, Rep::ACK);
            assert_eq!(client.call(&Ask::read(0, 512)).expect("a reply").error, None);
            drop(client);
            server.stop();
            server.stderr_text_after_end()
        };
        write(&dir, "log", "", 0o644);
        let refused = read(&["--sandbox=strict"]);
        assert!(refused.contains("Permission denied") && refused.contains(HINT), "{refused}");
        let allowed = format!("--allow-path={path}:rw");
        assert_eq!(read(&["--sandbox=strict", &allowed]), "", "{parameter}");
        assert_eq!(read(&[]), "", "{parameter}");
    }
}

/// A strict stack is strict by the option or by itself; elsewhere the options would do nothing.
#[test]
fn what_would_allow_nothing_is_refused() {
    for (arguments, level) in [
        (&["--allow-net", "eval", "get_size=echo 1"][..], "programs"),
        (&["--allow-path=/tmp", "--sandbox=compat", "null"], "compat"),
        (&["--allow-path=/tmp", "--sandbox=off", "null"], "off"),
    ] {
        let mut nbdkit = std::process::Command::new(Binary::ours().path());
        let finished = command::run(nbdkit.args(["-U", "-"]).args(arguments), DEADLINE);
        assert_eq!(finished.status.code(), Some(1), "{finished:?}");
        let line = format!("level of this stack is {level}\n");
        assert!(finished.stderr.ends_with(&line), "{arguments:?}: {finished:?}");
    }
    let mut nbdkit = std::process::Command::new(Binary::ours().path());
    let finished =
        command::run(nbdkit.args(["-U", "-", "--allow-path=/no/such", "null"]), DEADLINE);
    let line = "nbdkit: error: --allow-path: /no/such: No such file or directory\n";
    assert_eq!((finished.status.code(), &*finished.stderr), (Some(1), line));
    let builder = Server::nbdkit(["--allow-path={dir}", "null", "1M"]).binary(Binary::ours());
    drop(builder.start().connected(""));
}

/// What `grep` finds in /proc/self/status, in a script of a server that is started so.
fn status(starter: Starter, options: &[&str]) -> Vec<String> {
    let arguments = [options, &["sh", "script"]].concat();
    let builder = starter.server(Binary::ours(), &arguments, None);
    let fields = "NoNewPrivs|Seccomp|CapInh|CapPrm|CapEff|CapBnd|CapAmb|Uid";
    let cases = format!(
        "get_size) echo 1M ;;\npread) grep -E '^({fields}):' /proc/self/status >out; \
         unshare -n true >>out 2>&1; head -c $3 /dev/zero ;;"
    );
    write_script(builder.dir(), "script", "/bin/sh", &cases);
    let out = builder.dir().join("out");
    let mut server = builder.start();
    let mut client = server.connected("");
    assert_eq!(client.call(&Ask::read(0, 512)).expect("a reply").error, None);
    let text = std::fs::read_to_string(out).expect("written");
    drop(client);
    server.stop();
    assert_eq!(server.stderr_text_after_end(), "", "the level is nothing to complain about");
    text.lines().map(|line| line.split_whitespace().take(2).collect::<Vec<_>>().join(" ")).collect()
}

/// capabilities(7): CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID are numbers 0 to 4.
#[test]
fn programs_have_no_privileges_but_roots_over_files() {
    for starter in Starter::all() {
        let root = starter == Starter::Caller && geteuid().is_root();
        let found = status(starter, &[]);
        let held = if root { "000000000000001f" } else { "0000000000000000" };
        for line in [
            "CapInh: 0000000000000000".to_owned(),
            "CapAmb: 0000000000000000".to_owned(),
            format!("CapPrm: {held}"),
            format!("CapEff: {held}"),
            "NoNewPrivs: 1".to_owned(),
            "Seccomp: 2".to_owned(),
        ] {
            assert!(found.contains(&line), "{starter:?}: {line}: {found:?}");
        }
        if geteuid().is_root() && starter != Starter::Ordinary {
            assert!(found.contains(&format!("CapBnd: {held}")), "{starter:?}: {found:?}");
        }
        assert!(found.iter().any(|line| line.starts_with("unshare: unshare")), "{found:?}");
    }
}

/// The paths, the network and the names of the machine are those of the server; `-v` alone says so.
#[test]
fn programs_are_in_the_servers_namespaces() {
    let command = "readlink /proc/self/ns/net /proc/self/ns/mnt /proc/self/ns/uts /proc/self/ns/ipc >{dir}/ns";
    let builder = reading(&["-v"], command);
    let file = builder.dir().join("ns");
    let mut server = builder.start();
    assert_eq!(server.connected("").call(&Ask::read(0, 1)).expect("a reply").error, None);
    let found = std::fs::read_to_string(file).expect("written");
    let own = ["net", "mnt", "uts", "ipc"]
        .map(|name| std::fs::read_link(format!("/proc/self/ns/{name}")).expect("ours"));
    let own: Vec<_> = own.iter().map(|link| link.to_string_lossy()).collect();
    assert_eq!(found.lines().collect::<Vec<_>>(), own);
    server.stop();
    assert!(server.stderr_text_after_end().contains("debug: sandbox=programs: "));
}
