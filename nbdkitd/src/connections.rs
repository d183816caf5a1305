//! The table of connections, and the checks of what the template reports about them. Pure.
//!
//! Every report is checked: the template is a confined process that has run a plugin's code.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::OwnedFd;
use std::time::Instant;

use nbdkit_ipc::messages::{Isolation, MAX_DN, Peer, PeerAddress, Totals};
use nbdkit_ipc::phase::{Brokers, WorkerPhase};
use nbdkit_ipc::process::Process;

use crate::log::{Quota, Subject, escape};
use crate::parking::{Parking, Patience};
use crate::peer_key::PeerKey;

/// The longest export name. NBD protocol, "String values".
const MAX_EXPORT: usize = 4096;

/// The longest part of an export name, and of a certificate's, in a log line, bytes.
const MAX_SHOWN: usize = 64;
const MAX_SHOWN_DN: usize = 256;

/// Error lines that one client's worker may cause: at once, and each second.
const LINES: (u32, u32) = (200, 20);

/// A client that the template was sent.
#[derive(Debug)]
pub(crate) struct Connection {
    /// Address and credentials of the client.
    pub(crate) peer: Peer,
    /// The peer whose limits it counts against.
    pub(crate) key: PeerKey,
    /// The client has, or will have, a worker of its own.
    pub(crate) has_worker: bool,
    /// The worker's process id, once it was forked, as the template has reported it.
    pub(crate) pid: Option<i32>,
    /// A handle (pidfd) on the worker, if the template could send one. Unchecked, too.
    pub(crate) process: Option<Process>,
    /// The quota of the worker's log lines.
    pub(crate) quota: Quota,
    /// The worker's phase, by its own messages.
    pub(crate) phase: WorkerPhase,
    /// How often the worker has asked for a channel to the broker.
    pub(crate) brokers: Brokers,
    /// The listener has made a signature, or sent a key, for its TLS handshake.
    pub(crate) signed_for: bool,
    export: Option<String>,
    tls_dn: Option<String>,
    /// What it has read and written, if its worker has reported that.
    pub(crate) totals: Option<Totals>,
    /// What it had read and written when it was parked.
    pub(crate) earlier: Totals,
    /// How long it has to be idle to be parked; `None` if it never is.
    pub(crate) patience: Option<Patience>,
    pub(crate) parking: Parking,
    /// When it was sent to the template.
    pub(crate) since: Instant,
    /// The same, the last time.
    pub(crate) worker_since: Instant,
    /// It is being disconnected, since another client's handshake needs the slot.
    pub(crate) evicted: bool,
    /// Its worker has violated the protocol of the control channel, and is killed.
    pub(crate) has_violated: bool,
    /// Its worker is to be killed; its process may not be known yet.
    pub(crate) kill_requested: bool,
    /// The template that it was sent to has ended.
    pub(crate) orphan: bool,
    /// The client's socket, kept for the next template until a worker is known to have it; and
    /// longer, if the client may be parked.
    pub(crate) client: Option<OwnedFd>,
    /// A worker is known to have the client.
    pub(crate) is_taken: bool,
}

impl Connection {
    /// Whether its handshake is not over, as far as has been reported.
    pub(crate) fn is_in_handshake(&self) -> bool {
        self.export.is_none()
    }

    /// Whether the template has yet to fork its worker, or to report it.
    pub(crate) fn awaits_fork(&self) -> bool {
        self.has_worker && self.pid.is_none() && !self.orphan && !self.parking.has_no_worker()
    }

    /// A worker is known to have the client.
    pub(crate) fn taken(&mut self) {
        self.is_taken = true;
        if matches!(self.parking, Parking::Sent(_)) {
            (self.parking, self.totals) = (Parking::No, None);
        }
        if self.patience.is_none() {
            self.client = None;
        }
    }

