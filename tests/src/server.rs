//! A server under test: a child process with a private directory, ready when `start` returns, gone
//! when dropped.

use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::binary::Binary;
use crate::client::Client;
use crate::command::{Finished, kill_group};
use crate::tempdir::TempDir;

/// How long a server may take to start or to stop. Generous: the machine may be busy with other
/// tests.
const DEADLINE: Duration = Duration::from_secs(20);

/// Gives descriptor 0 to the program in `$0` as the one socket of socket activation,
/// sd_listen_fds(3).
const ACTIVATE: &str = r#"LISTEN_PID=$$ LISTEN_FDS=1 exec "$0" "$@" 3<&0 0</dev/null"#;

/// A server to be started.
#[derive(Debug)]
pub struct Builder {
    binary: Binary,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    listen: bool,
    port: Option<u16>,
    activation: Option<OwnedFd>,
    script: Option<String>,
    dir: TempDir,
}

impl Builder {
    /// Appends one argument; `{dir}` in it becomes the path of the private directory.
    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        let argument = argument.as_ref();
        let argument = match argument.to_str() {
            Some(text) => text.replace("{dir}", &self.dir.path().to_string_lossy()).into(),
            None => argument.to_owned(),
        };
        self.arguments.push(argument);
        self
    }

    /// Appends arguments, as [`arg`](Self::arg) does.
    #[must_use]
    pub fn args<I: IntoIterator<Item: AsRef<OsStr>>>(self, arguments: I) -> Self {
        arguments.into_iter().fold(self, Builder::arg)
    }

    /// Sets an environment variable for the server.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Runs this executable instead of the one under test.
    #[must_use]
    pub fn binary(mut self, binary: Binary) -> Self {
        self.binary = binary;
        self
    }

    /// Leaves out the Unix socket: the arguments say where to listen.
    #[must_use]
    pub fn without_unix_socket(mut self) -> Self {
        self.listen = false;
        self
    }

    /// Listens on a free TCP port of the loopback interface instead; connect to
    /// [`Server::address`].
    #[must_use]
    pub fn tcp(self) -> Self {
        let port = free_port();
        let mut builder = self.without_unix_socket();
        builder.port = Some(port);
        builder.arg("-i").arg("127.0.0.1").arg("-p").arg(port.to_string())
    }

    /// Hands the server a listening socket as systemd does, as descriptor 3; the server is told
    /// nothing else about where to listen.
    #[must_use]
    pub fn activated_by(mut self, socket: impl Into<OwnedFd>) -> Self {
        self.listen = false;
        self.activation = Some(socket.into());
        self
    }

    /// Has a shell run this script, which must end in `exec "$0" "$@"`, so that the server starts
    /// under limits or in a namespace. `{dir}` becomes the path of the private directory.
    #[must_use]
    pub fn through_shell(mut self, script: &str) -> Self {
        self.script = Some(script.replace("{dir}", &self.dir.path().to_string_lossy()));
        self
    }

    /// The private directory, to put files in before the server starts.
    #[must_use]
    pub fn dir(&self) -> &TempDir {
        &self.dir
    }

    /// Starts the server and waits until it has written its pid file, which it does when it is
    /// ready to accept.
    ///
    /// # Panics
    /// If it ends instead, with all that it said.
    #[must_use]
    pub fn start(self) -> Server {
        match self.try_start() {
            Ok(server) => server,
            Err(finished) => {
                panic!("the server did not start: {}\n{}", finished.status_text(), finished.stderr)
            }
        }
    }

    /// As [`start`](Self::start), for servers that may refuse to.
    ///
    /// # Errors
    /// How the server ended and what it wrote to standard error, if it ended before it was ready.
    ///
    /// # Panics
    /// If it neither ends nor becomes ready.
    pub fn try_start(mut self) -> Result<Server, Box<Finished>> {
        let binary = self.old_kernel();
        let socket = self.dir.join("sock");
        let pid_file = self.dir.join("pid");
        let activate = self.activation.as_ref().map(|_| ACTIVATE);
        let mut command = match self.script.as_deref().or(activate) {
            None => Command::new(binary.path()),
            Some(script) => {
                // The shell sets the stage, such as moving the socket from standard input to where
                // the protocol wants it, and is then replaced.
                let mut shell = Command::new("/bin/sh");
                shell.arg("-c").arg(script).arg(binary.path());
                shell
            }
        };
        command.arg("-f").arg("-P").arg(&pid_file);
        if self.listen {
            command.arg("-U").arg(&socket);
        }
        command.args(&self.arguments).envs(self.environment.iter().cloned());
        let stdin = self.activation.map_or_else(Stdio::null, Stdio::from);
        let mut child = command
            .stdin(stdin)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
        let stderr = Lines::default();
        let reader = child.stderr.take().map(|pipe| stderr.clone().fill_from(pipe));
        let address = self.port.map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        let mut server =
            Server { child, ended: None, socket, address, stderr, reader, dir: self.dir };
        let end = Instant::now() + DEADLINE;
        while std::fs::metadata(&pid_file).map_or(0, |metadata| metadata.len()) == 0 {
            if let Some(status) = server.try_wait() {
                let stderr = server.stderr_text_after_end();
                return Err(Box::new(Finished { status, stdout: String::new(), stderr }));
            }
            assert!(Instant::now() < end, "{command:?} is not ready after {DEADLINE:?}");
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(server)
    }
}

