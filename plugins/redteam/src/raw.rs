//! System calls as they are, and wild pointers: what a taken-over process can do.

#![expect(unsafe_code, reason = "the point of it")]

use nix::errno::Errno;
use nix::libc;

/// A system call with numbers for arguments.
///
/// # Errors
/// The kernel's.
pub(crate) fn call(number: libc::c_long, arguments: &[libc::c_long]) -> nix::Result<i64> {
    let [a, b, c, d, e, f] = std::array::from_fn(|n| arguments.get(n).copied().unwrap_or(0));
    // SAFETY: not upheld for all numbers. This is hostile code, in a process of its own.
    Errno::result(unsafe { libc::syscall(number, a, b, c, d, e, f) })
}

/// Owns a descriptor that recvmsg(2) has just installed.
pub(crate) fn own(number: std::os::fd::RawFd) -> std::os::fd::OwnedFd {
    // SAFETY: the only caller has it out of an SCM_RIGHTS message, once.
    unsafe { std::os::fd::FromRawFd::from_raw_fd(number) }
}

/// `NUMBER,ARGUMENT,...`
pub(crate) fn by_numbers(text: &str) -> nix::Result<String> {
    let numbers: Vec<libc::c_long> = text.split(',').map(|n| n.parse().unwrap_or(-1)).collect();
    let (number, arguments) = numbers.split_first().ok_or(Errno::EINVAL)?;
    call(*number, arguments).map(|result| format!("ok {result}"))
}

/// Writes where nothing is.
pub(crate) fn fault() -> nix::Result<String> {
    let nowhere = std::hint::black_box(16) as *mut u8;
    // SAFETY: not upheld: the process is meant to end here.
    unsafe { nowhere.write_volatile(1) };
    Ok("ok".to_owned())
}

/// Fills memory of this process.
///
/// Nothing in this process may rely on what was there.
pub(crate) fn fill(start: usize, length: usize, byte: impl Fn(usize) -> u8) {
    for index in 0..length {
        // SAFETY: the caller has found a writable mapping there; whatever relies on its content is
        // the victim.
        unsafe { ((start + index) as *mut u8).write_volatile(byte(index)) };
    }
}

/// fork(2) by its own number, so that nothing of the C library runs. The child ends at once.
pub(crate) fn fork() -> nix::Result<i64> {
    let pid = call(libc::SYS_clone, &[libc::c_long::from(libc::SIGCHLD)])?;
    if pid == 0 {
        // SAFETY: ends the process.
        unsafe { libc::_exit(0) };
    }
    Ok(pid)
}
