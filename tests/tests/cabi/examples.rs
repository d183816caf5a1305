//! The examples of modules in files that declare what they need, `examples/`: strict and a process
//! for each client here, and unmodified in Debian's nbdkit.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nbdkit_tests::binary::Binary;
use nbdkit_tests::differential::Row;
use nbdkit_tests::{Ask, Server, TempDir, command, row_name};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{children_called, exercise, file, open, status_of, top};

/// The converters of glibc are code in files, which a confined process cannot load.
const LATIN: &[u8] = b"Gr\xfc\xdfe aus K\xf6ln\n";
const UTF8: &[u8] = "Gr\u{fc}\u{df}e aus K\u{f6}ln\n".as_bytes();

/// Compiles the example, after `edit`, to a library that is removed with the directory.
fn c_example(dir: &TempDir, edit: impl Fn(String) -> String) -> String {
    let source = top().join("examples/c-plugin/textfile.c");
    let edited = dir.join("textfile.c");
    std::fs::write(&edited, edit(std::fs::read_to_string(source).unwrap())).unwrap();
    let library = dir.join("nbdkit-textfile-plugin.so");
    let mut cc = Command::new("cc");
    cc.args(["-std=c99", "-D_DEFAULT_SOURCE", "-shared", "-fPIC", "-O2", "-Wall"])
        .args(["-Wextra", "-Wno-missing-field-initializers", "-I"])
        .arg(top().join("include"))
        .arg("-o")
        .args([&library, &edited]);
    let finished = command::run(&mut cc, Duration::from_secs(60));
    assert!(finished.status.success() && finished.stderr.is_empty(), "{}", finished.stderr);
    library.to_str().unwrap().to_owned()
}

fn content(server: &Server, size: u64) -> Vec<u8> {
    let mut client = server.connect();
    open(&mut client);
    client.call(&Ask::read(0, size)).expect("a reply").data
}

/// A server of `plugin` is strict and has a process for each client, one of which can be killed.
fn is_strict_with_a_process_for_each_client(server: &Server, size: u64) {
    let (mut one, mut other) = (server.connect(), server.connect());
    open(&mut one);
    open(&mut other);
    let listener = server.pid().as_raw();
    let template = children_called(listener, "nbdkit:template");
    assert_eq!(template.len(), 1, "{}", server.stderr_text());
    let workers = children_called(template[0], "nbdkit:worker");
    assert_eq!(workers.len(), 2);
    for worker in &workers {
        let status = status_of(*worker);
        assert_eq!((&*status["Seccomp"], &*status["NoNewPrivs"]), ("2", "1"));
        assert_eq!(status["CapEff"], "0000000000000000");
    }
    let _ = server.wait_for_stderr("sandbox=strict isolation=connection");
    // Which of the two is whose does not matter: one connection ends, and the other lives.
    kill(Pid::from_raw(workers[0]), Signal::SIGKILL).unwrap();
    let read = Ask::read(0, size);
    let lives = [one.call(&read).is_ok(), other.call(&read).is_ok()];
    assert_eq!(lives.iter().filter(|lives| **lives).count(), 1, "{lives:?}");
    assert!(!content(server, size).is_empty(), "others are served");
}

fn dumped(plugin: &str) -> String {
    let mut command = Command::new(Binary::ours().path());
    command.args(["--dump-plugin", plugin]);
    let finished = command::run(&mut command, Duration::from_secs(60));
    assert!(finished.status.success(), "{}", finished.stderr);
    finished.stdout
}

fn text(dir: &TempDir) {
    file(dir, "text", LATIN);
}

#[test]
fn the_example_in_c_is_confined_strictly() {
    let dir = TempDir::new();
    let plugin = c_example(&dir, |source| source);
    text(&dir);
    let text = dir.join("text").to_str().unwrap().to_owned();
    let server = Server::nbdkit(["-v", &plugin, &text]).binary(Binary::ours()).start();
    is_strict_with_a_process_for_each_client(&server, UTF8.len() as u64);
    assert_eq!(content(&server, UTF8.len() as u64), UTF8);
    // What is at the path when the client comes.
    std::fs::write(&text, "later\n").unwrap();
    assert_eq!(content(&server, 6), b"later\n");
    let dumped = dumped(&plugin);
    assert!(dumped.contains("\nsandbox=strict\nisolation=connection\n"), "{dumped}");
}

#[test]
fn the_example_in_c_serves_the_same_in_debians_nbdkit() {
    let dir = TempDir::new();
    let plugin = c_example(&dir, |source| source);
    Row::new(row_name!(), &[&plugin, "text"]).setup(text).compare(exercise);
}

#[test]
fn without_warm_up_the_example_finds_no_converter() {
    let dir = TempDir::new();
    let plugin = c_example(&dir, |source| {
        let cold = source.replace(
            "  textfile_warm_up\n};",
            "  NULL\n};\nint (*unused) (void) = textfile_warm_up;",
        );
        assert_ne!(cold, source);
        cold
    });
    text(&dir);
    let text = dir.join("text");
    let server = Server::nbdkit([Path::new(&plugin), &text]).binary(Binary::ours()).start();
    let mut client = server.connect();
    client.handshake().expect("a handshake");
    assert!(client.go("", &[]).is_ok_and(|answer| answer.export().is_none()));
    let _ = server.wait_for_stderr("charset=ISO-8859-1: ");
}
