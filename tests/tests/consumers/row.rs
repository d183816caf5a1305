//! A row of a table, and how it is run.

use std::os::unix::fs::FileTypeExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nbdkit_tests::binary::Binary;
use nbdkit_tests::command::Finished;
use nbdkit_tests::differential::for_each;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use crate::probe::{Need, missing};
use crate::stage::{Stage, has};

/// Longer than any line takes even on a busy machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// A command line of some program. In its texts, `{dir}` is the private directory, which is also
/// the current one and has `disk.img` in it, `{port}` a free TCP port, and `{http}` the address of
/// a web server that has `disk.img` at every path.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    by: &'static str,
    line: &'static str,
    act: Act,
    needs: &'static [Need],
    tools: &'static [&'static str],
    before: &'static str,
    prints: &'static [&'static str],
    says: Option<&'static [&'static str]>,
}

/// What the line does.
#[derive(Clone, Copy, Debug)]
enum Act {
    /// Ends by itself, with this status.
    Ends(i32),
    /// Serves in the foreground until the program stops it.
    Serves { ready: Ready, client: &'static str, stop: Stop },
    /// Serves from the background, its process id in this file.
    Forks { pid_file: &'static str, client: &'static str },
}

/// How the program knows that the server is ready.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ready {
    /// The file is there.
    PidFile(&'static str),
    /// The Unix socket is there. Debian's server makes it a moment before it listens, which a
    /// client would have to bear with: rows wait until it listens.
    Socket(&'static str),
    /// Something listens on `{port}`.
    Port,
}

/// How the program ends the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    Signal(Signal),
    /// The program is killed, and `--exit-with-parent` has to do the rest.
    Parent,
}

/// A line of the program that is named, at the place that is named.
pub(crate) const fn typed(by: &'static str, line: &'static str) -> Row {
    Row {
        by,
        line,
        act: Act::Ends(0),
        needs: &[],
        tools: &[],
        before: "",
        prints: &[],
        says: Some(&[]),
    }
}

impl Row {
    /// The line ends with this status rather than 0.
    pub(crate) const fn ends(self, status: i32) -> Row {
        Row { act: Act::Ends(status), ..self }
    }

    /// The line serves; when it is ready, `client` is run, by a shell, and has to succeed. Then the
    /// server is stopped, and ends with status 0.
    pub(crate) const fn serves(self, ready: Ready, client: &'static str, stop: Stop) -> Row {
        Row { act: Act::Serves { ready, client, stop }, ..self }
    }

    /// The line succeeds and leaves a server in the background; `client` is run, and the server
    /// stopped with SIGTERM.
    pub(crate) const fn forks(self, pid_file: &'static str, client: &'static str) -> Row {
        Row { act: Act::Forks { pid_file, client }, ..self }
    }

    /// Plugins and filters that a server may lack.
    pub(crate) const fn needs(self, needs: &'static [Need]) -> Row {
        Row { needs, ..self }
    }

    /// Programs of the system.
    pub(crate) const fn tools(self, tools: &'static [&'static str]) -> Row {
        Row { tools, ..self }
    }

    /// A shell script that prepares files.
    pub(crate) const fn before(self, before: &'static str) -> Row {
        Row { before, ..self }
    }

    /// Parts of the standard output of the client, or of a line that ends.
    pub(crate) const fn prints(self, prints: &'static [&'static str]) -> Row {
        Row { prints, ..self }
    }

    /// Parts of the standard error of the line, which otherwise has to have no "error:" in it, on
    /// this server.
    pub(crate) const fn says(self, says: &'static [&'static str]) -> Row {
        Row { says: Some(says), ..self }
    }

    /// Anything may be on standard error: the line asks for debug messages.
    pub(crate) const fn verbose(self) -> Row {
        Row { says: None, ..self }
    }
}

/// What the readahead filter says where requests come one at a time, such as on curl and retry.
pub(crate) const SERIAL: &[&str] = &["readahead: warning: underlying plugin does not support"];

