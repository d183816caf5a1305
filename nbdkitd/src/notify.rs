//! Notifies the service manager: readiness, the end, a status line, and that the listener's loop
//! still turns. sd_notify(3), sd_watchdog_enabled(3).

#![forbid(unsafe_code)]

mod schedule;

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::datagram::DatagramClient;
use schedule::Schedule;

/// The variable that names the manager's socket. Like the others not passed on to children.
pub(crate) const NOTIFY_SOCKET: &str = "NOTIFY_SOCKET";
/// The variables of the watchdog: the process that is watched, and how long it may be silent, in
/// microseconds.
pub(crate) const WATCHDOG_PID: &str = "WATCHDOG_PID";
pub(crate) const WATCHDOG_USEC: &str = "WATCHDOG_USEC";

/// A state of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Clients can connect.
    Ready,
    /// The server is stopping.
    Stopping,
}

/// The service manager, if the environment names one.
#[derive(Debug)]
pub(crate) struct Manager(Option<Link>);

#[derive(Debug)]
struct Link {
    client: DatagramClient,
    schedule: Schedule,
    /// The status line that was sent last.
    status: String,
}

impl Manager {
    /// The manager that the environment names. One that cannot be reached is not an error.
    pub(crate) fn from_env(now: Instant) -> Manager {
        let client = env::var_os(NOTIFY_SOCKET).and_then(|name| connect(&name).ok());
        let pid = env::var_os(WATCHDOG_PID);
        let silence = watchdog(env::var_os(WATCHDOG_USEC).as_deref(), pid.as_deref());
        Manager(client.map(|client| Link {
            client,
            schedule: Schedule::new(silence, now),
            status: String::new(),
        }))
    }

    /// Whether there is a manager.
    pub(crate) fn is_there(&self) -> bool {
        self.0.is_some()
    }

    /// Sends the state.
    pub(crate) fn notify(&self, state: State) {
        if let Some(Link { client, .. }) = &self.0 {
            let _ = client.send(text(state, std::process::id()).as_bytes());
        }
    }

    /// Something has happened that the status line may show.
    pub(crate) fn status_may_have_changed(&mut self) {
        if let Some(Link { schedule, .. }) = &mut self.0 {
            schedule.status_may_have_changed();
        }
    }

    /// When [`send_due`](Self::send_due) has something to send, unless something happens before.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.0.as_ref().and_then(|link| link.schedule.next_deadline())
    }

    /// Sends what is due. `status`: the status line, without control characters.
    pub(crate) fn send_due(&mut self, now: Instant, status: impl FnOnce() -> String) {
        let Some(Link { client, schedule, status: sent }) = &mut self.0 else { return };
        if schedule.take_ping(now) {
            let _ = client.send(b"WATCHDOG=1");
        }
        if schedule.take_status(now) {
            let status = status();
            if status != *sent {
                let _ = client.send(format!("STATUS={status}").as_bytes());
                *sent = status;
            }
        }
    }
}

fn text(state: State, pid: u32) -> String {
    match state {
        State::Ready => format!("READY=1\nMAINPID={pid}"),
        State::Stopping => "STOPPING=1".to_owned(),
    }
}

/// How long the manager lets this process be silent: `None` if it does not watch it.
fn watchdog(silence: Option<&OsStr>, pid: Option<&OsStr>) -> Option<Duration> {
    let silence = silence?.to_str()?.parse().ok().filter(|silence| *silence > 0)?;
    // Without the variable any process of the service may answer.
    let watched = pid.is_none_or(|pid| pid.to_str() == Some(&std::process::id().to_string()));
    watched.then(|| Duration::from_micros(silence))
}

/// A name that begins with `@` is in the abstract namespace.
fn connect(name: &OsStr) -> io::Result<DatagramClient> {
    let address = match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(name)?,
    };
    DatagramClient::new(address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixDatagram;

    #[test]
    fn readiness_reaches_path_and_abstract_sockets() {
        let pid = std::process::id();
        let path = env::temp_dir().join(format!("nbdkitd-notify-{pid}"));
        let _ = std::fs::remove_file(&path);
        let abstract_name = format!("@nbdkitd-notify-{pid}");
        let address = SocketAddr::from_abstract_name(&abstract_name[1..]).unwrap();
        for (manager, name) in [
            (UnixDatagram::bind(&path).unwrap(), path.as_os_str()),
            (UnixDatagram::bind_addr(&address).unwrap(), abstract_name.as_ref()),
        ] {
            connect(name).unwrap().send(text(State::Ready, 7).as_bytes()).unwrap();
            let mut buffer = [0; 64];
            let length = manager.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], b"READY=1\nMAINPID=7");
        }
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn the_watchdog_is_for_the_process_that_it_names() {
        let own = std::process::id().to_string();
        let of = |silence: &str, pid: Option<&str>| {
            watchdog(Some(silence.as_ref()), pid.map(AsRef::as_ref))
        };
        let second = Some(Duration::from_secs(1));
        assert_eq!(of("1000000", Some(&own)), second);
        assert_eq!(of("1000000", None), second);
        assert_eq!(of("1000000", Some("1")), None);
        for bad in ["", "0", "-1", "x", "99999999999999999999999"] {
            assert_eq!(of(bad, None), None, "{bad}");
        }
        assert_eq!(watchdog(None, None), None);
    }
}
