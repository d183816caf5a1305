//! What the client needs of a socket.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// How long one read or write may take before the test is considered hung.
pub const TIMEOUT: Duration = Duration::from_secs(15);

/// A connected stream socket, or something that behaves like one.
pub trait Transport: Read + Write {
    /// Gives every later read and write a deadline.
    ///
    /// # Errors
    /// The socket's.
    fn set_timeout(&self, timeout: Duration) -> io::Result<()>;

    /// Ends this side's direction.
    ///
    /// # Errors
    /// The socket's.
    fn half_close(&self) -> io::Result<()>;
}

impl Transport for UnixStream {
    fn set_timeout(&self, timeout: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(timeout))?;
        self.set_write_timeout(Some(timeout))
    }

    fn half_close(&self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
}

impl Transport for TcpStream {
    fn set_timeout(&self, timeout: Duration) -> io::Result<()> {
        self.set_nodelay(true)?;
        self.set_read_timeout(Some(timeout))?;
        self.set_write_timeout(Some(timeout))
    }

    fn half_close(&self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
}