/// Runs every row on Debian's server and on the one under test, all of them even if some fail.
pub(crate) fn check(rows: &[Row]) {
    let under_test = Binary::under_test();
    let debian = Binary::debian();
    assert!(
        debian.is_some() || std::env::var_os("CI").is_none(),
        "CI must have Debian's nbdkit, the oracle"
    );
    for_each(rows, |row| {
        if !row.tools.iter().all(|tool| has(tool)) {
            eprintln!("SKIPPED: {}", row.line);
            return;
        }
        for binary in debian.iter().chain(under_test.is_ours().then_some(&under_test)) {
            let lacking = missing(binary, row.needs);
            if lacking.is_empty() {
                row.run(binary);
            } else {
                let whose = if binary.is_ours() { "this server" } else { "Debian's" };
                eprintln!("SKIPPED: {whose} has no {}: {}", lacking.join(", no "), row.line);
            }
        }
    });
}

impl Row {
    fn run(self, binary: &Binary) {
        let stage = Stage::new(binary, &format!("{}{}", self.before, self.line));
        if !self.before.is_empty() {
            let finished = stage.shell(self.before);
            assert!(finished.status.success(), "{}: {finished:?}", self.before);
        }
        let line = stage.fill(self.line);
        let label = format!("{}\n({}, on {})", line, self.by, binary.path().display());
        let (printed, said) = match self.act {
            Act::Ends(status) => {
                let finished = stage.shell(self.line);
                assert_eq!(finished.status.code(), Some(status), "{label}\n{}", output(&finished));
                (finished.stdout, finished.stderr)
            }
            Act::Serves { ready, client, stop } => {
                let server = Served::start(&stage, &line, stop);
                server.wait_until(&stage, ready, &label);
                let finished = stage.shell(client);
                let said = server.end(&stage, stop, &label);
                assert!(finished.status.success(), "{label}\n{}{said}", output(&finished));
                (finished.stdout, said)
            }
            Act::Forks { pid_file, client } => {
                let mut starter = Served::start(&stage, &line, Stop::Signal(Signal::SIGTERM));
                let status = starter.wait(&stage, &label);
                let log = || log_of(&stage);
                assert!(status.success(), "{label}\n{status}\n{}", log());
                let pid = stage.path(pid_file);
                let read = || std::fs::read_to_string(&pid).unwrap_or_default();
                // Debian's writes the file when the line may have ended already.
                if !binary.is_ours() {
                    poll(|| read().ends_with('\n'), || format!("{label}\nno pid file\n{}", log()));
                }
                let pid = read();
                assert!(pid.ends_with('\n'), "{label}\nends before its pid file is written");
                let pid = Pid::from_raw(pid.trim().parse().unwrap());
                let finished = stage.shell(client);
                kill(pid, Signal::SIGTERM).unwrap();
                wait_for_the_end_of(pid, &label);
                assert!(finished.status.success(), "{label}\n{}{}", output(&finished), log());
                (finished.stdout, log())
            }
        };
        for part in self.prints {
            let part = stage.fill(part);
            assert!(printed.contains(&part), "{label}\nprints no {part:?}:\n{printed}{said}");
        }
        match self.says {
            // Debian's reports warnings as errors.
            Some([]) => {
                assert!(!binary.is_ours() || !said.contains("error:"), "{label}\nsays:\n{said}");
            }
            Some(parts) => {
                for part in parts {
                    assert!(said.contains(part), "{label}\ndoes not say {part:?}:\n{said}");
                }
            }
            None => {}
        }
    }
}

/// A server in the foreground; killed when dropped.
struct Served {
    /// The server, or the program that has started it.
    child: Child,
}

impl Served {
    fn start(stage: &Stage, line: &str, stop: Stop) -> Served {
        let script = match stop {
            // The server takes the place of the shell, so its parent is this test.
            Stop::Signal(_) => format!("exec {line}"),
            Stop::Parent => format!("{line} & echo $! >server.pid; wait"),
        };
        let log = std::fs::File::create(stage.path("server.log")).unwrap();
        let child = stage
            .command(&script)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .process_group(0)
            .spawn()
            .unwrap();
        Served { child }
    }

