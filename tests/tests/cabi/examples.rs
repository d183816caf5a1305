//! The examples of modules in files that declare what they need, `examples/`: strict and a process
//! for each client here, and unmodified in Debian's nbdkit.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nbdkit_tests::binary::Binary;
use nbdkit_tests::differential::Row;
use nbdkit_tests::processes::status;
use nbdkit_tests::{Ask, Server, TempDir, command, row_name};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{beside_the_server, exercise, file, open, top};

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
    let workers = server.workers();
    assert_eq!(workers.len(), 2);
    for worker in &workers {
        for (field, expected) in [("Seccomp:", 2), ("NoNewPrivs:", 1), ("CapEff:", 0)] {
            assert_eq!(status(*worker, field), expected, "{field}");
        }
    }
    let _ = server.wait_for_stderr("sandbox=strict isolation=connection");
    // Which of the two is whose does not matter: one connection ends, and the other lives.
    kill(Pid::from_raw(workers[0]), Signal::SIGKILL).unwrap();
    let read = Ask::read(0, size);
    let lives = [one.call(&read).is_ok(), other.call(&read).is_ok()];
    assert_eq!(lives.iter().filter(|lives| **lives).count(), 1, "{lives:?}");
    assert!(!content(server, size).is_empty(), "others are served");
}

/// What nbdcopy(1) reads; `None`, with a note, where it is not installed.
fn copied(server: &Server) -> Option<Vec<u8>> {
    let copy = server.dir().join("copy");
    let uri = format!("nbd+unix:///?socket={}", server.socket().display());
    let there = Command::new("nbdcopy").arg("--version").output().is_ok();
    if !there {
        eprintln!("SKIPPED: nbdcopy is not installed");
        return None;
    }
    let mut nbdcopy = Command::new("nbdcopy");
    let finished = command::run(nbdcopy.arg(uri).arg(&copy), Duration::from_secs(60));
    assert!(finished.status.success(), "{}", finished.stderr);
    Some(std::fs::read(copy).unwrap())
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
    assert_eq!(copied(&server).unwrap_or(UTF8.to_vec()), UTF8);
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

/// Where the build puts it: beside the server.
fn rust_example() -> String {
    beside_the_server("libnbdkit_slice_plugin.so")
}

fn disk(dir: &TempDir) {
    let bytes: Vec<u8> = (0..16_384_u32).map(|index| (index % 251) as u8).collect();
    file(dir, "disk", &bytes);
}

#[test]
fn the_example_in_rust_is_confined_strictly() {
    let builder = Server::nbdkit(["-v", &rust_example(), "{dir}/disk", "offset=4k", "length=8k"]);
    disk(builder.dir());
    let server = builder.binary(Binary::ours()).start();
    is_strict_with_a_process_for_each_client(&server, 8192);
    let mut client = server.connect();
    open(&mut client);
    assert_eq!(client.call(&Ask::write(10, "written")).expect("a reply").error, None);
    assert_eq!(client.call(&Ask::flush()).expect("a reply").error, None);
    let disk = std::fs::read(server.dir().join("disk")).unwrap();
    assert_eq!(disk[4106..4113], *b"written");
    let part = &disk[4096..12_288];
    assert!(copied(&server).unwrap_or(part.to_vec()) == part, "nbdcopy reads other bytes");
    let dumped = dumped(&rust_example());
    assert!(dumped.contains("\nsandbox=strict\nisolation=connection\n"), "{dumped}");
}

#[test]
fn the_example_in_rust_serves_the_same_in_debians_nbdkit() {
    let arguments = [&*rust_example(), "disk", "offset=4k", "length=8k"];
    Row::new(row_name!(), &arguments).setup(disk).compare(exercise);
}

#[test]
fn the_example_in_rust_reports_its_errors_as_in_debians_nbdkit() {
    let plugin = rust_example();
    for arguments in [
        &[&*plugin][..],
        &[&plugin, "nosuchfile", "length=1k"],
        &[&plugin, "/dev/null", "length=x"],
        &[&plugin, "/dev/null"],
        &[&plugin, "nosuch=1"],
    ] {
        // A socket of a name that nobody else has, for a server that would start.
        let arguments = [&["-U", "-"], arguments].concat();
        Row::new(row_name!(), &arguments).variant(arguments.last().unwrap()).compare_command();
    }
}
