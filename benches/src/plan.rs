//! The servers under measurement, what they serve and how clients reach it: the command line of
//! each.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::client::Address;
use crate::failure::Failure;
use crate::fixtures::sparse_step;
use crate::loaded::Loaded;
use crate::pattern::Pattern;
use crate::peer::{Peer, Placeholder, Values};
use crate::stack::{Image, Stack};

/// Mebibytes of the RAM disk and of the file that is written.
pub(crate) const SMALL_MIB: u64 = 64;
/// Mebibytes of the file that is read.
pub(crate) const FILE_MIB: u64 = 256;
/// Mebibytes of the file that is copied, and of the one that is read cold.
pub(crate) const LARGE_MIB: u64 = 1024;

/// Bytes of the export of zeroes.
const NULL_SIZE: u64 = 1 << 30;

/// Who serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Ours,
    Nbdkit,
    QemuNbd,
    NbdServer,
    Floor,
    /// One of the user's: `--peer`.
    Peer(&'static Peer),
}

impl Kind {
    /// Those that every run has.
    pub(crate) const ALL: [Kind; 5] =
        [Kind::Ours, Kind::Nbdkit, Kind::QemuNbd, Kind::NbdServer, Kind::Floor];
    /// Whether it is a server of others; the floor is not one.
    pub(crate) fn is_peer(self) -> bool {
        match self {
            Kind::Nbdkit | Kind::QemuNbd | Kind::NbdServer | Kind::Peer(_) => true,
            Kind::Ours | Kind::Floor => false,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Ours => "ours",
            Kind::Nbdkit => "nbdkit",
            Kind::QemuNbd => "qemu-nbd",
            Kind::NbdServer => "nbd-server",
            Kind::Floor => "floor",
            Kind::Peer(peer) => &peer.name,
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
    /// A sparse file of so many extents.
    Sparse(u64),
    /// An empty RAM disk of so many bytes.
    Empty(u64),
    /// Zeroes through so many filters, at most [`LAYERS`].
    Layers(usize),
    /// One of so many files of a directory.
    Directory(u64),
    /// What filters make of an image.
    Filtered(&'static Stack),
    /// A file in the page cache, which qemu-nbd serves: other servers pass on what it serves. If
    /// the flag is set it may be overwritten.
    Forwarded(bool),
    /// A file in the page cache, served by a plugin that Debian's nbdkit brings.
    Loaded(Loaded),
}

/// Filters that pass on requests as they come, outermost first.
const LAYERS: [&str; 6] = ["error", "offset", "blocksize", "delay", "rate", "truncate"];
/// So that the outermost has to look at each request: else servers may leave all of them out.
const OUTERMOST: &str = "error-pread-rate=0.000000000001";

impl Export {
    /// What is in it.
    pub(crate) fn pattern(self) -> Pattern {
        match self {
            Export::Null | Export::Empty(_) | Export::Layers(_) => Pattern::Zero,
            Export::Filtered(_) => Pattern::Repeated,
            Export::Sparse(extents) => Pattern::Pieces(sparse_step(extents)),
            Export::File
            | Export::Writable
            | Export::Large
            | Export::Memory
            | Export::Fragmented
            | Export::Forwarded(_)
            | Export::Loaded(_)
            | Export::Directory(_) => Pattern::Hashed,
        }
    }
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

/// The name of nbd-server's export; it wants one.
pub(crate) const SECTION: &str = "disk";

/// What a command line is made of.
pub(crate) struct Plan<'a> {
    pub(crate) export: Export,
    pub(crate) transport: Transport,
    pub(crate) address: &'a Address,
    pub(crate) file: Option<&'a Path>,
    pub(crate) pki: Option<&'a Path>,
    pub(crate) dir: &'a Path,
}

impl Plan<'_> {
    pub(crate) fn command(&self, kind: Kind, ours: &Path) -> Result<Command, Failure> {
        match kind {
            Kind::Peer(peer) => self.peer(peer),
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
            Kind::QemuNbd | Kind::NbdServer
                if matches!(self.export, Export::Empty(_) | Export::Layers(_)) =>
            {
                Err(Failure::Unavailable(format!("{} has no such stack", kind.name())))
            }
            Kind::Floor if matches!(self.export, Export::Layers(_)) => {
                Err(Failure::Unavailable("the floor has no filters".to_owned()))
            }
            Kind::QemuNbd | Kind::NbdServer | Kind::Floor
                if matches!(self.export, Export::Directory(_)) =>
            {
                Err(Failure::Unavailable(format!("{} serves no directories", kind.name())))
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
            (Export::Empty(size), _) => command.arg("memory").arg(size.to_string()),
            (Export::Layers(filters), _) => {
                command.args(LAYERS[..filters].iter().map(|name| format!("--filter={name}")));
                command.args(["null", "1G"]).args((filters > 0).then_some(OUTERMOST))
            }
            (Export::Directory(_), Some(dir)) => {
                command.arg("file").arg(format!("dir={}", dir.display()))
            }
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

    fn peer(&self, peer: &Peer) -> Result<Command, Failure> {
        let mut needed = Vec::new();
        let mut optional = Vec::new();
        match self.address {
            Address::Unix(path) => needed.push((Placeholder::Socket, path.into())),
            Address::Tcp(address) => {
                needed.push((Placeholder::Port, address.port().to_string().into()));
            }
        }
        match self.transport {
            Transport::Unix | Transport::Tcp => {}
            Transport::Certificates => {
                needed.push((Placeholder::Certificates, self.pki_dir().into()));
            }
            Transport::Psk => needed.push((Placeholder::Psk, self.pki_file("keys.psk").into())),
        }
        match (self.export, self.file) {
            (Export::Forwarded(_), _) => {
                return Err(Failure::Unavailable(format!("{} forwards nothing", peer.name)));
            }
            // Only all of nbdkit's arguments have plugins and filters.
            (
                Export::Filtered(_)
                | Export::Loaded(_)
                | Export::Empty(_)
                | Export::Layers(_)
                | Export::Directory(_),
                _,
            ) => {
                needed.push((Placeholder::Arguments, OsString::new()));
            }
            (_, Some(file)) => {
                needed.push((Placeholder::File, file.into()));
                let size = fs::metadata(file)?.len();
                optional.push((Placeholder::Size, size.to_string().into()));
            }
            (_, None) => needed.push((Placeholder::Size, NULL_SIZE.to_string().into())),
        }
        // The program is the peer's.
        let nbdkit = self.nbdkit(Path::new(""))?;
        let arguments = nbdkit.get_args().map(Into::into).collect();
        let words = peer.command(&Values { needed, optional, arguments });
        let words = words.filter(|words| !words.is_empty());
        let words = words.ok_or_else(|| {
            Failure::Unavailable(format!("no command of {} has what it needs", peer.name))
        })?;
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
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
            None => {
                let size = if let Export::Empty(size) = self.export { size } else { NULL_SIZE };
                command.arg("--null").arg(size.to_string())
            }
        };
        Ok(command)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stack::OFFSET;

    fn words(peer: &str, export: Export, transport: Transport) -> Option<Vec<String>> {
        let mut peers = Vec::new();
        Peer::add(&mut peers, peer, &[]).unwrap();
        let peer = Kind::Peer(Box::leak(Box::new(peers.remove(0))));
        let unix = Address::Unix("/s".into());
        let tcp = Address::Tcp("127.0.0.1:7".parse().unwrap());
        let file =
            (!matches!(export, Export::Null | Export::Empty(_))).then(|| "/etc/passwd".as_ref());
        let address = if transport == Transport::Unix { &unix } else { &tcp };
        let (pki, dir) = (Some("/pki".as_ref()), "/".as_ref());
        let plan = Plan { export, transport, address, file, pki, dir };
        let command = match plan.command(peer, Path::new("/ours")) {
            Ok(command) => command,
            Err(Failure::Unavailable(_)) => return None,
            Err(failure) => panic!("{failure}"),
        };
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        Some(words.map(|word| word.to_string_lossy().into_owned()).collect())
    }

    #[test]
    fn a_peer_has_the_rows_that_its_command_can_do() {
        let file = "a=server -k {socket} {file}";
        let found = words(file, Export::File, Transport::Unix).unwrap();
        assert_eq!(found, ["server", "-k", "/s", "/etc/passwd"]);
        for (export, transport) in [
            (Export::Null, Transport::Unix),
            (Export::File, Transport::Tcp),
            (Export::File, Transport::Certificates),
            (Export::Filtered(&OFFSET), Transport::Unix),
            (Export::Forwarded(false), Transport::Unix),
            (Export::Empty(4096), Transport::Unix),
            (Export::Directory(10), Transport::Unix),
        ] {
            assert_eq!(words(file, export, transport), None, "{export:?} {transport:?}");
        }
        let zeroes = words("a=server -k {socket} {size}", Export::Null, Transport::Unix).unwrap();
        assert_eq!(zeroes, ["server", "-k", "/s", "1073741824"]);
        let psk = words("a=server {port} {psk} {file}", Export::File, Transport::Psk).unwrap();
        assert_eq!(psk, ["server", "7", "/pki/keys.psk", "/etc/passwd"]);
    }

    #[test]
    fn a_peer_with_the_arguments_of_nbdkit_has_filters_and_tls() {
        let all = "a=/opt/nbdkit {arguments}";
        let found = words(all, Export::Filtered(&OFFSET), Transport::Unix).unwrap().join(" ");
        assert!(found.starts_with("/opt/nbdkit -f -U /s --filter=offset file "), "{found}");
        let found = words(all, Export::Null, Transport::Certificates).unwrap().join(" ");
        assert_eq!(
            found,
            "/opt/nbdkit -f -i 127.0.0.1 -p 7 --tls=require --tls-certificates=/pki null 1G"
        );
    }
}