    fn wait_until(&self, stage: &Stage, ready: Ready, label: &str) {
        let is_ready = || match ready {
            Ready::PidFile(file) => {
                std::fs::metadata(stage.path(file)).is_ok_and(|it| it.len() > 0)
            }
            Ready::Socket(file) => listens_at(&stage.path(file)),
            Ready::Port => listens_on(stage.port),
        };
        poll(is_ready, || format!("{label}\nis not ready:\n{}", log_of(stage)));
    }

    /// Stops the server as the program does, and returns what it has said.
    fn end(mut self, stage: &Stage, stop: Stop, label: &str) -> String {
        match stop {
            Stop::Signal(signal) => {
                kill(self.pid(), signal).unwrap();
                let status = self.wait(stage, label);
                assert!(status.success(), "{label}\nended with {status}:\n{}", log_of(stage));
            }
            Stop::Parent => {
                // The shell may come to write this after the server is ready.
                let read = || std::fs::read_to_string(stage.path("server.pid")).unwrap_or_default();
                poll(|| read().ends_with('\n'), || format!("{label}\nno process id"));
                let server = read();
                kill(self.pid(), Signal::SIGKILL).unwrap();
                self.child.wait().unwrap();
                wait_for_the_end_of(Pid::from_raw(server.trim().parse().unwrap()), label);
            }
        }
        log_of(stage)
    }

    /// How the child ends by itself.
    fn wait(&mut self, stage: &Stage, label: &str) -> ExitStatus {
        let mut status = None;
        let ended = || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        };
        poll(ended, || format!("{label}\nruns on:\n{}", log_of(stage)));
        status.unwrap()
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap())
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // What is left of the group: all of it, where a check has failed.
        let _ = killpg(self.pid(), Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

/// Whether a Unix socket is there and accepts, without a connection, which the server would have to
/// serve. A socket that was bound to this path and does not yet listen is in /proc/net/unix,
/// proc(5), without the flag `__SO_ACCEPTCON`; one that was given its name when it listened is
/// there with another name.
fn listens_at(path: &Path) -> bool {
    let is_bound_only = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields.last().is_some_and(|last| Path::new(last) == path) && fields[3] == "00000000"
    };
    let is_there = std::fs::metadata(path).is_ok_and(|it| it.file_type().is_socket());
    is_there && !std::fs::read_to_string("/proc/net/unix").unwrap().lines().any(is_bound_only)
}

/// Whether something listens on a TCP port, likewise: /proc/net/tcp, state `TCP_LISTEN`.
fn listens_on(port: u16) -> bool {
    let port = format!(":{port:04X}");
    ["/proc/net/tcp", "/proc/net/tcp6"].iter().any(|file| {
        let sockets = std::fs::read_to_string(file).unwrap_or_default();
        sockets.lines().any(|line| {
            let mut fields = line.split_whitespace().skip(1);
            fields.next().is_some_and(|local| local.ends_with(&port)) && fields.nth(1) == Some("0A")
        })
    })
}

fn log_of(stage: &Stage) -> String {
    String::from_utf8_lossy(&std::fs::read(stage.path("server.log")).unwrap_or_default())
        .into_owned()
}

fn output(finished: &Finished) -> String {
    format!("{}\n{}{}", finished.status_text(), finished.stdout, finished.stderr)
}

/// Waits until a process that is no child of this one has ended: nobody may have reaped it yet.
fn wait_for_the_end_of(pid: Pid, label: &str) {
    let ended = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_none_or(|(_, fields)| fields.starts_with(['Z', 'X']))
    };
    poll(ended, || format!("{label}\nprocess {pid} runs on"));
}

fn poll(mut condition: impl FnMut() -> bool, otherwise: impl Fn() -> String) {
    let end = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < end, "{}", otherwise());
        std::thread::sleep(Duration::from_millis(3));
    }
}
