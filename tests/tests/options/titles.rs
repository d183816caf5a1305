//! The processes of a server as ps(1) and pidof(1) show them, and that none is left when it ends.

use std::collections::BTreeMap;
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use nbdkit_tests::Client;
use nbdkit_tests::binary::Binary;
use nbdkit_tests::processes::{descendants, eventually};
use nbdkit_tests::server::free_port;
use nix::sys::signal::Signal;

use crate::support::{
    DEADLINE, Foreground, Paths, connect, debian_lacks, nbdkit, open, pid_in, stat,
};

/// A process: its first argument, which a title replaces, all arguments, its program's name, its
/// own.
#[derive(Debug, Clone)]
struct Process {
    first: String,
    arguments: Vec<String>,
    program: String,
    name: String,
}

fn process(pid: i32) -> Option<Process> {
    let read = |what: &str| std::fs::read(format!("/proc/{pid}/{what}")).ok();
    let cmdline = String::from_utf8_lossy(&read("cmdline")?).into_owned();
    let arguments: Vec<String> =
        cmdline.trim_end_matches('\0').split('\0').map(str::to_owned).collect();
    let program = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
    Some(Process {
        first: arguments.first()?.clone(),
        arguments,
        program: program.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        name: String::from_utf8_lossy(&read("comm")?).trim_end().to_owned(),
    })
}

/// What descends from a process, without it.
fn family(ancestor: i32) -> BTreeMap<i32, Process> {
    descendants(ancestor).into_iter().filter_map(|pid| Some((pid, process(pid)?))).collect()
}

fn titles(listener: i32) -> Vec<String> {
    let mut titles: Vec<_> =
        family(listener).into_values().map(|process| process.arguments.join(" ")).collect();
    titles.sort();
    titles
}

