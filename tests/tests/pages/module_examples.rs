//! The examples of the pages of plugins and filters. Each command line of the server is run, with
//! the files that it names, and a client reads the disk; what a page says to type after it is run
//! while the server runs. An example has a directory, a network and a process namespace of its own.
//!
//! A literal display without a command line of the server is a format, or what something prints.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use nbdkit_tests::TempDir;
use nbdkit_tests::binary::Binary;
use nbdkit_tests::command::run;

use crate::examples::{LONG, has_namespaces, isolated, write_file, write_session};
use crate::page::{Example, Page, pages};
use crate::prepared::{before, client};
use crate::{assert_none, root};

const VDDK: &str = "needs VMware's library, and the plugin for it";
const CURL: &str = "needs the curl plugin, which is a file of its own, and a web server";
const DEVICE: &str = "needs a block device that may be overwritten";
const INSTALLED: &str = "needs the example installed: the command line before it runs the same one";

/// Command lines that are not run: the page, how the command line begins, and why.
const NOT_RUN: &[(&str, &str, &str)] = &[
    ("nbdkit-blocksize-filter", "nbdkit --filter=blocksize vddk", VDDK),
    ("nbdkit-bzip2-filter", "nbdkit --filter=bzip2 curl", CURL),
    ("nbdkit-cache-filter", "nbdkit --filter=cache curl", CURL),
    ("nbdkit-cacheextents-filter", "nbdkit --filter=cacheextents vddk", VDDK),
    ("nbdkit-example1-plugin", "nbdkit example1", INSTALLED),
    ("nbdkit-example2-plugin", "nbdkit example2", INSTALLED),
    ("nbdkit-example3-plugin", "nbdkit example3", INSTALLED),
    ("nbdkit-file-plugin", "nbdkit -r file /dev/sdb", DEVICE),
    ("nbdkit-gzip-filter", "nbdkit --filter=gzip curl", CURL),
    ("nbdkit-lzip-filter", "nbdkit --filter=lzip curl", CURL),
    (
        "nbdkit-nbd-plugin",
        "nbdkit -U - -o nbd nbds://example.com",
        "needs another machine's server, and a client that knows the oldest handshake only",
    ),
    ("nbdkit-ondemand-plugin", "nbd-client server", "needs the kernel's client"),
    ("nbdkit-ones-plugin", "nbdkit -U - ones", DEVICE),
    (
        "nbdkit-openonce-filter",
        "nbdkit --filter=openonce ssh",
        "needs the ssh plugin, which is a file of its own, and an SSH server",
    ),
    ("nbdkit-qcow2dec-filter", "nbdkit --filter=qcow2dec curl", CURL),
    ("nbdkit-retry-filter", "nbdkit --filter=retry curl", CURL),
    ("nbdkit-retry-request-filter", "nbdkit --filter=retry-request curl", CURL),
    (
        "nbdkit-scan-filter",
        "nbdkit --filter=scan --filter=cow nbd uri=nbd://example.com",
        "needs another machine's server",
    ),
    ("nbdkit-xz-filter", "nbdkit --filter=xz curl", CURL),
    ("nbdkit-zstd-filter", "nbdkit --filter=zstd curl", CURL),
];

/// Functions that an example is run with. A server without `--run` is stopped before the next, and
/// at the end; `client` is run once it serves.
const PRELUDE: &str = r#"set -eu
ip link set lo up
for directory in /run /srv /var/cache; do mount -t tmpfs tmpfs $directory; done
stop() {
    [ -e server.pid ] || return 0
    pid=$(cat server.pid)
    kill "$pid" 2> /dev/null || true
    while [ -e "/proc/$pid" ]; do sleep 0.01; done
    rm -f server.pid
}
nbdkit() {
    case " $* " in
    *" --run "*) command nbdkit "$@"; return ;;
    esac
    stop
    uri=nbd://localhost
    previous=
    for word; do
        case $previous in -U) uri="nbd+unix:///?socket=$word" ;; esac
        previous=$word
    done
    case " $* " in
    *" -f "*)
        command nbdkit -P server.pid "$@" &
        until [ -s server.pid ]; do kill -0 $!; sleep 0.01; done
        ;;
    *) command nbdkit -P server.pid "$@" ;;
    esac
    client
}
client() {
    nbdsh -u "$uri" -c 'size = h.get_size()' -c 'size == 0 or h.pread(min(size, 4096), 0)'
}
# nc -U SOCKET
nc() {
    python3 -c 'import socket, sys
peer = socket.socket(socket.AF_UNIX)
peer.connect(sys.argv[2])
peer.sendall(sys.stdin.buffer.read())
peer.shutdown(socket.SHUT_WR)
print(peer.recv(100).decode(), end="")' "$@"
}
certificates() {
    mkdir -m 700 pki client
    new='-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2'
    openssl req -x509 $new -subj '/CN=My authority' -keyout pki/ca-key.pem -out pki/ca-cert.pem
    for name in server client; do
        subject=/CN=localhost
        [ $name = server ] || subject=/O=Example/OU=Backup/CN=client
        openssl req -x509 $new -subj $subject -addext subjectAltName=DNS:localhost -addext basicConstraints=CA:FALSE \
            -CA pki/ca-cert.pem -CAkey pki/ca-key.pem -keyout pki/$name-key.pem -out pki/$name-cert.pem
    done
    cp pki/ca-cert.pem pki/client-*.pem client
}
"#;

