//! The futex system call on shared words. futex(2).

#![expect(unsafe_code, reason = "the futex system call, and the half of a word that it works on")]

use std::sync::atomic::{AtomicU32, AtomicU64};
use std::time::Duration;

use nix::errno::Errno;

/// A futex in a shared word, which is used as nothing else: its low half on little-endian machines.
pub(super) fn in_word(word: &AtomicU64) -> &AtomicU32 {
    let word: *const AtomicU64 = word;
    // SAFETY: the 8 bytes are aligned and live as long as `word`. The callers use the word only by
    // this function, and any bit pattern is a valid atomic.
    unsafe { &*word.cast::<AtomicU32>() }
}

/// Waits while the futex is `value`, but no longer than `patience`, which is below a second.
///
/// # Errors
/// ETIMEDOUT, EAGAIN (it has another value), EINTR.
pub(super) fn wait(futex: &AtomicU32, value: u32, patience: Duration) -> Result<(), Errno> {
    let timeout = libc::timespec { tv_sec: 0, tv_nsec: i64::from(patience.subsec_nanos()) };
    // SAFETY: the word is mapped for as long as the reference lives, and is only read; the timeout
    // is a structure of ours.
    let result = unsafe {
        libc::syscall(libc::SYS_futex, futex.as_ptr(), libc::FUTEX_WAIT, value, &raw const timeout)
    };
    Errno::result(result).map(drop)
}

/// Wakes at most `count` of those who wait, in all processes.
pub(super) fn wake(futex: &AtomicU32, count: i32) {
    // SAFETY: the kernel uses the address alone, which the reference keeps mapped.
    unsafe { libc::syscall(libc::SYS_futex, futex.as_ptr(), libc::FUTEX_WAKE, count) };
}
