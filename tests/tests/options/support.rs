//! What the tests of options share: command lines run to their end, servers with every stream in
//! view, and a look at processes by /proc.

use std::ffi::OsStr;
use std::fs::Permissions;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nbd_protocol::constants::Rep;
use nbdkit_tests::binary::Binary;
use nbdkit_tests::client::Transport;
use nbdkit_tests::command::{self, Finished};
use nbdkit_tests::processes::{eventually, is_alive};
use nbdkit_tests::{Ask, Client, TempDir};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

/// How long anything may take that takes milliseconds on an idle machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// Whether the server under test is Debian's, which then lacks what the test is about.
pub(crate) fn debian_lacks(what: &str) -> bool {
    let lacks = !Binary::under_test().is_ours();
    if lacks {
        eprintln!("SKIPPED: nbdkit 1.32.5 has no {what}");
    }
    lacks
}

/// Whether this user may not do what only root may.
pub(crate) fn needs_root(what: &str) -> bool {
    let ordinary = !nix::unistd::geteuid().is_root();
    if ordinary {
        eprintln!("SKIPPED: {what} needs root");
    }
    ordinary
}

/// The server under test with these arguments, and nothing in the environment that would mean
/// something to it.
pub(crate) fn nbdkit<I: IntoIterator<Item: AsRef<OsStr>>>(arguments: I) -> Command {
    let mut command = Command::new(Binary::under_test().path());
    command.args(arguments).env_remove("LISTEN_FDS").env_remove("LISTEN_PID");
    command
}

/// Runs the server under test to its end.
pub(crate) fn run<I: IntoIterator<Item: AsRef<OsStr>>>(arguments: I) -> Finished {
    command::run(&mut nbdkit(arguments), DEADLINE)
}

/// Runs the server under test, which must refuse with status 1 and one line on standard error that
/// has all of these words in it.
pub(crate) fn assert_refused<I: IntoIterator<Item: AsRef<OsStr>>>(arguments: I, words: &[&str]) {
    let mut command = nbdkit(arguments);
    let finished = command::run(&mut command, DEADLINE);
    assert_eq!(finished.status.code(), Some(1), "{command:?}: {finished:?}");
    if Binary::under_test().is_ours() {
        assert_eq!(finished.stderr.lines().count(), 1, "{command:?}: {finished:?}");
        assert!(finished.stderr.starts_with("nbdkit: "), "{command:?}: {finished:?}");
    }
    for word in words {
        assert!(finished.stderr.contains(word), "{command:?}: {word:?} is not in {finished:?}");
    }
}

/// Waits for a file with a whole line in it, and gives its text.
pub(crate) fn line_in(path: &Path) -> String {
    let text = || std::fs::read_to_string(path).unwrap_or_default();
    eventually(&format!("a line in {}", path.display()), || text().ends_with('\n'));
    text()
}

/// Waits for a pid file and gives the process id in it.
pub(crate) fn pid_in(path: &Path) -> i32 {
    line_in(path).trim_end().parse().unwrap()
}

/// A client on a Unix socket; nothing is sent or read yet.
pub(crate) fn connect(socket: &Path) -> Client<UnixStream> {
    match UnixStream::connect(socket) {
        Ok(stream) => Client::new(stream),
        Err(error) => panic!("connect: {}: {error}", socket.display()),
    }
}

/// Opens the default export.
pub(crate) fn open<T: Transport>(client: &mut Client<T>) {
    client.handshake().expect("a greeting");
    assert_eq!(client.go("", &[]).expect("a reply").end.reply, Rep::ACK);
}

/// Opens the default export, reads its first bytes, if it has any, and says goodbye.
pub(crate) fn assert_serves<T: Transport>(client: &mut Client<T>) {
    open(client);
    let length = client.export().map_or(0, |(size, _)| size.min(512));
    if length > 0 {
        assert_eq!(client.call(&Ask::read(0, length)).expect("a reply").error, None);
    }
    client.disconnect().expect("sent");
    client.expect_close().expect("closed");
}

/// The fields of /proc/PID/stat after the name, or nothing if there is no such process or only its
/// zombie is left.
pub(crate) fn stat(pid: i32) -> Option<Vec<String>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<String> = text.rsplit_once(") ")?.1.split(' ').map(str::to_owned).collect();
    (fields.first()? != "Z").then_some(fields)
}

/// Runs a command that leaves a daemon behind, in the same process group perhaps, to its end and to
/// the end of its standard streams, which the daemon therefore must not keep.
pub(crate) fn launch(command: &mut Command) -> Finished {
    let mut launcher = Foreground::start(command.stdin(Stdio::null()));
    let status = launcher.wait();
    eventually("standard output and standard error end with the command", || {
        launcher.stdout.is_complete() && launcher.stderr.is_complete()
    });
    launcher.leaves_a_daemon = true;
    Finished { status, stdout: launcher.stdout(), stderr: launcher.stderr() }
}

/// Ends a server that is no child of ours when dropped: a daemon, by its pid file.
pub(crate) struct Daemon {
    pid: i32,
    name: String,
}

