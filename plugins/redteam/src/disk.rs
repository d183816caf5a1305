//! Attacks on files: on the disk that the stack has declared, which this worker has a descriptor
//! of, and on the broker that opens it.

#![forbid(unsafe_code)]

use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use nbdkit_api::paths::Opened;
use nix::cmsg_space;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::libc;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, Shutdown, SockaddrIn, recvmsg, sendto};
use nix::sys::stat::Mode;

use crate::channel::{self, send};
use crate::raw;

fn ok() -> String {
    "ok".to_owned()
}

fn number(disk: Option<&Opened>) -> nix::Result<RawFd> {
    disk.map(|disk| disk.file.as_raw_fd()).ok_or(Errno::EBADF)
}

/// Writes to the descriptor of the disk.
pub(crate) fn write(disk: Option<&Opened>) -> nix::Result<String> {
    let file = disk.ok_or(Errno::EBADF)?;
    nix::sys::uio::pwrite(&*file.file, b"x", 0).map(|_| ok())
}

/// Truncates the disk by its descriptor.
pub(crate) fn truncate(disk: Option<&Opened>) -> nix::Result<String> {
    raw::call(libc::SYS_ftruncate, &[number(disk)?.into(), 0]).map(|_| ok())
}

/// Opens the disk for writing by its descriptor.
pub(crate) fn reopen(disk: Option<&Opened>) -> nix::Result<String> {
    open_as(&format!("/proc/self/fd/{}", number(disk)?), OFlag::O_RDWR)
}

/// Has whoever is given the description next write at its end only.
pub(crate) fn append(disk: Option<&Opened>) -> nix::Result<String> {
    let append = libc::c_long::from(libc::O_APPEND);
    raw::call(libc::SYS_fcntl, &[number(disk)?.into(), libc::F_SETFL.into(), append]).map(|_| ok())
}

/// How many descriptors of regular files this process has.
pub(crate) fn descriptors() -> nix::Result<String> {
    let is_file = |number: &RawFd| {
        let mut stat = [0_u64; 32];
        let arguments = [(*number).into(), stat.as_mut_ptr() as libc::c_long];
        // st_mode: the type, S_IFREG. stat(2)
        raw::call(libc::SYS_fstat, &arguments).is_ok()
            && stat[3] as u32 & libc::S_IFMT == libc::S_IFREG
    };
    Ok(format!("ok {}", (3..256).filter(is_file).count()))
}

pub(crate) fn open_as(path: &str, flags: OFlag) -> nix::Result<String> {
    open(path, flags | OFlag::O_CLOEXEC, Mode::from_bits_truncate(0o600)).map(|_| ok())
}

pub(crate) fn truncate_path(path: &str) -> nix::Result<String> {
    let path = std::ffi::CString::new(path).map_err(|_| Errno::EINVAL)?;
    raw::call(libc::SYS_truncate, &[path.as_ptr() as libc::c_long, 0]).map(|_| ok())
}

/// A channel to the broker, from the listener.
fn broker() -> nix::Result<OwnedFd> {
    /// `Broker`, of stack 0.
    const WANTED: [u8; 8] = [5, 0, 0, 0, 0, 0, 0, 0];
    let control = *channel::packet_sockets().first().ok_or(Errno::ENOTSOCK)?;
    // An answer would end this client.
    raw::call(libc::SYS_fcntl, &[control.into(), libc::F_SETFL.into(), 0])?;
    send(control, &WANTED, &[])?;
    let (_, fds) = receive(control)?;
    fds.into_iter().next().ok_or(Errno::ENOENT)
}

/// Sends the descriptor of the disk to this worker's client, with a byte that is none of the
/// protocol.
pub(crate) fn pass(disk: Option<&Opened>) -> nix::Result<String> {
    let client = *channel::sockets_of_type(libc::SOCK_STREAM).first().ok_or(Errno::ENOTSOCK)?;
    send(client, b"x", &[number(disk)?]).map(|()| ok())
}

