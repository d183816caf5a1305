//! Notifies the service manager. sd_notify(3).

#![forbid(unsafe_code)]

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::SocketAddr;

use crate::datagram::DatagramClient;

/// The variable that names the manager's socket. Not passed on to children.
pub(crate) const NOTIFY_SOCKET: &str = "NOTIFY_SOCKET";

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
pub(crate) struct Manager(Option<DatagramClient>);

impl Manager {
    /// The manager that the environment names. One that cannot be reached is not an error.
    pub(crate) fn from_env() -> Manager {
        Manager(env::var_os(NOTIFY_SOCKET).and_then(|name| connect(&name).ok()))
    }

    /// Whether there is a manager.
    pub(crate) fn is_there(&self) -> bool {
        self.0.is_some()
    }

    /// Sends the state.
    pub(crate) fn notify(&self, state: State) {
        if let Some(manager) = &self.0 {
            let _ = manager.send(text(state, std::process::id()).as_bytes());
        }
    }
}

fn text(state: State, pid: u32) -> String {
    match state {
        State::Ready => format!("READY=1\nMAINPID={pid}"),
        State::Stopping => "STOPPING=1".to_owned(),
    }
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
}