impl Daemon {
    /// The daemon whose pid file this is.
    pub(crate) fn of(pid_file: &Path) -> Daemon {
        let pid = pid_in(pid_file);
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
        assert_eq!(name, "nbdkit\n", "the pid file names the server");
        Daemon { pid, name }
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    /// Ends it with SIGTERM and waits.
    pub(crate) fn stop(&self) {
        self.signal(Signal::SIGTERM);
        eventually("the daemon ends", || !is_alive(self.pid));
    }

    fn signal(&self, signal: Signal) {
        // The id may be another process's by now: the name tells.
        let name = std::fs::read_to_string(format!("/proc/{}/comm", self.pid));
        if name.is_ok_and(|name| name == self.name) {
            let _ = kill(Pid::from_raw(self.pid), signal);
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.signal(Signal::SIGTERM);
        let end = Instant::now() + Duration::from_secs(5);
        while is_alive(self.pid) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.signal(Signal::SIGKILL);
    }
}

/// A child in the foreground, of whose streams nothing is lost. Killed, with its group, when
/// dropped.
pub(crate) struct Foreground {
    child: Child,
    ended: Option<ExitStatus>,
    leaves_a_daemon: bool,
    stdout: Text,
    stderr: Text,
}

/// What a pipe has brought so far, and whether it has ended.
#[derive(Clone, Default)]
struct Text(Arc<Mutex<(String, bool)>>);

impl Text {
    fn so_far(&self) -> String {
        self.0.lock().unwrap().0.clone()
    }

    fn is_complete(&self) -> bool {
        self.0.lock().unwrap().1
    }
}

impl Foreground {
    /// Starts the server under test with nothing added to these arguments.
    pub(crate) fn nbdkit<I: IntoIterator<Item: AsRef<OsStr>>>(arguments: I) -> Foreground {
        Foreground::start(nbdkit(arguments).stdin(Stdio::null()))
    }

    /// Starts a command; its standard input is the caller's affair.
    pub(crate) fn start(command: &mut Command) -> Foreground {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
        let stdout = gather(child.stdout.take());
        let stderr = gather(child.stderr.take());
        Foreground { child, ended: None, leaves_a_daemon: false, stdout, stderr }
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap())
    }

    pub(crate) fn stdout(&self) -> String {
        self.stdout.so_far()
    }

    pub(crate) fn stderr(&self) -> String {
        self.stderr.so_far()
    }

    /// Waits for so many whole lines on standard output and gives them.
    pub(crate) fn stdout_lines(&self, count: usize) -> Vec<String> {
        let ready = || self.stdout().matches('\n').count() >= count;
        eventually(&format!("{count} lines on standard output: {}", self.stderr()), ready);
        self.stdout().lines().map(str::to_owned).collect()
    }

    pub(crate) fn wait_for_stderr(&self, needle: &str) {
        eventually(&format!("{needle:?} on standard error"), || self.stderr().contains(needle));
    }

    pub(crate) fn try_wait(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().unwrap();
        }
        self.ended
    }

    /// Waits for the child to end by itself.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let end = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = self.try_wait() {
                return status;
            }
            assert!(Instant::now() < end, "runs on: {}", self.stderr());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn signal(&mut self, signal: Signal) {
        assert!(self.try_wait().is_none(), "it has already ended");
        let _ = kill(self.pid(), signal);
    }

    /// Signals the whole process group, as a terminal does.
    pub(crate) fn signal_group(&mut self, signal: Signal) {
        assert!(self.try_wait().is_none(), "it has already ended");
        let _ = killpg(self.pid(), signal);
    }
}

impl Drop for Foreground {
    fn drop(&mut self) {
        if self.try_wait().is_none() {
            // A chance to clean up after itself first.
            let _ = kill(self.pid(), Signal::SIGTERM);
            let end = Instant::now() + Duration::from_secs(5);
            while self.try_wait().is_none() && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        if !self.leaves_a_daemon {
            let _ = killpg(self.pid(), Signal::SIGKILL);
        }
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- standard output ---\n{}", self.stdout());
            eprintln!("--- standard error ---\n{}", self.stderr());
        }
    }
}

fn gather(pipe: Option<impl Read + Send + 'static>) -> Text {
    let text = Text::default();
    let filled = text.clone();
    if let Some(pipe) = pipe {
        std::thread::spawn(move || {
            let mut pipe = BufReader::new(pipe);
            let mut line = Vec::new();
            while pipe.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
                filled.0.lock().unwrap().0.push_str(&String::from_utf8_lossy(&line));
                line.clear();
            }
            filled.0.lock().unwrap().1 = true;
        });
    }
    text
}

/// Paths of a private directory as text, for arguments.
pub(crate) struct Paths {
    pub(crate) dir: TempDir,
}

impl Paths {
    pub(crate) fn new() -> Paths {
        Paths { dir: TempDir::new() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub(crate) fn text(&self, name: &str) -> String {
        self.dir.join(name).to_str().unwrap().to_owned()
    }

    /// Binds a datagram service that everybody can send to, whoever the server has become.
    pub(crate) fn bind_service(&self, name: &str) -> UnixDatagram {
        let service = UnixDatagram::bind(self.path(name)).unwrap();
        for path in [self.dir.path().to_owned(), self.path(name)] {
            std::fs::set_permissions(path, Permissions::from_mode(0o777)).unwrap();
        }
        service.set_read_timeout(Some(DEADLINE)).unwrap();
        service
    }

    /// Waits until no process has a socket that is bound to this name. A child of another test has
    /// a copy of one that was closed, until it executes its program.
    pub(crate) fn await_closed(&self, name: &str) {
        let path = self.text(name);
        eventually("the socket is closed", || {
            let sockets = std::fs::read_to_string("/proc/net/unix").unwrap();
            !sockets.lines().any(|line| line.ends_with(&path))
        });
    }

    /// Writes a file and gives its path.
    pub(crate) fn write(&self, name: &str, text: impl AsRef<[u8]>) -> String {
        std::fs::write(self.dir.join(name), text).unwrap();
        self.text(name)
    }
}
