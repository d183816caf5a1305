//! Descriptors that come from other processes: with a message, and left open across exec. The
//! unsafe steps of fd passing.

#![expect(unsafe_code, reason = "descriptor numbers from argv and from recvmsg become OwnedFds")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::libc;
use nix::sys::socket::{MsgFlags, SockType, getsockopt, sockopt};

/// Most descriptors that the kernel lets one message carry: SCM_MAX_FD of net/scm.h.
const SCM_MAX_FD: usize = 253;
/// Room for so many in a control message with its header, in words.
pub(crate) const CONTROL_WORDS: usize = 2 + SCM_MAX_FD.div_ceil(2);

/// recvmsg(2), where nix does not hand out the descriptors of a message that has lost others
/// (MSG_CTRUNC), so that they would stay open. All that arrive are owned, and close-on-exec.
/// Returns the length of the packet, the flags, the descriptors.
///
/// # Errors
/// Those of recvmsg(2).
pub(crate) fn receive(
    fd: BorrowedFd<'_>,
    bytes: &mut [u8],
    control: &mut [u64],
    flags: MsgFlags,
) -> nix::Result<(usize, MsgFlags, Vec<OwnedFd>)> {
    let mut buffer = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: msghdr is numbers and pointers, for which all bytes zero are valid values.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut buffer;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = size_of_val(control);
    let flags = flags | MsgFlags::MSG_CMSG_CLOEXEC;
    // SAFETY: the header has the addresses and lengths of `bytes` and `control`, which are borrowed
    // mutably until the function returns.
    let length = unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut header, flags.bits()) };
    let length = Errno::result(length)?;
    let mut fds = Vec::new();
    // SAFETY: the kernel has filled the control buffer, which is aligned for its headers (u64), and
    // has set its length; the CMSG macros stay within that. The numbers in an SCM_RIGHTS message
    // are descriptors that the kernel has made for this process, each once, and nothing else owns
    // them.
    unsafe {
        let mut message = libc::CMSG_FIRSTHDR(&raw const header);
        while let Some(found) = message.as_ref() {
            if found.cmsg_level == libc::SOL_SOCKET && found.cmsg_type == libc::SCM_RIGHTS {
                let data = libc::CMSG_DATA(message).cast::<RawFd>();
                let payload = found.cmsg_len - libc::CMSG_LEN(0) as usize;
                for index in 0..payload / size_of::<RawFd>() {
                    fds.push(OwnedFd::from_raw_fd(data.add(index).read_unaligned()));
                }
            }
            message = libc::CMSG_NXTHDR(&raw const header, message);
        }
    }
    Ok((length.cast_unsigned(), MsgFlags::from_bits_truncate(header.msg_flags), fds))
}

/// Owns descriptor `number`, which the parent process passed by leaving it open. Makes it
/// close-on-exec.
///
/// Must be called once, first thing in `main`, before anything else opens descriptors.
///
/// # Errors
/// EBADF if it is not open, EPROTOTYPE if it is not a SOCK_SEQPACKET socket.
pub fn inherited(number: i32) -> io::Result<OwnedFd> {
    if number <= 2 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: borrowed for this one call, which fails with EBADF if the number is no open
    // descriptor. /proc may not be mounted.
    fcntl(unsafe { BorrowedFd::borrow_raw(number) }, FcntlArg::F_GETFD)?;
    // SAFETY: the descriptor is open (checked above), and nothing in this process owns it: it is
    // above the standard descriptors and, by this function's contract, which each `main` upholds,
    // nothing was opened before.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    if getsockopt(&fd, sockopt::SockType)? != SockType::SeqPacket {
        return Err(io::Error::from_raw_os_error(libc::EPROTOTYPE));
    }
    fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    Ok(fd)
}