    /// Its worker has ended, and the next one is in transmission from the beginning.
    pub(crate) fn without_worker(&mut self) {
        (self.pid, self.process) = (None, None);
        (self.phase, self.brokers) = (WorkerPhase::Serving, Brokers::default());
        self.orphan = false;
    }

    /// Its handshake is over, and this export is being served.
    ///
    /// # Errors
    /// It was over before, or a name is too long.
    pub(crate) fn serving(
        &mut self,
        export: String,
        tls_dn: Option<String>,
    ) -> Result<(), Violation> {
        let is_too_long = tls_dn.as_ref().is_some_and(|dn| dn.len() > MAX_DN);
        if export.len() > MAX_EXPORT || is_too_long || self.export.is_some() {
            return Err(Violation::Serving);
        }
        (self.export, self.tls_dn) = (Some(export), tls_dn);
        Ok(())
    }

    /// The client, for a line of the log. `is_named`: the text of the line names it.
    pub(crate) fn subject(&self, is_named: bool) -> Subject<'_> {
        let Connection { peer, export, tls_dn, .. } = self;
        let (export, tls_dn) = (export.as_deref(), tls_dn.as_deref());
        Subject { peer, export, tls_dn, reason: None, is_named }
    }

    /// The quota of the worker's log lines, and the client, for a line that the worker has sent.
    pub(crate) fn quota_and_subject(&mut self) -> (&mut Quota, Subject<'_>) {
        let Connection { peer, export, tls_dn, quota, .. } = self;
        let (export, tls_dn) = (export.as_deref(), tls_dn.as_deref());
        (quota, Subject { peer, export, tls_dn, reason: None, is_named: false })
    }

    /// `, certificate "CN=alice"`, if it has shown one.
    pub(crate) fn certificate(&self) -> String {
        let dn = self.tls_dn.iter().map(|dn| format!(", certificate {}", quoted(dn, MAX_SHOWN_DN)));
        dn.collect()
    }

    /// The name of its export for a line, which the client has chosen: quoted, cut and escaped.
    pub(crate) fn shown_export(&self) -> Option<String> {
        self.export.as_ref().map(|export| quoted(export, MAX_SHOWN))
    }
}

/// A name in quotes: escaped, and cut to so many bytes.
fn quoted(name: &str, most: usize) -> String {
    let cut = name.floor_char_boundary(most);
    let mut quoted = "\"".to_owned();
    escape(&mut quoted, &name[..cut]);
    quoted + if cut < name.len() { "\"..." } else { "\"" }
}

/// For log lines: `client 127.0.0.1:4000, export "x"`.
impl fmt::Display for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&client_name(&self.peer))?;
        match self.shown_export() {
            Some(export) => write!(f, ", export {export}"),
            None => Ok(()),
        }
    }
}

/// How log lines name a client: `client 127.0.0.1:4000`.
pub(crate) fn client_name(peer: &Peer) -> String {
    match (&peer.address, peer.credentials) {
        (PeerAddress::Unix, Some((pid, uid, _))) => format!("client pid {pid} uid {uid}"),
        (address, _) => format!("client {address}"),
    }
}