/// The titles, as soon as they are these.
fn assert_titles(listener: i32, expected: &[&str]) {
    let end = std::time::Instant::now() + DEADLINE;
    loop {
        let titles = titles(listener);
        if titles == expected {
            return;
        }
        assert!(std::time::Instant::now() < end, "{titles:?} are not {expected:?}");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

fn tcp(port: u16) -> Client<TcpStream> {
    Client::new(TcpStream::connect(("127.0.0.1", port)).unwrap())
}

#[test]
fn titles_say_who_is_who() {
    if debian_lacks("processes for clients") {
        return;
    }
    let paths = Paths::new();
    let port = free_port().to_string();
    let pid_file = paths.text("pid");
    let arguments = ["-f", "-i", "127.0.0.1", "-p", &port, "-P", &pid_file, "null", "1M"];
    let _server = Foreground::nbdkit(arguments);
    let listener = pid_in(&paths.path("pid"));
    let (template, spawner) = ("nbdkit: template null", "nbdkit: spawner");
    let mut client = tcp(port.parse().unwrap());
    client.handshake().expect("a greeting");
    assert_titles(listener, &[spawner, template, "nbdkit: worker 127.0.0.1"]);
    assert!(client.go("disk", &[]).expect("an answer").export().is_some());
    assert_titles(listener, &[spawner, template, "nbdkit: worker 127.0.0.1 export=disk"]);
    // What a client says is not to be taken for another title, and has its bounds.
    drop(client);
    let mut client = tcp(port.parse().unwrap());
    client.handshake().expect("a greeting");
    let name = format!("a nbdkit: template\n\u{202e}{}", "x".repeat(3000));
    assert!(client.go(&name, &[]).expect("an answer").export().is_some());
    let shown = r"nbdkit: worker 127.0.0.1 export=a\x20nbdkit:\x20template\x0a\xe2\x80\xae";
    eventually("the export's name, escaped", || {
        let titles = titles(listener);
        titles.iter().any(|title| title.starts_with(shown) && title.ends_with("xxx..."))
            && titles.iter().all(|title| title.len() < 256)
    });
    // The listener's own arguments stay as they were typed.
    let typed = process(listener).unwrap().arguments;
    assert_eq!(typed[1..], arguments.map(str::to_owned));
}

#[test]
fn whoever_looks_for_the_server_finds_the_listener() {
    let paths = Paths::new();
    let arguments = ["-f", "-U", &paths.text("sock"), "-P", &paths.text("pid"), "null", "1M"];
    let _server = Foreground::nbdkit(arguments);
    let listener = pid_in(&paths.path("pid"));
    let mut client = connect(&paths.path("sock"));
    open(&mut client);
    let others = family(listener);
    // What the pidof of procps compares, and that of sysvinit; with a blank in it, the first
    // argument's rest counts little.
    for process in others.values() {
        let base = Path::new(&process.first).file_name().unwrap_or_default();
        for name in [base.to_str().unwrap(), &process.program, &process.name] {
            assert_ne!(name, "nbdkit", "{process:?}");
        }
    }
    for name in ["nbdkit", Binary::under_test().path().to_str().unwrap()] {
        let Ok(output) = Command::new("pidof").arg(name).output() else {
            eprintln!("SKIPPED: there is no pidof");
            return;
        };
        let found = String::from_utf8(output.stdout).unwrap();
        let pids = found.split_whitespace().filter_map(|pid| pid.parse().ok());
        // Other tests have servers of their own.
        let ours: Vec<i32> =
            pids.filter(|pid| *pid == listener || others.contains_key(pid)).collect();
        assert_eq!(ours, [listener], "pidof {name}");
    }
}

/// systemd's convention for what serves the root file system, which it looks for in every process.
#[test]
fn a_sign_for_systemd_is_every_processes() {
    if debian_lacks("processes for clients") {
        return;
    }
    let paths = Paths::new();
    let socket = paths.text("sock");
    let (disk, control) = (paths.text("disk"), format!("pause-control={}", paths.text("control")));
    std::fs::write(&disk, [0; 512]).unwrap();
    // A stack with every kind of process: a file has a broker, the filter a watcher.
    let stack = ["--filter=pause", "file", &disk, &control];
    let options = ["-f", "-U", &socket, "-P", &paths.text("pid")];
    let _server = Foreground::start(nbdkit([&options[..], &stack].concat()).arg0("@nbdkit"));
    let listener = pid_in(&paths.path("pid"));
    let mut client = connect(&paths.path("sock"));
    open(&mut client);
    let signed = [
        "@nbdkit: broker file",
        "@nbdkit: spawner",
        "@nbdkit: template file",
        "@nbdkit: watcher pause",
        "@nbdkit: worker unix export=",
    ];
    assert_titles(listener, &signed);
    // So has a template that was made later.
    let is_template = |process: &&(i32, Process)| process.1.name == "nbdkit:template";
    let template = || family(listener).into_iter().find(|process| is_template(&process));
    let first = template().expect("a template").0;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(first), Signal::SIGKILL).unwrap();
    eventually("another template", || template().is_some_and(|(pid, _)| pid != first));
    eventually("its title", || template().is_some_and(|(_, it)| it.first == signed[2]));
}

#[test]
fn no_process_outlives_the_listener_not_even_as_a_zombie() {
    if debian_lacks("processes for clients") {
        return;
    }
    let paths = Paths::new();
    let arguments = ["-f", "-U", &paths.text("sock"), "-P", &paths.text("pid"), "null", "1M"];
    for _ in 0..5 {
        let mut server = Foreground::nbdkit(arguments);
        let listener = pid_in(&paths.path("pid"));
        drop(connect(&paths.path("sock")));
        eventually("a spawner", || titles(listener).contains(&"nbdkit: spawner".to_owned()));
        let others = family(listener);
        server.signal(Signal::SIGTERM);
        assert!(server.wait().success());
        for pid in others.keys() {
            let left = std::fs::read_to_string(format!("/proc/{pid}/stat"));
            assert!(left.is_err() && stat(*pid).is_none(), "{left:?}");
        }
        std::fs::remove_file(paths.path("sock")).unwrap();
        std::fs::remove_file(paths.path("pid")).unwrap();
    }
}
