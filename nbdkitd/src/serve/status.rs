//! The status line for the service manager (`systemctl status`): what is served, to how many
//! clients, and which exports they have chosen.

#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::time::Instant;

use super::Server;
use super::shutdown::Stage;
use crate::connections::Connections;

/// Most exports that are named.
const MAX_EXPORTS: usize = 3;

impl Server {
    /// Sends the service manager what is due.
    pub(super) fn notify_manager(&mut self, now: Instant) {
        let what = match self.shutdown.stage() {
            // systemd waits for READY=1, and its watchdog with it.
            Stage::Configuring | Stage::Entering => return,
            Stage::Serving if self.slot.is_serving() => "serving",
            Stage::Serving => "waiting for a new template of",
            Stage::Stopping => "stopping",
        };
        let stack = &self.context.plan().plugin;
        let connections = self.workers.connections();
        self.manager.send_due(now, || format!("{what} {stack}: {}", clients(connections)));
    }
}

/// `2 clients, 1 of them in the handshake, exports "a", "b"`.
fn clients(connections: &Connections) -> String {
    let in_handshake = connections.iter().filter(|(_, it)| it.is_in_handshake()).count();
    let mut text = match connections.len() {
        0 => return "no clients".to_owned(),
        1 => "1 client".to_owned(),
        clients => format!("{clients} clients"),
    };
    if in_handshake > 0 {
        text += &format!(", {in_handshake} of them in the handshake");
    }
    let exports: BTreeSet<String> =
        connections.iter().filter_map(|(_, it)| it.shown_export()).collect();
    if !exports.is_empty() {
        let named: Vec<&str> = exports.iter().take(MAX_EXPORTS).map(String::as_str).collect();
        text += if exports.len() == 1 { ", export " } else { ", exports " };
        text += &named.join(", ");
        if exports.len() > MAX_EXPORTS {
            text += &format!(" and {} more", exports.len() - MAX_EXPORTS);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use nbdkit_ipc::messages::{Peer, PeerAddress};

    fn with(exports: &[Option<&str>]) -> String {
        let mut connections = Connections::default();
        for (number, export) in (1..).zip(exports) {
            let peer =
                Peer { address: PeerAddress::Unix, credentials: None, security_context: None };
            connections.add(number, peer, None, true, Instant::now());
            if let Some(name) = export {
                connections.get_mut(number).unwrap().serving((*name).to_owned(), None).unwrap();
            }
        }
        clients(&connections)
    }

    #[test]
    fn clients_are_counted_and_some_exports_are_named_once() {
        assert_eq!(with(&[]), "no clients");
        assert_eq!(with(&[None]), "1 client, 1 of them in the handshake");
        assert_eq!(with(&[Some("")]), "1 client, export \"\"");
        assert_eq!(
            with(&[Some("b"), Some("a"), Some("b"), None]),
            "4 clients, 1 of them in the handshake, exports \"a\", \"b\""
        );
        let many = ["1", "2", "3", "4", "5"].map(Some);
        assert_eq!(with(&many), "5 clients, exports \"1\", \"2\", \"3\" and 2 more");
    }

    /// A line feed would end the status and begin another assignment. sd_notify(3).
    #[test]
    fn a_client_assigns_nothing_by_the_name_of_its_export() {
        let hostile = with(&[Some("x\nMAINPID=1")]);
        assert_eq!(hostile, "1 client, export \"x\\nMAINPID=1\"");
        assert!(with(&[Some(&"y".repeat(4096))]).len() < 128);
    }
}
