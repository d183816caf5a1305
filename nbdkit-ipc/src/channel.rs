//! An end of a control channel.

#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::fmt;
use std::io::{self, IoSlice};
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nbdkit_common::strerror;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, send, sendmsg, setsockopt,
    socketpair, sockopt,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{MAX_FDS, MAX_PACKET, codec, inherit};

thread_local! {
    static PACKET: RefCell<Packet> =
        const { RefCell::new(Packet { bytes: Vec::new(), control: Vec::new() }) };
}

/// The buffer for received packets. It is reused: each page that a process writes between two forks
/// is one that its children share no more.
struct Packet {
    /// As long as the longest, or empty before the first.
    bytes: Vec<u8>,
    /// Room for all that the kernel lets one message carry, so that a surplus can be distinguished
    /// from a lack of descriptors.
    control: Vec<u64>,
}

/// Frees this thread's buffer for received packets. In a process that expects no packets it holds
/// only what the parent has received.
pub fn release_packet() {
    PACKET.with_borrow_mut(|packet| packet.bytes = Vec::new());
}

/// An end that sends `S` and receives `R`.
pub struct Channel<S, R> {
    fd: OwnedFd,
    direction: PhantomData<fn(S) -> R>,
}

impl<S, R> fmt::Debug for Channel<S, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Channel").field(&self.fd).finish()
    }
}

/// A message with the descriptors that came attached, all close-on-exec.
#[derive(Debug)]
pub struct Received<R> {
    /// The message.
    pub message: R,
    /// The attached descriptors, in order. The receiver checks that the message carries so many.
    pub fds: Vec<OwnedFd>,
    /// Some or all of its descriptors did not arrive, since this process may have no more. Those
    /// that arrived were closed.
    pub lost: bool,
}

/// Why nothing could be received.
#[derive(Debug)]
pub enum RecvError {
    /// The other end is closed.
    Closed,
    /// No message now (only with [`Channel::try_recv`]).
    Empty,
    /// A protocol violation by the other end: too long, not a message, too many descriptors.
    Violation(&'static str),
    /// A system call failed.
    Io(Errno),
}

impl fmt::Display for RecvError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RecvError::Closed => f.write_str("the other end is closed"),
            RecvError::Empty => f.write_str("no message"),
            RecvError::Violation(what) => f.write_str(what),
            RecvError::Io(errno) => f.write_str(&strerror(*errno)),
        }
    }
}

impl std::error::Error for RecvError {}

impl<S, R> Channel<S, R> {
    /// The end whose descriptor `fd` is: one of a [`pair`](Self::pair).
    pub fn from_fd(fd: OwnedFd) -> Channel<S, R> {
        Channel { fd, direction: PhantomData }
    }

    /// The descriptor, to be passed on.
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }
}

impl<S: Serialize, R: DeserializeOwned> Channel<S, R> {
    /// Both ends of a new channel, close-on-exec.
    ///
    /// # Errors
    /// EMFILE, ENFILE, ENOMEM.
    pub fn pair() -> io::Result<(Channel<S, R>, Channel<R, S>)> {
        let (a, b) = Channel::<S, R>::short_pair()?;
        for end in [&a.fd, &b.fd] {
            // The default is usually enough for a packet. Where it is not, sending fails with
            // EMSGSIZE.
            let _ = setsockopt(end, sockopt::SndBuf, &(2 * MAX_PACKET));
        }
        Ok((a, b))
    }

    /// As [`pair`](Self::pair), for messages that are much shorter than a packet may be.
    ///
    /// # Errors
    /// EMFILE, ENFILE, ENOMEM.
    pub fn short_pair() -> io::Result<(Channel<S, R>, Channel<R, S>)> {
        let (a, b) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        Ok((Channel::from_fd(a), Channel::from_fd(b)))
    }

    /// Sends a message with descriptors, at most [`MAX_FDS`]. Waits while the other end's queue is
    /// full.
    ///
    /// # Errors
    /// EMSGSIZE if it is too long, EPIPE if the other end is closed.
    pub fn send(&self, message: &S, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.send_flags(message, fds, MsgFlags::MSG_NOSIGNAL)
    }

