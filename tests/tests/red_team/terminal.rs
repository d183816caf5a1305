//! A server in the foreground of a terminal: nobody but the listener has it.

use std::fs::{File, read_link, read_to_string};
use std::io::Read;
use std::sync::{Arc, Mutex};

use nbdkit_tests::Server;
use nbdkit_tests::processes::{descendants, eventually};
use nbdkit_tests::red_team::attack;
use nix::fcntl::OFlag;
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::unistd::geteuid;

use crate::confinement::is_shown_here;
use crate::server;

/// A terminal, and what was printed to it.
struct Terminal {
    path: String,
    printed: Arc<Mutex<String>>,
    _slave: File,
}

impl Terminal {
    fn new() -> Terminal {
        let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY).expect("a terminal");
        grantpt(&master).expect("granted");
        unlockpt(&master).expect("unlocked");
        let path = ptsname_r(&master).expect("a name");
        // As long as it is open, reading the other end is no error.
        let mut options = File::options();
        let options = options.read(true).write(true);
        let slave =
            std::os::unix::fs::OpenOptionsExt::custom_flags(options, OFlag::O_NOCTTY.bits());
        let slave = slave.open(&path).expect("opened");
        let printed = Arc::new(Mutex::new(String::new()));
        let text = Arc::clone(&printed);
        let mut master = master;
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(length @ 1..) = master.read(&mut bytes) {
                text.lock().expect("whole").push_str(&String::from_utf8_lossy(&bytes[..length]));
            }
        });
        Terminal { path, printed, _slave: slave }
    }

    /// A server that has it for its standard streams.
    fn start(&self, options: &[&str]) -> Server {
        let path = &self.path;
        let script = format!(r#"exec "$0" "$@" <{path} >{path} 2>{path}"#);
        server(options).through_shell(&script).arg("redteam").start()
    }

    fn text(&self) -> String {
        self.printed.lock().expect("whole").clone()
    }
}

/// The number of its session, field 6 of proc_pid_stat(5). A controlling terminal is that of one
/// session.
fn session(pid: i32) -> i32 {
    let stat = read_to_string(format!("/proc/{pid}/stat")).expect("alive");
    let fields = stat.rsplit_once(')').expect("a name").1;
    fields.split_whitespace().nth(3).and_then(|it| it.parse().ok()).expect("a number")
}

pub(crate) fn name(pid: i32) -> String {
    read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}

#[test]
fn nobody_but_the_listener_has_the_terminal_of_a_server_in_the_foreground() {
    let terminal = Terminal::new();
    let server = terminal.start(&["-f", "--sandbox=compat"]);
    let listener = server.pid().as_raw();
    let mut client = server.connect();
    client.handshake().expect("a greeting");
    client.go("", &[]).expect("a reply");
    let all = || descendants(listener);
    let names = ["nbdkit:template", "nbdkit:worker", "nbdkit:spawner"];
    eventually("all are there", || {
        let all: Vec<String> = all().into_iter().map(name).collect();
        names.iter().all(|name| all.iter().any(|its| its == name))
    });
    for pid in all() {
        assert_ne!(session(pid), session(listener), "{}", name(pid));
        // Root alone, and not that of a container, may look at what is open.
        if !geteuid().is_root() || !is_shown_here(1) {
            continue;
        }
        for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).expect("alive") {
            let target = read_link(entry.expect("a descriptor").path()).expect("alive");
            assert!(!target.starts_with("/dev/pts"), "{}: {}", name(pid), target.display());
        }
    }
}

#[test]
fn what_a_worker_prints_reaches_the_terminal_as_text() {
    let terminal = Terminal::new();
    let mut server = terminal.start(&["-f", "-r"]);
    assert_eq!(attack(&server, "print=bell \u{7}, \u{1b}[31m\n").as_deref(), Some("ok"));
    eventually("it is printed", || terminal.text().contains("bell \\a, \\x1b[31m\r\n"));
    // What is printed last comes too.
    let _ = attack(&server, "print=the last words");
    assert!(server.stop().success());
    eventually("it is printed", || terminal.text().contains("the last words"));
    assert!(!terminal.text().contains(['\u{7}', '\u{1b}']), "{:?}", terminal.text());
}

#[test]
fn what_a_worker_prints_without_end_is_cut() {
    let terminal = Terminal::new();
    let server = terminal.start(&["-f"]);
    // 16 MiB, of which the listener copies a quarter of one at once.
    assert_eq!(attack(&server, "flood-stderr=4096").as_deref(), Some("ok"));
    eventually("it says so", || {
        attack(&server, "print=more").is_some() && terminal.text().contains("it came too fast")
    });
    let text = terminal.text();
    assert!((1 << 18..4 << 20).contains(&text.len()), "{}", text.len());
}
