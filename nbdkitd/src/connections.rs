//! Who is being served: the table of connections, and what the template may claim about them. Pure.
//!
//! Every claim is checked: the template is a confined process that ran a plugin's code.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::OwnedFd;
use std::time::Instant;

use nbdkit_ipc::messages::{Isolation, Peer, PeerAddress};
use nbdkit_ipc::phase::{Brokers, WorkerPhase};
use nbdkit_ipc::process::Process;

use crate::admission::PeerKey;
use crate::log::{Quota, escape};

/// The longest export name. NBD protocol, "String values".
const MAX_EXPORT: usize = 4096;

/// How much of an export's name is in a line, bytes.
const MOST_SHOWN: usize = 64;

/// Error lines that one client's worker may cause: at once, and each second.
const LINES: (u32, u32) = (200, 20);

/// A client that was handed over.
#[derive(Debug)]
pub(crate) struct Connection {
    /// Who it is.
    pub(crate) peer: Peer,
    /// As what it is counted.
    pub(crate) key: PeerKey,
    /// It has, or will have, a worker of its own.
    pub(crate) has_worker: bool,
    /// The worker's process id, once it was forked; the template's word.
    pub(crate) pid: Option<i32>,
    /// A handle on the worker, if the template had one to send. Its word, too.
    pub(crate) process: Option<Process>,
    /// How many lines it may still log.
    pub(crate) quota: Quota,
    /// How far its worker has come, by its own word.
    pub(crate) phase: WorkerPhase,
    /// How often it has asked for a channel to the broker.
    pub(crate) brokers: Brokers,
    /// Its TLS handshake was answered with a signature or a key.
    pub(crate) signed_for: bool,
    export: Option<String>,
    /// When it was handed over.
    pub(crate) since: Instant,
    /// It was told to end because another client's handshake needs the place.
    pub(crate) evicted: bool,
    /// Its worker is to be killed, which may not be known yet.
    pub(crate) kill_requested: bool,
    /// The template that it was handed to has ended.
    pub(crate) orphan: bool,
    /// The client's socket, kept for another template until a worker is known to have it.
    pub(crate) client: Option<OwnedFd>,
}

impl Connection {
    /// Whether its handshake is not over, as far as is known.
    pub(crate) fn is_in_handshake(&self) -> bool {
        self.export.is_none()
    }

    /// Whether the template has yet to make its worker, or to say so.
    pub(crate) fn awaits_fork(&self) -> bool {
        self.has_worker && self.pid.is_none() && !self.orphan
    }

    /// Notes the export that is being served.
    ///
    /// # Errors
    /// It was noted before, or cannot be a name.
    pub(crate) fn serving(&mut self, export: String) -> Result<(), Violation> {
        if export.len() > MAX_EXPORT || self.export.is_some() {
            return Err(Violation::Serving);
        }
        self.export = Some(export);
        Ok(())
    }
}

/// For log lines: `client 127.0.0.1:4000, export "x"`.
impl fmt::Display for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&client_name(&self.peer))?;
        if let Some(export) = &self.export {
            let (mut escaped, cut) = (String::new(), export.floor_char_boundary(MOST_SHOWN));
            escape(&mut escaped, &export[..cut]);
            let more = if cut < export.len() { "..." } else { "" };
            write!(f, ", export \"{escaped}\"{more}")?;
        }
        Ok(())
    }
}

/// How log lines call a client: `client 127.0.0.1:4000`.
pub(crate) fn client_name(peer: &Peer) -> String {
    match (&peer.address, peer.credentials) {
        (PeerAddress::Unix, Some((pid, uid, _))) => format!("client pid {pid} uid {uid}"),
        (address, _) => format!("client {address}"),
    }
}

/// A claim that cannot be true.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Violation {
    /// There is no such connection.
    UnknownConnection,
    /// It has a worker already, or there are no workers.
    Forked,
    /// The process is another connection's worker, or no number of a process.
    Process,
    /// The handshake cannot have ended twice, or with such a name.
    Serving,
}

impl Violation {
    /// What is wrong, for the log.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Violation::UnknownConnection => "a connection that does not exist",
            Violation::Forked => "a worker for a connection that can have none",
            Violation::Process => "a worker that is not its child",
            Violation::Serving => "an export that cannot be",
        }
    }
}

/// The table of connections.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    table: BTreeMap<u64, Connection>,
}

impl Connections {
    /// Adds a client that the template was sent. `client` is its socket, if another template could serve it; `has_worker`:
    /// it gets a worker of its own.
    pub(crate) fn add(
        &mut self,
        number: u64,
        peer: Peer,
        client: Option<OwnedFd>,
        has_worker: bool,
        now: Instant,
    ) {
        let quota = Quota::new(LINES.0, LINES.1, now);
        let connection = Connection {
            key: PeerKey::from(&peer),
            peer,
            has_worker,
            pid: None,
            process: None,
            quota,
            phase: WorkerPhase::default(),
            brokers: Brokers::default(),
            signed_for: false,
            export: None,
            since: now,
            evicted: false,
            kill_requested: false,
            orphan: false,
            client,
        };
        self.table.insert(number, connection);
    }

