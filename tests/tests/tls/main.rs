//! TLS: certificates and keys as users make them, the clients that people use, and what must hold
//! whatever they do.
//!
//! - `startup`: what is loaded from where, and what is said when it is not there; `clients`:
//!   libnbd's and qemu's
//! - `peers`: who is let in with `--tls-verify-peer`, and what plugins and filters learn; `psk`:
//!   pre-shared keys
//! - `alarm`: clients that cause many signatures; `flood`: that leave handshakes half open, or fill
//!   the log
//! - `options`: the protocol before and after NBD_OPT_STARTTLS; `memory`: where the private key is
//!   and where not; `filters`: that no way around copies goes around a filter

mod alarm;
mod clients;
mod filters;
mod flood;
mod memory;
mod options;
mod peers;
mod psk;
mod startup;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nbdkit_tests::binary::Binary;
use nbdkit_tests::command::{Finished, run};
use nbdkit_tests::server::Builder;
use nbdkit_tests::tls::{Authority, KeyType};
use nbdkit_tests::{Server, TempDir};

/// Longer than any of these clients takes even on a busy machine.
const DEADLINE: Duration = Duration::from_secs(120);

/// A server's certificate and a client's, `alice`, of the same authority.
struct Pki {
    dir: TempDir,
    authority: Authority,
}

impl Pki {
    /// `None` if there are no tools.
    fn new() -> Option<Pki> {
        Pki::with(KeyType::Ecdsa)
    }

    fn with(key: KeyType) -> Option<Pki> {
        if !nbdkit_tests::tls::is_possible() {
            return None;
        }
        let dir = TempDir::new();
        let authority = Authority::new(&dir.join("ca"), "Test Authority");
        authority.issue_server(&dir.join("server"), key);
        let name = dir.join("alice");
        authority.issue_client(&name, KeyType::Ed25519, "alice", "expiration_days = 30\n");
        Some(Pki { dir, authority })
    }

    fn path(&self, name: &str) -> String {
        self.dir.join(name).to_string_lossy().into_owned()
    }

    /// A server with this certificate.
    fn server(&self, arguments: &[&str]) -> Builder {
        let certificates = format!("--tls-certificates={}", self.path("server"));
        Server::nbdkit([certificates.as_str()]).binary(Binary::ours()).args(arguments)
    }

    /// The URI of a server for a client with the certificates in the directory `name`.
    fn uri(&self, server: &Server, name: &str) -> String {
        let socket = server.socket().display();
        format!("nbds+unix:///?socket={socket}&tls-certificates={}", self.path(name))
    }
}

/// Whether `program` is there, in the system's directories.
fn has(program: &str) -> bool {
    let found = ["/usr/bin", "/usr/sbin"].iter().any(|dir| Path::new(dir).join(program).exists());
    if !found {
        assert!(std::env::var_os("CI").is_none(), "{program} is not installed");
        eprintln!("SKIPPED: {program} is not installed");
    }
    found
}

/// Runs a command of the system to its end.
fn may(program: &str, arguments: &[&str]) -> Finished {
    run(
        Command::new(program).args(arguments).env("PATH", "/usr/bin:/usr/sbin:/bin:/sbin"),
        DEADLINE,
    )
}

/// The same, which must be success.
fn must(program: &str, arguments: &[&str]) -> Finished {
    let finished = may(program, arguments);
    assert!(
        finished.status.success(),
        "{program} {arguments:?}: {}\n{}{}",
        finished.status_text(),
        finished.stdout,
        finished.stderr
    );
    finished
}