/// The version of Landlock that servers are to take the kernel's for, 0 for none, if the test is to
/// run as on an older kernel: `NBDKIT_TEST_LANDLOCK`, set by scripts/surroundings.sh.
#[must_use]
pub fn landlock_is() -> Option<String> {
    std::env::var("NBDKIT_TEST_LANDLOCK").ok()
}

/// The directory of the programs that are started where a test names no others, for tests that copy
/// them.
///
/// # Panics
/// If they have not been built.
#[must_use]
pub fn programs() -> PathBuf {
    let binary = if landlock_is().is_some() { Binary::red_team() } else { Binary::ours() };
    binary.path().parent().expect("a directory").to_owned()
}

impl Builder {
    /// What is started: ours with the means to take the kernel for an older one, if it is to.
    /// Copies are of [`programs`], which have them.
    fn old_kernel(&mut self) -> Binary {
        let Some(version) = landlock_is().filter(|_| matches!(self.binary, Binary::Ours(_))) else {
            return self.binary.clone();
        };
        let flag = match version.as_str() {
            "0" => "nbdkit.lacks=4".to_owned(),
            version => format!("nbdkit.landlock={version}"),
        };
        self.arguments.splice(0..0, ["-D".into(), flag.into()]);
        if self.binary == Binary::under_test() || self.binary == Binary::ours() {
            Binary::red_team()
        } else {
            self.binary.clone()
        }
    }
}

/// A running server. Dropping it stops the server and removes its directory.
#[derive(Debug)]
pub struct Server {
    child: Child,
    ended: Option<ExitStatus>,
    socket: PathBuf,
    address: Option<SocketAddr>,
    stderr: Lines,
    reader: Option<JoinHandle<()>>,
    // Last, so that the directory outlives the process.
    dir: TempDir,
}

impl Server {
    /// A server with these arguments after `-f`, the pid file and the Unix socket.
    #[must_use]
    pub fn nbdkit<I: IntoIterator<Item: AsRef<OsStr>>>(arguments: I) -> Builder {
        let builder = Builder {
            binary: Binary::under_test(),
            arguments: Vec::new(),
            environment: Vec::new(),
            listen: true,
            port: None,
            activation: None,
            script: None,
            dir: TempDir::new(),
        };
        builder.args(arguments)
    }

    /// The Unix socket that it listens on.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The private directory.
    #[must_use]
    pub fn dir(&self) -> &TempDir {
        &self.dir
    }

    /// The process id of the child: our listener.
    #[must_use]
    pub fn pid(&self) -> Pid {
        // Linux's ids are below 2^22.
        Pid::from_raw(i32::try_from(self.child.id()).unwrap_or(i32::MAX))
    }

    /// Connects a client to the Unix socket; nothing is sent or read yet.
    ///
    /// # Panics
    /// If the server does not accept.
    #[must_use]
    pub fn connect(&self) -> Client<UnixStream> {
        match UnixStream::connect(&self.socket) {
            Ok(stream) => Client::new(stream),
            Err(error) => {
                panic!("connect: {}: {error}\n{}", self.socket.display(), self.stderr_text())
            }
        }
    }

