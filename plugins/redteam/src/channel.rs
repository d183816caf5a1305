//! Attacks on the listener: this worker's end of the control channel in hostile hands.

#![forbid(unsafe_code)]

use std::io::IoSlice;
use std::os::fd::{AsRawFd, RawFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use crate::raw;

/// More descriptors than a process has.
const NUMBERS: std::ops::Range<RawFd> = 3..256;

/// Every socket of packets that this process has: its control channel, and no other.
pub(crate) fn packet_sockets() -> Vec<RawFd> {
    sockets_of_type(libc::SOCK_SEQPACKET)
}

/// Every socket of this type.
pub(crate) fn sockets_of_type(wanted: libc::c_int) -> Vec<RawFd> {
    NUMBERS.filter(|number| socket_type(*number) == Some(wanted)).collect()
}

/// SO_TYPE; `None` for what is no socket.
fn socket_type(number: RawFd) -> Option<libc::c_int> {
    let mut kind: libc::c_int = 0;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    let arguments = [
        number.into(),
        libc::SOL_SOCKET.into(),
        libc::SO_TYPE.into(),
        (&raw mut kind) as libc::c_long,
        (&raw mut length) as libc::c_long,
    ];
    raw::call(libc::SYS_getsockopt, &arguments).ok().map(|_| kind)
}

pub(crate) fn channels() -> nix::Result<String> {
    Ok(format!("ok {}", packet_sockets().len()))
}

/// Sends a packet, by sendmsg only if there are descriptors.
pub(crate) fn send(socket: RawFd, packet: &[u8], fds: &[RawFd]) -> nix::Result<()> {
    let flags = MsgFlags::MSG_NOSIGNAL;
    if fds.is_empty() {
        return nix::sys::socket::send(socket, packet, flags).map(drop);
    }
    let rights = [ControlMessage::ScmRights(fds)];
    sendmsg::<()>(socket, &[IoSlice::new(packet)], &rights, flags, None).map(drop)
}

fn send_to_listener(packet: &[u8], fds: &[RawFd]) -> nix::Result<()> {
    let channel = *packet_sockets().first().ok_or(Errno::ENOTSOCK)?;
    send(channel, packet, fds)
}

/// Sends packets of bytes in hexadecimal, `HEX,HEX,...`, each with so many descriptors.
pub(crate) fn say(packets: &str, descriptors: usize) -> nix::Result<String> {
    let input = std::io::stdin().as_raw_fd();
    for packet in packets.split(',') {
        send_to_listener(&bytes(packet)?, &vec![input; descriptors])?;
    }
    Ok("ok".to_owned())
}

/// What stands in hexadecimal.
pub(crate) fn bytes(packet: &str) -> nix::Result<Vec<u8>> {
    let pairs = packet.as_bytes().chunks(2);
    let bytes: Option<Vec<u8>> =
        pairs.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect();
    bytes.ok_or(Errno::EINVAL)
}

pub(crate) fn say_zeroes(length: usize) -> nix::Result<String> {
    send_to_listener(&vec![0; length], &[]).map(|()| "ok".to_owned())
}

pub(crate) fn flood(count: usize) -> nix::Result<String> {
    for number in 0..count {
        nbdkit_api::error!("flood {number}");
    }
    Ok("ok".to_owned())
}
