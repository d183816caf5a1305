//! The servers under measurement: the command line of each, how it is started, when it is
//! ready, and how it is stopped.
#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use crate::client::{Address, Client, Wishes};
use crate::failure::Failure;
use crate::fixtures::{Fixtures, PSK_USER};
use crate::images::image_of;
use crate::loaded::Loaded;
use crate::stack::{Image, Stack};

const START_DEADLINE: Duration = Duration::from_secs(10);

/// Mebibytes of the RAM disk and of the file that is written.
pub(crate) const SMALL_MIB: u64 = 64;
/// Mebibytes of the file that is read.
pub(crate) const FILE_MIB: u64 = 256;
/// Mebibytes of the file that is copied, and of the one that is read cold.
pub(crate) const LARGE_MIB: u64 = 1024;

/// Who serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Ours,
    Nbdkit,
    QemuNbd,
    NbdServer,
    Floor,
}

impl Kind {
    pub(crate) const ALL: [Kind; 5] =
        [Kind::Ours, Kind::Nbdkit, Kind::QemuNbd, Kind::NbdServer, Kind::Floor];
    /// The other servers; the floor is not one.
    pub(crate) const PEERS: [Kind; 3] = [Kind::Nbdkit, Kind::QemuNbd, Kind::NbdServer];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Ours => "ours",
            Kind::Nbdkit => "nbdkit",
            Kind::QemuNbd => "qemu-nbd",
            Kind::NbdServer => "nbd-server",
            Kind::Floor => "floor",
        }
    }
}

/// What is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Export {
    /// A file in the page cache.
    File,
    /// A file in the page cache that may be overwritten.
    Writable,
    /// A file of 1 GiB; whether it is cached is the workload's business.
    Large,
    /// A RAM disk: the server's own, or a file on tmpfs.
    Memory,
    /// Zeroes.
    Null,
    /// A sparse file of many pieces.
    Fragmented,
    /// What filters make of an image.
    Filtered(&'static Stack),
    /// A file in the page cache, which qemu-nbd serves: other servers pass on what it serves. If
    /// the flag is set it may be overwritten.
    Forwarded(bool),
    /// A file in the page cache, served by a plugin that Debian's nbdkit brings.
    Loaded(Loaded),
}

/// How clients reach it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Unix,
    Tcp,
    /// TCP, TLS with certificates.
    Certificates,
    /// TCP, TLS with a pre-shared key.
    Psk,
}

/// A server that runs. Dropping it stops it.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) kind: Kind,
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
            Export::Null => None,
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
        let mut server = Server { kind, transport, address, started, child, pid, file, pki, dir };
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
        match self.kind {
            Kind::NbdServer => SECTION,
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

/// The name of nbd-server's export; it wants one.
const SECTION: &str = "disk";

/// What a command line is made of.
struct Plan<'a> {
    export: Export,
    transport: Transport,
    address: &'a Address,
    file: Option<&'a Path>,
    pki: Option<&'a Path>,
    dir: &'a Path,
}