    /// The TCP address that it listens on.
    ///
    /// # Panics
    /// If it was not built with [`Builder::tcp`].
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address.expect("a server on TCP")
    }

    /// Connects a client to the TCP port; nothing is sent or read yet.
    ///
    /// # Panics
    /// If the server does not accept.
    #[must_use]
    pub fn connect_tcp(&self) -> Client<TcpStream> {
        match TcpStream::connect(self.address()) {
            Ok(stream) => Client::new(stream),
            Err(error) => panic!("connect: {}: {error}\n{}", self.address(), self.stderr_text()),
        }
    }

    /// Everything written to standard error so far.
    #[must_use]
    pub fn stderr_text(&self) -> String {
        self.stderr.text()
    }

    /// Waits until a line on standard error contains `needle`, and returns that line.
    ///
    /// # Panics
    /// If none comes.
    #[must_use]
    pub fn wait_for_stderr(&self, needle: &str) -> String {
        self.stderr.wait_for(needle, DEADLINE)
    }

    /// The exit status, if the server has ended.
    pub fn try_wait(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().ok().flatten();
        }
        self.ended
    }

    /// Waits for the server to end by itself.
    ///
    /// # Panics
    /// If it does not.
    pub fn wait(&mut self) -> ExitStatus {
        let end = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = self.try_wait() {
                return status;
            }
            assert!(Instant::now() < end, "the server runs on after {DEADLINE:?}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Sends a signal to the child.
    ///
    /// # Panics
    /// If the child has already been reaped.
    pub fn signal(&self, signal: Signal) {
        assert!(self.ended.is_none(), "the server has already ended");
        let _ = kill(self.pid(), signal);
    }

    /// Asks the server to end with SIGTERM, waits for it, and returns its exit status.
    ///
    /// # Panics
    /// If it does not end.
    pub fn stop(&mut self) -> ExitStatus {
        if self.try_wait().is_none() {
            self.signal(Signal::SIGTERM);
        }
        self.wait()
    }

    /// Everything the server wrote to standard error in its life. Waits for the end of the pipe.
    pub fn stderr_text_after_end(&mut self) -> String {
        self.wait();
        // Children that outlive the server would keep the pipe open.
        kill_group(self.child.id());
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        self.stderr_text()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.try_wait().is_none() {
            self.signal(Signal::SIGTERM);
            let end = Instant::now() + Duration::from_secs(5);
            while self.try_wait().is_none() && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        kill_group(self.child.id());
        if self.ended.is_none() {
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- the server's standard error ---\n{}", self.stderr_text());
        }
    }
}

/// Our server with these arguments, whatever is under test.
pub fn ours(arguments: &[&str]) -> Builder {
    Server::nbdkit(arguments).binary(Binary::ours())
}

/// A TCP port of the loopback interface that was free a moment ago.
///
/// # Panics
/// If there is none.
#[must_use]
pub fn free_port() -> u16 {
    let bound = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|socket| socket.local_addr());
    match bound {
        Ok(address) => address.port(),
        Err(error) => panic!("no free TCP port: {error}"),
    }
}

/// Lines that a thread collects and tests look at.
#[derive(Clone, Debug, Default)]
struct Lines(Arc<(Mutex<Vec<String>>, Condvar)>);

impl Lines {
    fn fill_from(self, pipe: impl std::io::Read + Send + 'static) -> JoinHandle<()> {
        std::thread::spawn(move || {
            let mut pipe = BufReader::new(pipe);
            let mut line = Vec::new();
            while pipe.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
                self.lock().push(String::from_utf8_lossy(&line).trim_end_matches('\n').to_owned());
                self.0.1.notify_all();
                line.clear();
            }
        })
    }

    fn lock(&self) -> MutexGuard<'_, Vec<String>> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn text(&self) -> String {
        self.lock().join("\n")
    }

    fn wait_for(&self, needle: &str, deadline: Duration) -> String {
        let end = Instant::now() + deadline;
        let mut lines = self.lock();
        loop {
            if let Some(line) = lines.iter().find(|line| line.contains(needle)) {
                return line.clone();
            }
            let left = end.saturating_duration_since(Instant::now());
            assert!(
                !left.is_zero(),
                "no line with {needle:?} on standard error:\n{}",
                lines.join("\n")
            );
            let waited = self.0.1.wait_timeout(lines, left);
            lines = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