    /// Sends without waiting.
    ///
    /// # Errors
    /// EAGAIN if the other end's queue is full, else as [`send`](Self::send).
    pub fn try_send(&self, message: &S, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.send_flags(message, fds, MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT)
    }

    fn send_flags(&self, message: &S, fds: &[BorrowedFd<'_>], flags: MsgFlags) -> io::Result<()> {
        assert!(fds.len() <= MAX_FDS, "a message carries at most MAX_FDS descriptors");
        let bytes = codec::encode(message).ok_or_else(|| io::Error::from(Errno::EMSGSIZE))?;
        let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let control = [ControlMessage::ScmRights(&raw)];
        let fd = self.fd.as_raw_fd();
        loop {
            let sent = if raw.is_empty() {
                // Workers may not call sendmsg(2), so that they cannot pass descriptors to other
                // processes.
                send(fd, &bytes, flags)
            } else {
                sendmsg::<()>(fd, &[IoSlice::new(&bytes)], &control, flags, None)
            };
            match sent {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Waits for a message.
    ///
    /// # Errors
    /// All of [`RecvError`] but `Empty`. A signal that interrupts the wait is `Io(EINTR)`.
    pub fn recv(&self) -> Result<Received<R>, RecvError> {
        self.recv_flags(MsgFlags::empty())
    }

    /// Takes a message if there is one.
    ///
    /// # Errors
    /// [`RecvError`].
    pub fn try_recv(&self) -> Result<Received<R>, RecvError> {
        self.recv_flags(MsgFlags::MSG_DONTWAIT)
    }

    fn recv_flags(&self, flags: MsgFlags) -> Result<Received<R>, RecvError> {
        PACKET.with_borrow_mut(|packet| self.recv_into(packet, flags))
    }

    fn recv_into(&self, packet: &mut Packet, flags: MsgFlags) -> Result<Received<R>, RecvError> {
        let Packet { bytes, control } = packet;
        if bytes.is_empty() {
            // Not resize: it would write zeroes to pages that are zero already.
            *bytes = vec![0; MAX_PACKET];
        }
        if control.is_empty() {
            *control = vec![0; inherit::CONTROL_WORDS];
        }
        let mut received = inherit::receive(self.fd.as_fd(), bytes, control, flags);
        if received.as_ref().err() == Some(&Errno::ECONNRESET) {
            // The other end was closed with unread messages: reported once, before the messages
            // that it has sent.
            received = inherit::receive(self.fd.as_fd(), bytes, control, flags);
        }
        let (length, flags, mut fds) = match received {
            Ok(received) => received,
            Err(Errno::EAGAIN) => return Err(RecvError::Empty),
            Err(Errno::ECONNRESET) => return Err(RecvError::Closed),
            Err(errno) => return Err(RecvError::Io(errno)),
        };
        if length == 0 {
            return Err(RecvError::Closed);
        }
        if flags.contains(MsgFlags::MSG_TRUNC) {
            return Err(RecvError::Violation("truncated packet"));
        }
        let lost = flags.contains(MsgFlags::MSG_CTRUNC);
        if lost {
            fds.clear();
        }
        if fds.len() > MAX_FDS {
            return Err(RecvError::Violation("too many descriptors"));
        }
        let message = codec::decode(&bytes[..length])
            .ok_or(RecvError::Violation("not a message of this channel"))?;
        Ok(Received { message, fds, lost })
    }
}

impl<S, R> AsFd for Channel<S, R> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    type Text = Channel<String, String>;

    #[test]
    fn descriptors_arrive_with_their_message_and_close_on_exec() {
        let (a, b) = Text::pair().unwrap();
        let (r, w) = nix::unistd::pipe().unwrap();
        a.send(&"two".to_owned(), &[r.as_fd(), w.as_fd()]).unwrap();
        let got = b.recv().unwrap();
        assert_eq!((got.message.as_str(), got.fds.len()), ("two", 2));
        let flags = nix::fcntl::fcntl(&got.fds[0], nix::fcntl::FcntlArg::F_GETFD).unwrap();
        assert_eq!(flags, nix::libc::FD_CLOEXEC);
    }

    #[test]
    fn surplus_descriptors_are_a_violation_and_do_not_stay_open() {
        let (a, b) = Text::pair().unwrap();
        // A file that no other test opens, so that they may run at the same time.
        let file = nix::sys::memfd::memfd_create("surplus", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)
            .unwrap();
        let count = || {
            std::fs::read_dir("/proc/self/fd")
                .unwrap()
                .filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok())
                .filter(|target| target.to_string_lossy().contains("memfd:surplus"))
                .count()
        };
        let before = count();
        assert_eq!(before, 1);
        let bytes = codec::encode(&"x".to_owned()).unwrap();
        let raw = [file.as_raw_fd(); 100];
        sendmsg::<()>(
            a.as_fd().as_raw_fd(),
            &[IoSlice::new(&bytes)],
            &[ControlMessage::ScmRights(&raw)],
            MsgFlags::empty(),
            None,
        )
        .unwrap();
        assert!(matches!(b.try_recv(), Err(RecvError::Violation(_))));
        assert_eq!(count(), before);
    }

    /// A process of its own, because the limit is the process's: this test, executed again.
    #[test]
    fn descriptors_for_which_there_is_no_room_are_lost_and_the_message_is_not() {
        const AGAIN: &str = "NBDKIT_TEST_NO_ROOM";
        if std::env::var_os(AGAIN).is_none() {
            let mut command = std::process::Command::new(std::env::current_exe().unwrap());
            let name = "channel::tests::descriptors_for_which_there_is_no_room_are_lost_and_the_message_is_not";
            let output = command.args(["--exact", name]).env(AGAIN, "1").output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
            return;
        }
        let (a, b) = Text::pair().unwrap();
        let [first, second] = [(); 2].map(|()| std::fs::File::open("/dev/null").unwrap());
        a.send(&"x".to_owned(), &[first.as_fd(), second.as_fd()]).unwrap();
        a.send(&"y".to_owned(), &[]).unwrap();
        a.send(&"z".to_owned(), &[first.as_fd()]).unwrap();
        use nix::sys::resource::{Resource, getrlimit, setrlimit};
        let (usual, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        // The lowest number that is free is the only one.
        let free = first.try_clone().unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, free.as_raw_fd() as u64 + 1, most).unwrap();
        drop(free);
        let received = b.recv().unwrap();
        assert_eq!((received.message.as_str(), received.fds.len(), received.lost), ("x", 0, true));
        let received = b.recv().unwrap();
        assert_eq!((received.message.as_str(), received.lost), ("y", false));
        // Those of the two that arrived were closed.
        let received = b.recv().unwrap();
        assert_eq!((received.message.as_str(), received.fds.len(), received.lost), ("z", 1, false));
        setrlimit(Resource::RLIMIT_NOFILE, usual, most).unwrap();
    }

    #[test]
    fn a_closed_end_and_an_empty_queue_differ() {
        let (a, b) = Text::pair().unwrap();
        assert!(matches!(b.try_recv(), Err(RecvError::Empty)));
        drop(a);
        // A child of another test has a copy of it until it executes its program.
        assert!(matches!(b.recv(), Err(RecvError::Closed)));
    }

    #[test]
    fn messages_before_a_close_with_unread_messages_arrive() {
        let (a, b) = Text::pair().unwrap();
        a.send(&"unread".to_owned(), &[]).unwrap();
        b.send(&"last".to_owned(), &[]).unwrap();
        b.send(&"words".to_owned(), &[]).unwrap();
        drop(b);
        assert_eq!(a.try_recv().unwrap().message, "last");
        assert_eq!(a.try_recv().unwrap().message, "words");
        assert!(matches!(a.recv(), Err(RecvError::Closed)));
    }

    #[test]
    fn the_longest_message_passes() {
        let (a, b) = Text::pair().unwrap();
        let long = "x".repeat(MAX_PACKET - 8);
        a.send(&long, &[]).unwrap();
        assert_eq!(b.recv().unwrap().message, long);
        assert_eq!(
            a.send(&"x".repeat(MAX_PACKET), &[]).unwrap_err().raw_os_error(),
            Some(nix::libc::EMSGSIZE)
        );
    }
}