fn is_module(page: &Page) -> bool {
    page.section == "1" && (page.name.ends_with("-plugin") || page.name.ends_with("-filter"))
}

/// The commands of a display; a command goes on on the next line after a backslash, or in quotes.
fn commands(text: &str) -> Vec<String> {
    let mut commands: Vec<String> = Vec::new();
    let mut open = String::new();
    for line in text.lines() {
        if open.is_empty() && line.is_empty() {
            continue;
        }
        open.push_str(line);
        open.push('\n');
        let in_quotes = open.matches('\'').count() % 2 == 1;
        if !in_quotes && !line.ends_with('\\') {
            commands.push(std::mem::take(&mut open));
        }
    }
    assert!(open.is_empty(), "no end: {open}");
    commands
}

fn reason(page: &str, command: &str) -> Option<&'static str> {
    let entry = NOT_RUN.iter().find(|(name, start, _)| *name == page && command.starts_with(start));
    entry.map(|(_, _, reason)| *reason)
}

/// Whether the server is run in it.
fn has_commands(text: &str) -> bool {
    text.lines().any(|line| line.starts_with("nbdkit ") || line.starts_with("$ "))
}

/// A shell script that does what the examples of a page say, each in a directory of its own; none
/// if nothing is run.
fn script(page: &Page) -> Option<String> {
    let mut script = String::from(PRELUDE);
    if let Some(client) = client(&page.name) {
        let _ = writeln!(script, "client() {{\n{client}\n}}");
    }
    let mut is_empty = true;
    let mut files = Vec::new();
    for Example { line, not_run, file, text } in page.examples() {
        if let Some(name) = file {
            write_file(&mut script, &name, &text);
            files.push(name);
            continue;
        }
        if not_run.is_some() || !has_commands(&text) {
            continue;
        }
        let commands = commands(&text);
        let run: Vec<_> = commands.iter().filter(|c| reason(&page.name, c).is_none()).collect();
        if run.is_empty() {
            continue;
        }
        is_empty = false;
        let _ = writeln!(script, "echo 'line {line}' > line\nmkdir {line}\ncd {line}");
        files.iter().for_each(|name| {
            let _ = writeln!(script, "cp ../{name} .");
        });
        let _ = writeln!(script, "ln -s ../examples .\n{}", before(&page.name));
        if text.starts_with("$ ") {
            write_session(&mut script, &text);
        } else {
            run.iter().for_each(|command| script.push_str(&with_files(command)));
        }
        script.push_str("stop\ncd \"$top\"\n");
    }
    (!is_empty).then(|| script.replacen("set -eu\n", "set -eu\ntop=$PWD\n", 1))
}

/// Filters that are files of their own, by the names of their files.
fn with_files(command: &str) -> String {
    match command.split_once("--filter=ext2 ") {
        Some((before, after)) => {
            format!("{before}--filter={} {after}", Binary::ours().filter("ext2"))
        }
        None => command.to_owned(),
    }
}

#[test]
fn what_pages_of_plugins_and_filters_tell_the_reader_to_type_works() {
    if !has_namespaces() {
        return;
    }
    let mut failed = Vec::new();
    let mut count = 0;
    for page in pages().iter().filter(|page| is_module(page)) {
        let Some(script) = script(page) else { continue };
        count += 1;
        let dir = TempDir::new();
        std::os::unix::fs::symlink(root().join("examples"), dir.join("examples")).expect("a link");
        let mut command = isolated(&["sh", "-c", &script], dir.path());
        command.env("C_INCLUDE_PATH", root().join("include"));
        command.env("CPLUS_INCLUDE_PATH", root().join("include"));
        let finished = run(&mut command, LONG);
        if !finished.status.success() {
            let line = std::fs::read_to_string(dir.join("line")).unwrap_or_default();
            failed.push(format!("{}, {line}{}{}", page.title(), finished.stdout, finished.stderr));
        }
    }
    assert!(count >= 74, "{count} pages");
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn every_command_line_that_is_not_run_is_on_its_page() {
    let mut unused: BTreeSet<_> = NOT_RUN.iter().map(|(page, start, _)| (*page, *start)).collect();
    let mut all = 0;
    for page in pages().iter().filter(|page| is_module(page)) {
        for example in page.examples().iter().filter(|example| has_commands(&example.text)) {
            let commands = commands(&example.text);
            all += commands.iter().filter(|command| command.starts_with("nbdkit ")).count();
            unused.retain(|(name, start)| {
                *name != page.name || !commands.iter().any(|command| command.starts_with(start))
            });
        }
    }
    let unused: Vec<String> =
        unused.iter().map(|(page, start)| format!("{page}: {start}")).collect();
    assert_none("not on the page", &unused);
    // Most are run.
    assert!(all > 5 * NOT_RUN.len(), "{} of {all} are not run", NOT_RUN.len());
    assert!(NOT_RUN.iter().all(|(_, _, reason)| reason.starts_with("needs ")));
}

#[test]
fn commands_end_with_their_lines_and_quotes() {
    let text = "one 'a\n b'\n\ntwo \\\n  three\nfour\n";
    assert_eq!(commands(text), ["one 'a\n b'\n", "two \\\n  three\n", "four\n"]);
    assert!(has_commands("nbdkit null\n") && !has_commands("exec nbdkit cc\n"));
}
