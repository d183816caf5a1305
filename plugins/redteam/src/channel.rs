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
    NUMBERS.filter(|number| is_packet_socket(*number)).collect()
}

/// A socket of packets does not listen and keeps packets apart; MSG_PEEK of nothing tells neither, SO_TYPE does.
fn is_packet_socket(number: RawFd) -> bool {
    let mut kind: libc::c_int = 0;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    let arguments = [
        number.into(),
        libc::SOL_SOCKET.into(),
        libc::SO_TYPE.into(),
        (&raw mut kind) as libc::c_long,
        (&raw mut length) as libc::c_long,
    ];
    raw::call(libc::SYS_getsockopt, &arguments).is_ok() && kind == libc::SOCK_SEQPACKET
}

pub(crate) fn channels() -> nix::Result<String> {
    Ok(format!("ok {}", packet_sockets().len()))
}

fn send(packet: &[u8], fds: &[RawFd]) -> nix::Result<()> {
    let channel = *packet_sockets().first().ok_or(Errno::ENOTSOCK)?;
    let rights = [ControlMessage::ScmRights(fds)];
    let control = if fds.is_empty() { &rights[..0] } else { &rights[..] };
    sendmsg::<()>(channel, &[IoSlice::new(packet)], control, MsgFlags::MSG_NOSIGNAL, None).map(drop)
}

/// Sends packets of bytes in hexadecimal, `HEX,HEX,...`, each with so many descriptors.
pub(crate) fn say(packets: &str, descriptors: usize) -> nix::Result<String> {
    let input = std::io::stdin().as_raw_fd();
    for packet in packets.split(',') {
        send(&bytes(packet)?, &vec![input; descriptors])?;
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
    send(&vec![0; length], &[]).map(|()| "ok".to_owned())
}

pub(crate) fn flood(count: usize) -> nix::Result<String> {
    for number in 0..count {
        nbdkit_api::error!("flood {number}");
    }
    Ok("ok".to_owned())
}
