//! What is logged when a connection has ended: an error if something went wrong, and with
//! `--log-connections` a notice in any case.

#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::time::{Duration, Instant};

use nbdkit_ipc::WorkerExit;
use nbdkit_ipc::messages::Totals;

use super::Server;
use crate::connections::Connection;
use crate::log::{Level, Speaker, Subject};

impl Server {
    /// Logs how a connection has ended, which was removed. `exit` is `None` if it is not known how.
    pub(super) fn report_end(
        &mut self,
        number: u64,
        connection: &Connection,
        exit: Option<WorkerExit>,
    ) {
        let (log, now) = (self.context.log(), Instant::now());
        let speaker = self.context.speaker(None, number, Some(connection.subject(true)));
        let report = exit.and_then(WorkerExit::report).map(|it| format!("{it} ({connection})"));
        let (text, is_limited) = if connection.evicted {
            (Some(format!("handshake evicted for a newer client ({connection})")), true)
        } else {
            (report, exit == Some(WorkerExit::Deadline))
        };
        if let Some(text) = text {
            let line = if is_limited { self.acceptor.limited(&text, now) } else { Some(text) };
            if let Some(line) = line {
                log.about(connection.key, None, speaker, Level::Error, &line);
            }
        }
        if log.verbose() {
            let exit = exit.map_or_else(|| "unknown".to_owned(), |exit| format!("{exit:?}"));
            let text = format!("connection ended: {exit} ({connection})");
            log.write(speaker, Level::Debug, &text);
        }
        if self.context.plan().options.log_connections {
            let reason = reason(connection, exit, self.shutdown.is_stopping());
            let text = notice(connection, &reason, now.duration_since(connection.since));
            let client = connection.subject(true);
            let client = Some(Subject { reason: Some(&reason), ..client });
            log.connection_ended(connection.key, Speaker { client, ..speaker }, &text);
        }
    }
}

/// `connection ended: client left (client 127.0.0.1:4000, export "x"), 4096 bytes read, 0 written,
/// 1.234 seconds`.
fn notice(connection: &Connection, reason: &str, time: Duration) -> String {
    let certificate = connection.certificate();
    let bytes = connection.totals.map_or_else(
        || "bytes unknown".to_owned(),
        |totals| {
            let Totals { read, written } = totals.and(connection.earlier);
            format!("{read} bytes read, {written} written")
        },
    );
    let seconds = time.as_secs_f64();
    format!("connection ended: {reason} ({connection}{certificate}), {bytes}, {seconds:.3} seconds")
}

/// Why a connection has ended. `is_stopping`: the server ends, and with it its connections.
fn reason(
    connection: &Connection,
    exit: Option<WorkerExit>,
    is_stopping: bool,
) -> Cow<'static, str> {
    const SHUTDOWN: &str = "shutdown";
    if connection.evicted {
        return "evicted for a newer client".into();
    }
    if connection.has_violated {
        return "worker killed, violation of the control protocol".into();
    }
    match exit {
        Some(WorkerExit::Clean | WorkerExit::Broken | WorkerExit::Disconnected) if is_stopping => {
            SHUTDOWN.into()
        }
        Some(WorkerExit::Killed(libc::SIGKILL)) if is_stopping && connection.kill_requested => {
            SHUTDOWN.into()
        }
        Some(WorkerExit::Clean) => "client left".into(),
        Some(WorkerExit::Protocol) => "protocol violation by the client".into(),
        Some(WorkerExit::Deadline) => "handshake timed out".into(),
        Some(WorkerExit::Refused) => "refused by the plugin or a filter".into(),
        Some(WorkerExit::Broken) => "connection broken".into(),
        Some(WorkerExit::Disconnected) => "disconnected by the plugin or a filter".into(),
        Some(WorkerExit::Failed) => "error of the server".into(),
        Some(WorkerExit::Panicked) => "worker panicked".into(),
        Some(WorkerExit::Killed(signal)) => format!("worker killed by signal {signal}").into(),
        Some(WorkerExit::Unknown(status)) => format!("worker exited with status {status}").into(),
        // It has not asked for it.
        Some(WorkerExit::Parked) => "client left".into(),
        Some(WorkerExit::Forbidden) => "worker killed by the sandbox".into(),
        None => "the template has ended".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connections::Connections;
    use nbdkit_ipc::messages::{Peer, PeerAddress};

    fn connection() -> Connection {
        let mut table = Connections::default();
        let address = PeerAddress::Inet(([127, 0, 0, 1], 4000).into());
        let peer = Peer { address, ..Peer::default() };
        table.add(1, peer, None, true, Instant::now());
        table.remove(1).unwrap()
    }

    #[test]
    fn a_notice_has_client_reason_bytes_and_time() {
        let mut connection = connection();
        let time = Duration::from_millis(1234);
        assert_eq!(
            notice(&connection, "worker killed by signal 9", time),
            "connection ended: worker killed by signal 9 (client 127.0.0.1:4000), bytes unknown, 1.234 seconds"
        );
        connection.serving("x".to_owned(), Some("CN=a".to_owned())).unwrap();
        connection.totals = Some(Totals { read: u64::MAX - 1, written: 0 });
        connection.earlier = Totals { read: 1, written: 0 };
        assert_eq!(
            notice(&connection, "client left", time),
            "connection ended: client left (client 127.0.0.1:4000, export \"x\", certificate \"CN=a\"), 18446744073709551615 bytes read, 0 written, 1.234 seconds"
        );
    }

    #[test]
    fn the_listeners_own_reason_goes_before_the_workers() {
        let mut connection = connection();
        let killed = Some(WorkerExit::Killed(libc::SIGKILL));
        assert_eq!(reason(&connection, killed, false), "worker killed by signal 9");
        assert_eq!(reason(&connection, killed, true), "worker killed by signal 9");
        assert_eq!(reason(&connection, Some(WorkerExit::Clean), false), "client left");
        assert_eq!(reason(&connection, Some(WorkerExit::Clean), true), "shutdown");
        assert_eq!(
            reason(&connection, Some(WorkerExit::Refused), true),
            "refused by the plugin or a filter"
        );
        connection.kill_requested = true;
        assert_eq!(reason(&connection, killed, true), "shutdown");
        connection.has_violated = true;
        assert!(reason(&connection, killed, true).contains("violation"));
        connection.evicted = true;
        assert_eq!(reason(&connection, killed, false), "evicted for a newer client");
    }
}
