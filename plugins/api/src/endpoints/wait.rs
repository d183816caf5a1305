//! Waiting for a descriptor until a deadline, the client's end or the server's.

#![forbid(unsafe_code)]

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::client::{self, Client};
use crate::error::Errno;

/// How long to wait, and for whom.
#[derive(Debug, Clone, Copy)]
pub struct Wait<'a> {
    /// The client being served: without it there is nothing to wait for. `None`: there is none in
    /// particular.
    pub client: Option<&'a Client>,
    /// When to give up.
    pub deadline: Instant,
}

impl Wait<'_> {
    /// The time that is left.
    pub fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// Half of the time that is left, if others come after what is waited for.
    pub(super) fn shared(self, with_others: bool) -> Self {
        let part = if with_others { 2 } else { 1 };
        Wait { deadline: Instant::now() + self.left() / part, ..self }
    }

    /// Waits until `fd` has one of `events`, or an error.
    ///
    /// # Errors
    /// ETIMEDOUT; ESHUTDOWN if the client has closed its connection or the server stops; poll(2)'s.
    pub fn ready(&self, fd: BorrowedFd<'_>, events: PollFlags) -> Result<(), Errno> {
        let socket = self.client.and_then(Client::socket);
        loop {
            let left = self.left();
            // Rounded up, so as not to spin at the end.
            let milliseconds = left.as_micros().div_ceil(1000).min(client::LOOK);
            let timeout = PollTimeout::from(milliseconds as u16);
            let mut fds = vec![PollFd::new(fd, events)];
            fds.extend(
                socket.map(|it| PollFd::new(it, PollFlags::from_bits_retain(libc::POLLRDHUP))),
            );
            match poll(&mut fds, timeout) {
                Ok(0) if left.is_zero() => return Err(Errno::ETIMEDOUT),
                Ok(0) | Err(Errno::EINTR) if socket.is_some() && client::is_stopping() => {
                    return Err(Errno::ESHUTDOWN);
                }
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) if fds[0].any() == Some(true) => return Ok(()),
                Ok(_) => return Err(Errno::ESHUTDOWN),
                Err(errno) => return Err(errno),
            }
        }
    }
}