fn receive(socket: RawFd) -> nix::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut bytes = [0; 64];
    let mut control = cmsg_space!([RawFd; 4]);
    let mut place = [IoSliceMut::new(&mut bytes)];
    let got = recvmsg::<()>(socket, &mut place, Some(&mut control), MsgFlags::empty())?;
    let fds = got
        .cmsgs()?
        .filter_map(|message| match message {
            ControlMessageOwned::ScmRights(numbers) => Some(numbers),
            _ => None,
        })
        .flatten()
        .map(raw::own)
        .collect();
    let length = got.bytes;
    Ok((bytes[..length].to_vec(), fds))
}

/// Says packets of bytes in hexadecimal, `HEX,HEX,...`, to the broker, the last with so many
/// descriptors: what it answers, in hexadecimal, and with how many.
pub(crate) fn say_to_broker(packets: &str, descriptors: usize) -> nix::Result<String> {
    let broker = broker()?;
    let mut answers = Vec::new();
    for packet in packets.split(',') {
        let input = std::io::stdin().as_raw_fd();
        send(broker.as_raw_fd(), &channel::bytes(packet)?, &vec![input; descriptors])?;
        let (answer, fds) = receive(broker.as_raw_fd())?;
        if answer.is_empty() {
            answers.push("closed".to_owned());
            break;
        }
        let hexadecimal: String = answer.iter().map(|byte| format!("{byte:02x}")).collect();
        answers.push(format!("{hexadecimal}+{}", fds.len()));
    }
    Ok(format!("ok {}", answers.join(",")))
}

/// What may be done with what the broker opens for the answer to `packet`: written, truncated.
pub(crate) fn use_answer(packet: &str) -> nix::Result<String> {
    let broker = broker()?;
    send(broker.as_raw_fd(), &channel::bytes(packet)?, &[])?;
    let (_, fds) = receive(broker.as_raw_fd())?;
    let fd = fds.first().ok_or(Errno::ENOENT)?;
    let written = nix::sys::uio::pwrite(fd, b"x", 0).map_or_else(|errno| errno as i32, |_| 0);
    let truncated = raw::call(libc::SYS_ftruncate, &[fd.as_raw_fd().into(), 0]);
    let truncated = truncated.map_or_else(|errno| errno as i32, |_| 0);
    Ok(format!("ok {written} {truncated}"))
}

/// Asks the broker for what is not declared, so many times.
pub(crate) fn flood_broker(count: usize) -> nix::Result<String> {
    let broker = broker()?;
    let nothing = [[0; 4], [0xff; 4], [0; 4], [0; 4]].concat();
    for _ in 0..count {
        // The name's absence is one byte.
        send(broker.as_raw_fd(), &nothing[..13], &[])?;
        receive(broker.as_raw_fd())?;
    }
    Ok(ok())
}

/// Connect to the first endpoint.
const CONNECT: [u8; 12] = [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// Has the broker connect to the first endpoint, so many times.
pub(crate) fn flood_connect(count: usize) -> nix::Result<String> {
    let broker = broker()?;
    for _ in 0..count {
        send(broker.as_raw_fd(), &CONNECT, &[])?;
        receive(broker.as_raw_fd())?;
    }
    Ok(ok())
}

/// Takes the socket that the broker begins to connect to the first endpoint, where nobody answers,
/// and sends it to another port of this machine.
pub(crate) fn fast_open(port: u16) -> nix::Result<String> {
    let broker = broker()?;
    send(broker.as_raw_fd(), &CONNECT, &[])?;
    let (_, fds) = receive(broker.as_raw_fd())?;
    let fd = fds.first().ok_or(Errno::ENOENT)?.as_raw_fd();
    // Not connected, and not any more about to be.
    let _ = nix::sys::socket::shutdown(fd, Shutdown::Both);
    let address = SockaddrIn::new(127, 0, 0, 1, port);
    let flags = MsgFlags::from_bits_retain(libc::MSG_FASTOPEN);
    match sendto(fd, b"elsewhere", &address, flags) {
        // The socket does not block: the connection is on its way.
        Ok(_) | Err(Errno::EINPROGRESS) => Ok(ok()),
        Err(errno) => Err(errno),
    }
}
