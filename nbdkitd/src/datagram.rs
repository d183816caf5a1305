//! A client of a Unix datagram service: the system log, the service manager. The socket is made and
//! connected before the listener confines itself, since a listener that serves has neither
//! socket(2) nor connect(2). A service that was restarted has bound a new socket to the path; it is
//! reached by sendto(2) with the address. unix(7).

#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{SocketAddr, UnixDatagram};

use nix::errno::Errno;

/// A client of a Unix datagram service.
#[derive(Debug)]
pub(crate) struct DatagramClient {
    socket: UnixDatagram,
    address: SocketAddr,
}

impl DatagramClient {
    /// Connects to the service, if it is there.
    ///
    /// # Errors
    /// EPROTOTYPE: a socket of another type is bound to the address. EMFILE.
    pub(crate) fn new(address: SocketAddr) -> io::Result<DatagramClient> {
        let socket = UnixDatagram::unbound()?;
        // A service that is stuck must not stop the server; a message is lost instead.
        socket.set_nonblocking(true)?;
        match socket.connect_addr(&address) {
            Err(error) if error.raw_os_error() == Some(libc::EPROTOTYPE) => Err(error),
            // Connected for services that only root may connect to. If the service is not there
            // yet, each message is sent to the address.
            Ok(()) | Err(_) => Ok(DatagramClient { socket, address }),
        }
    }

    /// Connects again: whether the service is there.
    ///
    /// # Errors
    /// Those of connect(2).
    pub(crate) fn reconnect(&self) -> io::Result<()> {
        self.socket.connect_addr(&self.address)
    }

    /// Sends a message. It is lost if the service is not there, or does not read.
    ///
    /// # Errors
    /// Those of sendto(2); EAGAIN: the service does not read.
    pub(crate) fn send(&self, message: &[u8]) -> io::Result<()> {
        let sent = self.socket.send(message);
        let errno = sent.as_ref().err().and_then(io::Error::raw_os_error).map(Errno::from_raw);
        match errno {
            // The service has closed its socket, with this message or before.
            Some(Errno::ECONNREFUSED | Errno::ENOTCONN) => {
                self.socket.send_to_addr(message, &self.address).map(drop)
            }
            _ => sent.map(drop),
        }
    }
}

impl AsFd for DatagramClient {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    /// A path for a service, which nothing is bound to.
    fn path(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("nbdkitd-{name}-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        path
    }

    /// Closes a service. A child of another test has a copy of the socket until it executes its
    /// program.
    fn close(service: UnixDatagram, path: &std::path::Path) {
        drop(service);
        let is_open = || {
            let sockets = std::fs::read_to_string("/proc/net/unix").unwrap();
            sockets.lines().any(|line| line.ends_with(&*path.to_string_lossy()))
        };
        while is_open() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }

    fn received(service: &UnixDatagram) -> Vec<u8> {
        let mut buffer = [0; 64];
        let length = service.recv(&mut buffer).unwrap();
        buffer[..length].to_vec()
    }

    #[test]
    fn a_service_that_comes_late_or_is_restarted_gets_the_next_message() {
        let path = path("restart");
        let client = DatagramClient::new(SocketAddr::from_pathname(&path).unwrap()).unwrap();
        assert!(client.send(b"nobody").is_err());
        for round in *b"12" {
            let service = UnixDatagram::bind(&path).unwrap();
            client.send(&[round]).unwrap();
            client.send(&[round]).unwrap();
            assert_eq!((received(&service), received(&service)), (vec![round], vec![round]));
            close(service, &path);
            std::fs::remove_file(&path).unwrap();
        }
        assert!(client.send(b"nobody").is_err());
    }

    #[test]
    fn a_connected_service_needs_no_path_until_it_is_restarted() {
        let path = path("connected");
        let service = UnixDatagram::bind(&path).unwrap();
        let client = DatagramClient::new(SocketAddr::from_pathname(&path).unwrap()).unwrap();
        std::fs::remove_file(&path).unwrap();
        client.send(b"1").unwrap();
        assert_eq!(received(&service), b"1");
        close(service, &path);
        let service = UnixDatagram::bind(&path).unwrap();
        client.send(b"2").unwrap();
        assert_eq!(received(&service), b"2");
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_message_that_is_too_long_or_not_read_is_lost_at_once() {
        let path = path("stuck");
        let service = UnixDatagram::bind(&path).unwrap();
        let client = DatagramClient::new(SocketAddr::from_pathname(&path).unwrap()).unwrap();
        let errno = |sent: io::Result<()>| sent.err().and_then(|error| error.raw_os_error());
        assert_eq!(errno(client.send(&vec![0; 16 << 20])), Some(libc::EMSGSIZE));
        let stuck = (0..100_000).find_map(|_| errno(client.send(b"x")));
        assert_eq!(stuck, Some(libc::EAGAIN));
        assert_eq!(received(&service), b"x");
        client.send(b"y").unwrap();
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_stream_service_is_refused() {
        let path = path("stream");
        let _service = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let error = DatagramClient::new(SocketAddr::from_pathname(&path).unwrap()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EPROTOTYPE));
        std::fs::remove_file(&path).unwrap();
    }
}
