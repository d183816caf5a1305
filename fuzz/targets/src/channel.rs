//! The control channel: messages as bytes, and the listener that hears whatever template and
//! workers say.

use std::fmt::Debug;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use nbdkit_ipc::{
    Channel, FromBroker, FromBrokerLink, FromTemplate, FromWatcher, FromWorker, MAX_FDS,
    MAX_PACKET, RecvError, ToBroker, ToBrokerLink, ToTemplate, ToWorker,
};
use nbdkitd::fuzz::Listener;
use nix::sys::socket::{ControlMessage, MsgFlags, recvmsg, sendmsg};

use crate::input::Input;

/// More descriptors than a message may carry, and some.
pub(crate) const MOST_FDS: usize = MAX_FDS + 2;
/// Packets of one session.
pub(crate) const MAX_PACKETS: usize = 64;

/// Sends a packet as it is, with so many descriptors. Whether it was taken.
pub(crate) fn send(to: BorrowedFd<'_>, packet: &[u8], fds: usize) -> bool {
    // Of a channel whose other end is closed: the message may be one that carries a channel.
    let carried = (fds > 0).then(|| Channel::<(), ()>::pair().expect("descriptors").0);
    let number = carried.as_ref().map_or(-1, |it| it.as_fd().as_raw_fd());
    let raw: [RawFd; MOST_FDS] = [number; MOST_FDS];
    let control = [ControlMessage::ScmRights(&raw[..fds.min(MOST_FDS)])];
    let control = if fds == 0 { &control[..0] } else { &control[..] };
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    sendmsg::<()>(to.as_raw_fd(), &[IoSlice::new(packet)], control, flags, None).is_ok()
}

/// A message of any direction: the first byte chooses which, the second how many descriptors come
/// with it, the rest is the packet. What decodes must encode to the same bytes.
///
/// # Panics
/// If it is not.
pub fn messages(data: &[u8]) {
    let mut input = Input(data);
    let (kind, fds) = (input.u8(), usize::from(input.u8()) % (MOST_FDS + 1));
    let packet = &input.0[..input.0.len().min(MAX_PACKET)];
    match kind % 9 {
        0 => round_trip(Channel::<FromTemplate, FromTemplate>::pair(), packet, fds),
        1 => round_trip(Channel::<FromWorker, FromWorker>::pair(), packet, fds),
        2 => round_trip(Channel::<ToTemplate, ToTemplate>::pair(), packet, fds),
        3 => round_trip(Channel::<ToWorker, ToWorker>::pair(), packet, fds),
        4 => round_trip(Channel::<ToBroker, ToBroker>::pair(), packet, fds),
        5 => round_trip(Channel::<FromBroker, FromBroker>::pair(), packet, fds),
        6 => round_trip(Channel::<ToBrokerLink, ToBrokerLink>::pair(), packet, fds),
        7 => round_trip(Channel::<FromBrokerLink, FromBrokerLink>::pair(), packet, fds),
        _ => round_trip(Channel::<FromWatcher, FromWatcher>::pair(), packet, fds),
    }
}

macro_rules! round_trip {
    ($($message:ty: $one_form:literal),*) => { $(
        impl RoundTrip for $message {
            const ONE_FORM: bool = $one_form;

            fn receive(end: &Channel<Self, Self>) -> Result<(Self, usize), RecvError> {
                end.try_recv().map(|received| (received.message, received.fds.len()))
            }

            fn say(&self, end: &Channel<Self, Self>) {
                end.try_send(self, &[]).expect("what was understood can be said");
            }
        }
    )* };
}

/// A message that can be received and sent.
trait RoundTrip: Sized + Debug + PartialEq {
    /// Whether no two packets are the same message.
    const ONE_FORM: bool;

    fn receive(end: &Channel<Self, Self>) -> Result<(Self, usize), RecvError>;
    fn say(&self, end: &Channel<Self, Self>);
}

// A duration, in a message of the listener, may have a second's worth of nanoseconds and more.
round_trip!(FromTemplate: true, FromWorker: true, ToTemplate: false, ToWorker: true);
round_trip!(ToBroker: true, FromBroker: true, ToBrokerLink: true, FromBrokerLink: true);
round_trip!(FromWatcher: true);

type Pair<T> = std::io::Result<(Channel<T, T>, Channel<T, T>)>;

fn round_trip<T: RoundTrip>(pair: Pair<T>, packet: &[u8], fds: usize) {
    let (theirs, ours) = pair.expect("descriptors");
    if !send(theirs.as_fd(), packet, fds) {
        return;
    }
    let Ok((message, received)) = T::receive(&ours) else { return };
    assert_eq!(received, fds);
    assert!(fds <= MAX_FDS);
    message.say(&ours);
    if !T::ONE_FORM {
        let (said, _) = T::receive(&theirs).expect("what was said can be understood");
        return assert_eq!(said, message);
    }
    let mut bytes = vec![0; packet.len() + 1];
    let raw = theirs.as_fd().as_raw_fd();
    let mut place = [IoSliceMut::new(&mut bytes)];
    let said = recvmsg::<()>(raw, &mut place, None, MsgFlags::MSG_DONTWAIT);
    let length = said.expect("it was said").bytes;
    assert!(bytes[..length] == *packet, "{message:?} has two forms");
}

/// The listener, which serves, with two clients: who speaks, with how many descriptors, and a
/// packet; again and again.
///
/// # Panics
/// If the listener does, or if its tables contradict each other.
pub fn listener(data: &[u8]) {
    let mut input = Input(data);
    let shared = input.u8() & 1 != 0;
    let mut listener = Listener::new(2, shared).expect("descriptors");
    for _ in 0..MAX_PACKETS {
        if input.is_empty() {
            break;
        }
        let who = input.u8();
        let fds = usize::from(who >> 4) % (MOST_FDS + 1);
        match who & 15 {
            15 => {
                listener.template_ends();
                listener.turn();
                return;
            }
            // Which of this build: no input can have its number.
            14 => listener.template_says_hello(),
            who @ (1 | 2) => {
                let packet = input.sized();
                if let Some(worker) = listener.worker(usize::from(who - 1)) {
                    send(worker, packet, fds);
                }
            }
            _ => {
                let packet = input.sized();
                send(listener.template(), packet, fds);
            }
        }
        listener.turn();
    }
}