impl Plan<'_> {
    fn command(&self, kind: Kind, ours: &Path) -> Result<Command, Failure> {
        match kind {
            Kind::Ours | Kind::Nbdkit if matches!(self.export, Export::Forwarded(_)) => {
                let ours = if kind == Kind::Ours { ours } else { Path::new("/usr/bin/nbdkit") };
                Ok(self.forwarding(ours))
            }
            Kind::NbdServer | Kind::Floor if matches!(self.export, Export::Forwarded(_)) => {
                Err(Failure::Unavailable(format!("{} forwards nothing", kind.name())))
            }
            Kind::QemuNbd | Kind::NbdServer | Kind::Floor
                if matches!(self.export, Export::Loaded(_)) =>
            {
                Err(Failure::Unavailable(format!("{} loads no plugins", kind.name())))
            }
            Kind::Ours => self.nbdkit(ours),
            Kind::Nbdkit => self.nbdkit(Path::new("/usr/bin/nbdkit")),
            Kind::QemuNbd if self.format().is_some() => Ok(self.qemu_nbd()),
            _ if matches!(self.export, Export::Filtered(_)) => {
                let why = format!("{} has no such filter", kind.name());
                Err(Failure::Unavailable(why))
            }
            Kind::QemuNbd => Ok(self.qemu_nbd()),
            Kind::NbdServer => self.nbd_server(),
            Kind::Floor => self.floor(),
        }
    }

    /// The format of the image, where QEMU knows it as one of its own.
    fn format(&self) -> Option<&'static str> {
        match self.export {
            Export::Filtered(stack) => match stack.image {
                Image::Qcow2 | Image::CompressedQcow2 => Some("qcow2"),
                Image::Raw | Image::Partitioned | Image::Luks | Image::Xz | Image::Gzip => None,
            },
            _ => None,
        }
    }

    fn pki_dir(&self) -> &Path {
        self.pki.unwrap_or(Path::new(""))
    }

    fn pki_file(&self, name: &str) -> String {
        self.pki_dir().join(name).to_string_lossy().into_owned()
    }

    fn nbdkit(&self, program: &Path) -> Result<Command, Failure> {
        let mut command = Command::new(program);
        command.arg("-f");
        match self.address {
            Address::Unix(path) => command.arg("-U").arg(path),
            Address::Tcp(address) => {
                command.args(["-i", &address.ip().to_string(), "-p", &address.port().to_string()])
            }
        };
        match self.transport {
            Transport::Unix | Transport::Tcp => {}
            Transport::Certificates => {
                command
                    .arg("--tls=require")
                    .arg(format!("--tls-certificates={}", self.pki_dir().display()));
            }
            Transport::Psk => {
                command
                    .arg("--tls=require")
                    .arg(format!("--tls-psk={}", self.pki_file("keys.psk")));
            }
        }
        match (self.export, self.file) {
            (Export::Null, _) => command.args(["null", "1G"]),
            (Export::Filtered(stack), Some(file)) => {
                command.args(stack.filters.iter().map(|name| format!("--filter={name}")));
                command.arg("file").arg(file).args(stack.parameters)
            }
            (Export::Loaded(plugin), Some(file)) => command.args(plugin.arguments(self.dir, file)?),
            (_, Some(file)) => command.arg("file").arg(file),
            (_, None) => command.arg("memory").arg(format!("{SMALL_MIB}M")),
        };
        Ok(command)
    }

    /// The nbd plugin in front of qemu-nbd, both in the process group of a shell.
    fn forwarding(&self, program: &Path) -> Command {
        let address = Address::Unix(self.dir.join("upstream"));
        let qemu_nbd = Plan { address: &address, ..*self }.qemu_nbd();
        let mut command = Command::new("/bin/sh");
        command.args([
            "-c",
            r#"socket=$1 upstream=$2 program=$3; shift 3
            "$@" & exec "$program" -f -U "$socket" nbd socket="$upstream" retry=10"#,
        ]);
        command.arg("sh");
        match self.address {
            Address::Unix(path) => command.arg(path),
            Address::Tcp(address) => command.arg(address.to_string()),
        };
        command.arg(self.dir.join("upstream")).arg(program);
        command.arg(qemu_nbd.get_program()).args(qemu_nbd.get_args());
        command
    }

    fn qemu_nbd(&self) -> Command {
        let mut command = Command::new("qemu-nbd");
        command.args(["--shared=0", "-t"]);
        match self.address {
            Address::Unix(path) => command.arg("-k").arg(path),
            Address::Tcp(address) => {
                command.args(["-b", &address.ip().to_string(), "-p", &address.port().to_string()])
            }
        };
        let dir = self.pki_dir().display();
        match self.transport {
            Transport::Unix | Transport::Tcp => {}
            Transport::Certificates => {
                let object =
                    format!("tls-creds-x509,id=tls0,endpoint=server,verify-peer=no,dir={dir}");
                command.args(["--tls-creds", "tls0", "--object", &object]);
            }
            Transport::Psk => {
                let object = format!("tls-creds-psk,id=tls0,endpoint=server,dir={dir}");
                command.args(["--tls-creds", "tls0", "--object", &object]);
            }
        }
        match self.file {
            Some(file) => {
                let format = self.format().unwrap_or("raw");
                command.args(["-f", format, "--cache=writeback"]).arg(file)
            }
            None => command.args(["--image-opts", "driver=null-co,size=1G,read-zeroes=on"]),
        };
        command
    }

    fn nbd_server(&self) -> Result<Command, Failure> {
        let Some(file) = self.file else {
            return Err(Failure::Unavailable("nbd-server serves files only".to_owned()));
        };
        let mut config = "[generic]\n".to_owned();
        match self.address {
            Address::Unix(path) => config += &format!("unixsock = {}\n", path.display()),
            Address::Tcp(address) => {
                config += &format!("listenaddr = {}\nport = {}\n", address.ip(), address.port());
            }
        }
        match self.transport {
            Transport::Unix | Transport::Tcp => {}
            Transport::Certificates => {
                config += &format!(
                    "force_tls = true\ncertfile = {}\nkeyfile = {}\ncacertfile = {}\n",
                    self.pki_file("server-cert.pem"),
                    self.pki_file("server-key.pem"),
                    self.pki_file("ca-cert.pem"),
                );
            }
            Transport::Psk => {
                return Err(Failure::Unavailable("nbd-server has no pre-shared keys".to_owned()));
            }
        }
        config += &format!("[{SECTION}]\nexportname = {}\n", file.display());
        let path = self.dir.join("config");
        fs::write(&path, config)?;
        let mut command = Command::new("nbd-server");
        command.arg("-C").arg(path).arg("-p").arg(self.dir.join("pid"));
        Ok(command)
    }

    fn floor(&self) -> Result<Command, Failure> {
        if matches!(self.transport, Transport::Certificates | Transport::Psk) {
            return Err(Failure::Unavailable("the floor has no TLS".to_owned()));
        }
        if self.export == Export::Fragmented {
            return Err(Failure::Unavailable("the floor has no block status".to_owned()));
        }
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("floor");
        match self.address {
            Address::Unix(path) => command.arg("--unix").arg(path),
            Address::Tcp(address) => command.arg("--tcp").arg(address.to_string()),
        };
        match self.file {
            Some(file) => command.arg("--file").arg(file),
            None => command.args(["--null", "1073741824"]),
        };
        Ok(command)
    }
}

fn free_port() -> Result<u16, Failure> {
    let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    Ok(socket.local_addr()?.port())
}
