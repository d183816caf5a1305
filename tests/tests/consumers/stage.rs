//! The surroundings of a row: a private directory with a disk in it, `nbdkit` on the PATH, and
//! stand-ins for clients that need more than a test can ask of a machine.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use nbdkit_tests::binary::Binary;
use nbdkit_tests::command::{Finished, run};
use nbdkit_tests::tls::{Authority, KeyType, is_possible};
use nbdkit_tests::{TempDir, http, server};

use crate::row::DEADLINE;

/// Size of `disk.img` in bytes.
const DISK: usize = 1 << 20;

/// Where programs of the system are looked for; tests that bring their own may put them on the
/// PATH.
const SYSTEM: &str = "/usr/bin:/usr/sbin:/bin:/sbin";

/// Programs that `scripts/install-packages.sh test` does not install: without one, its rows are
/// skipped also where `CI` is set.
const OPTIONAL: &[&str] = &["ssh-keygen", "sshd", "systemd-socket-activate"];

/// Paths of the web server that answer only to who sends these headers. The password is that of
/// `{dir}/secret`.
const GUARDED: &[(&str, &[&str])] = &[
    ("agent", &["user-agent: cdi-nbdkit-importer"]),
    // "myname:secret" in Base64, in lower case as the web server compares it.
    (
        "private",
        &["authorization: basic bxluyw1lonnly3jlda==", "cookie: name1=value1; name2=value2"],
    ),
];

/// nbd-client(8) needs a kernel with the nbd module, and root: this one only connects, and copies
/// the disk to the "device", which here is a file.
const NBD_CLIENT: &str = r#"#!/bin/sh
uri= device=
while [ $# -gt 0 ]; do
    case "$1" in
    -u|-unix) uri="nbd+unix:///?socket=$2"; shift ;;
    -t) shift ;;
    -n|-L) ;;
    *) if [ -z "$uri" ]; then uri="nbd://$1"; else device=$1; fi ;;
    esac
    shift
done
nbdcopy "$uri" "$device"
"#;

/// guestfish(1) starts a virtual machine. This one adds drives as it does, and prints the size and
/// the first bytes of each.
const GUESTFISH: &str = r#"#!/bin/sh
while [ $# -gt 0 ]; do
    case "$1" in
    -a|--add) nbdsh -u "$2" -c 'print("drive", h.get_size(), bytes(h.pread(9, 0)).decode())' || exit 1; shift ;;
    esac
    shift
done
"#;

/// A private directory for one row on one server.
pub(crate) struct Stage {
    dir: TempDir,
    /// A TCP port that was free a moment ago.
    pub(crate) port: u16,
    http: String,
}

impl Stage {
    /// Prepares what `texts` ask for.
    pub(crate) fn new(binary: &Binary, texts: &str) -> Stage {
        let dir = TempDir::new();
        std::fs::create_dir(dir.join("bin")).unwrap();
        symlink(binary.path(), dir.join("bin/nbdkit")).unwrap();
        for (name, script) in [("nbd-client", NBD_CLIENT), ("guestfish", GUESTFISH)] {
            let path = dir.join("bin").join(name);
            std::fs::write(&path, script).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        }
        let disk = disk();
        std::fs::write(dir.join("disk.img"), &disk).unwrap();
        std::fs::write(dir.join("secret"), "secret").unwrap();
        let http =
            if texts.contains("{http}") { http::serve(disk, GUARDED) } else { String::new() };
        if texts.contains("{dir}/pki") {
            Authority::new(&dir.join("ca"), "Test Authority")
                .issue_server(&dir.join("pki"), KeyType::Ecdsa);
        }
        Stage { dir, port: server::free_port(), http }
    }

    /// A path in the directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// A text of a row with the names in it filled in.
    pub(crate) fn fill(&self, text: &str) -> String {
        text.replace("{dir}", &self.dir.path().to_string_lossy())
            .replace("{top}", concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
            .replace("{port}", &self.port.to_string())
            .replace("{http}", &self.http)
    }

    /// A shell in the directory.
    pub(crate) fn command(&self, script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.arg("-c").arg(script);
        let path = std::env::var("PATH").unwrap_or_default();
        command
            .current_dir(self.dir.path())
            .env("PATH", format!("{}:{SYSTEM}:{path}", self.dir.join("bin").display()))
            .env("HOME", self.dir.path())
            .env("LANG", "C");
        command
    }

    /// Runs a script to its end, with the names in it filled in.
    pub(crate) fn shell(&self, script: &str) -> Finished {
        run(&mut self.command(&self.fill(script)), DEADLINE)
    }
}

/// A disk that begins with "consumers", with data up to its middle and zeroes from there on.
fn disk() -> Vec<u8> {
    let mut disk = vec![0; DISK];
    for (sector, bytes) in disk[..DISK / 2].chunks_mut(512).enumerate() {
        bytes.fill((sector % 251) as u8 + 1);
    }
    disk[..9].copy_from_slice(b"consumers");
    disk
}

/// Whether a program of the system is there.
///
/// # Panics
/// If it is not, `CI` is set, and the tests' packages have it.
pub(crate) fn has(program: &str) -> bool {
    if program == "certtool" {
        return is_possible();
    }
    let path = std::env::var("PATH").unwrap_or_default();
    let found =
        SYSTEM.split(':').chain(path.split(':')).any(|dir| Path::new(dir).join(program).exists());
    if !found {
        let required = std::env::var_os("CI").is_some() && !OPTIONAL.contains(&program);
        assert!(!required, "{program} is not installed");
        eprintln!("SKIPPED: {program} is not installed");
    }
    found
}