/// A report of the template that cannot be true.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Violation {
    /// There is no such connection.
    UnknownConnection,
    /// The connection has a worker already, or the stack has no workers.
    Forked,
    /// The process is another connection's worker, or the number is no process id.
    Process,
    /// The handshake had ended before, or a name is too long.
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
    /// Adds a client that the template was sent. `client` is its socket, if another template could
    /// serve it; `has_worker`: it gets a worker of its own.
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
            tls_dn: None,
            totals: None,
            earlier: Totals::default(),
            patience: None,
            parking: Parking::No,
            since: now,
            worker_since: now,
            evicted: false,
            has_violated: false,
            kill_requested: false,
            orphan: false,
            client,
            is_taken: false,
        };
        self.table.insert(number, connection);
    }

    /// The template reports that process `pid` serves a connection.
    ///
    /// # Errors
    /// The report cannot be true.
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
        let has_or_needs_none = connection.pid.is_some() || connection.parking.has_no_worker();
        if has_or_needs_none || isolation == Isolation::Shared {
            return Err(Violation::Forked);
        }
        connection.pid = Some(pid);
        connection.taken();
        Ok(connection)
    }

    /// Removes a connection that has ended. It may have had no worker: fork(2) may have failed.
    ///
    /// # Errors
    /// There was no such connection.
    pub(crate) fn remove(&mut self, number: u64) -> Result<Connection, Violation> {
        self.table.remove(&number).ok_or(Violation::UnknownConnection)
    }

    /// The template has ended that all clients were sent to.
    pub(crate) fn orphan_all(&mut self) {
        let served = self.table.values_mut().filter(|it| !it.parking.has_no_worker());
        served.for_each(|connection| connection.orphan = true);
    }

    /// The connection of this number.
    pub(crate) fn get(&self, number: u64) -> Option<&Connection> {
        self.table.get(&number)
    }

    /// The connection of this number, mutably.
    pub(crate) fn get_mut(&mut self, number: u64) -> Option<&mut Connection> {
        self.table.get_mut(&number)
    }

    /// The connection whose worker a process is.
    pub(crate) fn of_pid(&self, pid: i32) -> Option<u64> {
        self.table.iter().find(|(_, it)| it.pid == Some(pid)).map(|(number, _)| *number)
    }

    /// All connections, oldest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, &Connection)> {
        self.table.iter().map(|(number, connection)| (*number, connection))
    }

    /// The number of connections.
    pub(crate) fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether there are no connections.
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
    fn a_connection_is_added_forked_and_removed() {
        let mut table = table(&[1, 2]);
        assert_eq!(table.forked(2, 42, Isolation::Connection).unwrap().pid, Some(42));
        assert_eq!((table.of_pid(42), table.of_pid(43)), (Some(2), None));
        assert_eq!(table.remove(2).unwrap().pid, Some(42));
        assert_eq!((table.len(), table.is_empty()), (1, false));
        assert_eq!(table.remove(1).unwrap().pid, None);
        assert!(table.is_empty());
    }

    #[test]
    fn reports_that_cannot_be_true_are_violations() {
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
    fn a_handshake_ends_once_and_with_a_name_that_is_not_too_long() {
        let mut table = table(&[1]);
        let connection = table.get_mut(1).unwrap();
        let too_long = ("x".repeat(MAX_EXPORT + 1), Some("x".repeat(MAX_DN + 1)));
        assert_eq!(connection.serving(too_long.0, None), Err(Violation::Serving));
        assert_eq!(connection.serving(String::new(), too_long.1), Err(Violation::Serving));
        assert_eq!(connection.serving(String::new(), Some("x".repeat(MAX_DN))), Ok(()));
        assert_eq!(connection.serving(String::new(), None), Err(Violation::Serving));
    }

    #[test]
    fn log_lines_name_client_and_export_without_control_characters() {
        let mut table = Connections::default();
        let address = PeerAddress::Inet("[::1]:4000".parse().unwrap());
        table.add(1, peer(address), None, false, Instant::now());
        let connection = table.get_mut(1).unwrap();
        assert_eq!(connection.to_string(), "client [::1]:4000");
        connection.serving("a\x1b\n".to_owned(), Some("CN=\x1b".to_owned())).unwrap();
        assert_eq!(connection.certificate(), ", certificate \"CN=\\x1b\"");
        assert_eq!(connection.to_string(), "client [::1]:4000, export \"a\\x1b\\n\"");
        connection.export = Some("é".repeat(1000));
        let shown = format!("client [::1]:4000, export \"{}\"...", "é".repeat(32));
        assert_eq!(connection.to_string(), shown);
        connection.peer = Peer { credentials: Some((7, 1000, 100)), ..peer(PeerAddress::Unix) };
        assert!(connection.to_string().starts_with("client pid 7 uid 1000, export"));
    }
}
