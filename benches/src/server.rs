//! A server under measurement: how it is started, when it is ready, and how it is stopped.
#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use crate::client::{Address, Client, Wishes};
use crate::failure::Failure;
use crate::fixtures::{Fixtures, IN_DIRECTORY, PSK_USER};
use crate::images::image_of;
use crate::plan::{Export, FILE_MIB, Kind, LARGE_MIB, Plan, SECTION, SMALL_MIB, Transport};

const START_DEADLINE: Duration = Duration::from_secs(10);

/// A server that runs. Dropping it stops it.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) kind: Kind,
    export: Export,
    transport: Transport,
    pub(crate) address: Address,
    /// Just before the program was started.
    pub(crate) started: Instant,
    child: Child,
    /// The root of the tree: the child, or the daemon that it left behind.
    pub(crate) pid: Pid,
    /// The file that is served, if it is one.
    pub(crate) file: Option<PathBuf>,
    pki: Option<PathBuf>,
    dir: PathBuf,
}

impl Server {
    /// Starts a server and waits until it accepts connections.
    pub(crate) fn start(
        kind: Kind,
        ours: &Path,
        export: Export,
        transport: Transport,
        fixtures: &Fixtures,
    ) -> Result<Server, Failure> {
        let mut server = Server::launch(kind, ours, export, transport, fixtures)?;
        // A connection alone proves nothing: the kernel takes it as soon as the socket listens.
        server.wait_for(|server| Client::greeted(&server.address))?;
        Ok(server)
    }

    /// Starts a server and does not wait.
    pub(crate) fn launch(
        kind: Kind,
        ours: &Path,
        export: Export,
        transport: Transport,
        fixtures: &Fixtures,
    ) -> Result<Server, Failure> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        // A short path, for a socket's must fit in 107 bytes.
        let dir = std::env::temp_dir().join(format!("nbdb-{}-{number}", std::process::id()));
        fs::create_dir_all(&dir)?;
        let file = match export {
            Export::File | Export::Forwarded(false) | Export::Loaded(_) => {
                Some(fixtures.hashed(FILE_MIB)?)
            }
            Export::Writable | Export::Forwarded(true) => Some(fixtures.writable(SMALL_MIB)?),
            Export::Large => Some(fixtures.hashed(LARGE_MIB)?),
            Export::Memory => match kind {
                Kind::Ours | Kind::Nbdkit => None,
                _ => Some(fixtures.in_memory(SMALL_MIB)?),
            },
            Export::Null | Export::Empty(_) | Export::Layers(_) => None,
            Export::Sparse(extents) => Some(fixtures.sparse(extents)?),
            Export::Directory(files) => Some(fixtures.directory(files)?),
            Export::Fragmented => Some(fixtures.fragmented()?),
            Export::Filtered(stack) => Some(image_of(&fixtures.repeated(SMALL_MIB)?, stack.image)?),
        };
        let address = match transport {
            Transport::Unix => Address::Unix(dir.join("sock")),
            _ => Address::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?))),
        };
        let pki = match transport {
            Transport::Unix | Transport::Tcp => None,
            Transport::Certificates | Transport::Psk => Some(fixtures.pki()?),
        };
        let plan = Plan {
            export,
            transport,
            address: &address,
            file: file.as_deref(),
            pki: pki.as_deref(),
            dir: &dir,
        };
        let mut command = plan.command(kind, ours).inspect_err(|_| {
            let _ = fs::remove_dir_all(&dir);
        })?;
        let log = File::create(dir.join("log"))?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).process_group(0);
        let started = Instant::now();
        let child = command.spawn().map_err(|error| {
            Failure::io("run", Path::new(command.get_program()).display(), &error)
        })?;
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX));
        let mut server =
            Server { kind, export, transport, address, started, child, pid, file, pki, dir };
        if kind == Kind::NbdServer {
            server.find_daemon()?;
        }
        Ok(server)
    }

    /// nbd-server always becomes a daemon. Its child has ended when the pid file is there.
    fn find_daemon(&mut self) -> Result<(), Failure> {
        let path = self.dir.join("pid");
        self.wait_for(|_| {
            let text = fs::read_to_string(&path)?;
            match text.trim().parse::<i32>() {
                Ok(_) => Ok(()),
                Err(_) => Err(Failure::Unavailable("no pid yet".to_owned())),
            }
        })?;
        let text = fs::read_to_string(&path)?;
        self.pid = Pid::from_raw(text.trim().parse().unwrap_or(i32::MAX));
        Ok(())
    }

    /// Tries until it works, or the server has ended, or time is up.
    pub(crate) fn wait_for<T>(
        &mut self,
        mut attempt: impl FnMut(&Server) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        loop {
            let failure = match attempt(self) {
                Ok(done) => return Ok(done),
                Err(failure) => failure,
            };
            let ended = self.child.try_wait()?.filter(|status| !status.success());
            if ended.is_some() || self.started.elapsed() > START_DEADLINE {
                return Err(Failure::Unavailable(self.complaint(&failure)));
            }
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    /// The server's message, or else the client's.
    pub(crate) fn complaint(&self, failure: &Failure) -> String {
        let log = fs::read_to_string(self.dir.join("log")).unwrap_or_default();
        let line = log.lines().find(|line| line.contains("error")).or_else(|| log.lines().last());
        line.map_or_else(|| failure.to_string(), str::to_owned)
    }

    /// Connects our own client, which does not speak TLS.
    pub(crate) fn connect(&self, structured: bool, block_status: bool) -> Result<Client, Failure> {
        let wishes = Wishes { export: self.export_name().to_owned(), structured, block_status };
        Client::connect(&self.address, &wishes)
    }

    fn export_name(&self) -> &'static str {
        match (self.kind, self.export) {
            (Kind::NbdServer, _) => SECTION,
            (_, Export::Directory(_)) => IN_DIRECTORY,
            _ => "",
        }
    }

    /// Where libnbd finds the server.
    pub(crate) fn uri(&self) -> String {
        let name = self.export_name();
        let pki = self.pki.as_deref().unwrap_or(Path::new("")).display();
        match (&self.address, self.transport) {
            (Address::Unix(path), _) => format!("nbd+unix:///{name}?socket={}", path.display()),
            (Address::Tcp(address), Transport::Certificates) => {
                format!("nbds://{address}/{name}?tls-certificates={pki}")
            }
            (Address::Tcp(address), Transport::Psk) => {
                format!("nbds://{PSK_USER}@{address}/{name}?tls-psk-file={pki}/keys.psk")
            }
            (Address::Tcp(address), _) => format!("nbd://{address}/{name}"),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = kill(self.pid, Signal::SIGTERM);
        let end = Instant::now() + Duration::from_millis(300);
        let group = Pid::from_raw(i32::try_from(self.child.id()).unwrap_or(i32::MAX));
        while Instant::now() < end && kill(self.pid, None).is_ok() {
            if self.child.try_wait().is_ok_and(|status| status.is_some()) && self.pid == group {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        // Whatever is left of it: workers of the child, and those of a daemon.
        let _ = killpg(group, Signal::SIGKILL);
        let _ = killpg(self.pid, Signal::SIGKILL);
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn free_port() -> Result<u16, Failure> {
    let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    Ok(socket.local_addr()?.port())
}
