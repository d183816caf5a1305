//! TCP keepalive: how soon a connection ends whose client has vanished. Set on listening sockets,
//! from which accepted ones inherit it, so that it costs no system call for each. tcp(7),
//! socket(7).

#![forbid(unsafe_code)]

use std::os::fd::AsFd;

use nix::sys::socket::{setsockopt, sockopt};

use crate::cli::command_line::KeepAlive;

/// After how long without a byte a client is probed, seconds.
const IDLE: u32 = 120;
/// How long until the next probe, seconds.
const INTERVAL: u32 = 30;
/// How long probes, or data that were sent, may go without an answer, milliseconds. Then the
/// connection slot is for other clients.
const UNANSWERED: u32 = 300_000;

/// Sets keepalive. Sockets and kernels without these options are left as they are.
pub(crate) fn keep_alive(socket: &impl AsFd, wanted: KeepAlive) {
    if wanted == KeepAlive::Off {
        // A socket that a service manager has passed may have it.
        let _ = setsockopt(socket, sockopt::KeepAlive, &false);
        return;
    }
    let _ = setsockopt(socket, sockopt::KeepAlive, &true);
    if wanted == KeepAlive::Soon {
        let _ = setsockopt(socket, sockopt::TcpKeepIdle, &IDLE);
        let _ = setsockopt(socket, sockopt::TcpKeepInterval, &INTERVAL);
        let _ = setsockopt(socket, sockopt::TcpUserTimeout, &UNANSWERED);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::getsockopt;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn accepted_sockets_inherit_it() {
        for (wanted, alive, idle, unanswered) in [
            (KeepAlive::Soon, true, Some(IDLE), UNANSWERED),
            (KeepAlive::System, true, None, 0),
            (KeepAlive::Off, false, None, 0),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let usual = getsockopt(&listener, sockopt::TcpKeepIdle).unwrap();
            keep_alive(&listener, wanted);
            let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (socket, _) = listener.accept().unwrap();
            assert_eq!(getsockopt(&socket, sockopt::KeepAlive), Ok(alive));
            assert_eq!(getsockopt(&socket, sockopt::TcpKeepIdle), Ok(idle.unwrap_or(usual)));
            assert_eq!(getsockopt(&socket, sockopt::TcpUserTimeout), Ok(unanswered));
        }
    }
}
