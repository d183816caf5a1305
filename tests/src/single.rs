//! A server of one connection on standard input and output, as inetd(8) would start it: `nbdkit
//! -s`.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::binary::Binary;
use crate::client::Client;
use crate::command::kill_group;

/// A running `nbdkit -s`; ended when dropped.
#[derive(Debug)]
pub struct Single {
    child: Child,
}

impl Single {
    /// Starts the server under test with `-s` and these arguments, and connects a client to it.
    ///
    /// # Panics
    /// If it cannot be started.
    #[must_use]
    pub fn start<I: IntoIterator<Item: AsRef<OsStr>>>(
        arguments: I,
    ) -> (Single, Client<UnixStream>) {
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        let theirs = OwnedFd::from(theirs);
        let output = theirs.try_clone().expect("another descriptor of the socket");
        let child = Command::new(Binary::under_test().path())
            .arg("-s")
            .args(arguments)
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::from(output))
            .process_group(0)
            .spawn()
            .expect("the server can be run");
        (Single { child }, Client::new(ours))
    }

    /// Waits for the server to end by itself.
    ///
    /// # Panics
    /// If it runs on for ten seconds.
    pub fn wait(&mut self) -> ExitStatus {
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            if let Ok(Some(status)) = self.child.try_wait() {
                return status;
            }
            assert!(Instant::now() < end, "the server runs on without a client");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Single {
    fn drop(&mut self) {
        kill_group(self.child.id());
        let _ = self.child.wait();
    }
}