    /// The template says that process `pid` serves a connection.
    ///
    /// # Errors
    /// The claim cannot be true.
    pub(crate) fn forked(
        &mut self,
        number: u64,
        pid: i32,
        isolation: Isolation,
    ) -> Result<&mut Connection, Violation> {
        if pid <= 1 || self.of_pid(pid).is_some() {
            return Err(Violation::Process);
        }
        let connection = self.table.get_mut(&number).ok_or(Violation::UnknownConnection)?;
        if connection.pid.is_some() || isolation == Isolation::Shared {
            return Err(Violation::Forked);
        }
        connection.pid = Some(pid);
        connection.client = None;
        Ok(connection)
    }

    /// A connection has ended. Not every connection had a worker: fork may have failed.
    ///
    /// # Errors
    /// There was no such connection.
    pub(crate) fn remove(&mut self, number: u64) -> Result<Connection, Violation> {
        self.table.remove(&number).ok_or(Violation::UnknownConnection)
    }

    /// The template has ended that all of them were handed to.
    pub(crate) fn orphan_all(&mut self) {
        self.table.values_mut().for_each(|connection| connection.orphan = true);
    }

    /// One of them.
    pub(crate) fn get(&self, number: u64) -> Option<&Connection> {
        self.table.get(&number)
    }

    /// The same, to be changed.
    pub(crate) fn get_mut(&mut self, number: u64) -> Option<&mut Connection> {
        self.table.get_mut(&number)
    }

    /// Whose worker a process is.
    pub(crate) fn of_pid(&self, pid: i32) -> Option<u64> {
        self.table.iter().find(|(_, it)| it.pid == Some(pid)).map(|(number, _)| *number)
    }

    /// All of them, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, &Connection)> {
        self.table.iter().map(|(number, connection)| (*number, connection))
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.table.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(address: PeerAddress) -> Peer {
        Peer { address, credentials: None, security_context: None }
    }

    fn table(numbers: &[u64]) -> Connections {
        let mut table = Connections::default();
        for number in numbers {
            table.add(*number, peer(PeerAddress::Unix), None, false, Instant::now());
        }
        table
    }

    #[test]
    fn a_connection_is_handed_over_forked_and_ended() {
        let mut table = table(&[1, 2]);
        assert_eq!(table.forked(2, 42, Isolation::Connection).unwrap().pid, Some(42));
        assert_eq!((table.of_pid(42), table.of_pid(43)), (Some(2), None));
        assert_eq!(table.remove(2).unwrap().pid, Some(42));
        assert_eq!((table.len(), table.is_empty()), (1, false));
        assert_eq!(table.remove(1).unwrap().pid, None);
        assert!(table.is_empty());
    }

    #[test]
    fn claims_that_cannot_be_true_are_violations() {
        let mut table = table(&[1, 2]);
        let forked = |table: &mut Connections, number, pid, isolation| {
            table.forked(number, pid, isolation).err()
        };
        use Isolation::{Connection as Own, Shared};
        assert_eq!(forked(&mut table, 3, 42, Own), Some(Violation::UnknownConnection));
        assert_eq!(forked(&mut table, 1, 42, Shared), Some(Violation::Forked));
        for pid in [-1, 0, 1] {
            assert_eq!(forked(&mut table, 1, pid, Own), Some(Violation::Process));
        }
        assert_eq!(forked(&mut table, 1, 42, Own), None);
        assert_eq!(forked(&mut table, 1, 43, Own), Some(Violation::Forked));
        assert_eq!(forked(&mut table, 2, 42, Own), Some(Violation::Process));
        assert_eq!(table.remove(3).err(), Some(Violation::UnknownConnection));
    }

    #[test]
    fn a_handshake_ends_once_and_with_a_name_of_the_protocol() {
        let mut table = table(&[1]);
        let connection = table.get_mut(1).unwrap();
        assert_eq!(connection.serving("x".repeat(MAX_EXPORT + 1)), Err(Violation::Serving));
        assert_eq!(connection.serving(String::new()), Ok(()));
        assert_eq!(connection.serving(String::new()), Err(Violation::Serving));
    }

    #[test]
    fn log_lines_name_client_and_export_without_control_characters() {
        let mut table = Connections::default();
        let address = PeerAddress::Inet("[::1]:4000".parse().unwrap());
        table.add(1, peer(address), None, false, Instant::now());
        let connection = table.get_mut(1).unwrap();
        assert_eq!(connection.to_string(), "client [::1]:4000");
        connection.serving("a\x1b\n".to_owned()).unwrap();
        assert_eq!(connection.to_string(), "client [::1]:4000, export \"a\\x1b\\n\"");
        connection.export = Some("é".repeat(1000));
        let shown = format!("client [::1]:4000, export \"{}\"...", "é".repeat(32));
        assert_eq!(connection.to_string(), shown);
        connection.peer = Peer { credentials: Some((7, 1000, 100)), ..peer(PeerAddress::Unix) };
        assert!(connection.to_string().starts_with("client pid 7 uid 1000, export"));
    }
}
