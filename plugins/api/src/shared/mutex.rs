//! A few shared words under a mutex that survives the death of its holder.
//!
//! A priority-inheritance futex (futex(2), FUTEX_LOCK_PI) and not a pthread robust mutex: glibc keeps list
//! pointers inside a robust mutex and follows them on unlock, so a worker that its client has taken
//! over could write anywhere in the others through it. Here shared memory holds one 32-bit thread id;
//! the worst that a hostile holder can do is not to let go.

#![expect(unsafe_code, reason = "the futex system call")]

use std::cell::Cell;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use nix::errno::Errno;

use crate::error::Result;
use crate::shared::SharedWords;

/// `N` words that one thread of one process at a time sees and changes.
#[derive(Debug)]
pub struct SharedMutex<const N: usize> {
    /// Word 0 is the futex (its low half on little-endian machines), the rest is the data.
    words: SharedWords,
}

impl<const N: usize> SharedMutex<N> {
    /// A mutex with these words, shared with every process forked from now on.
    ///
    /// # Errors
    /// ENOMEM.
    pub fn new(words: [u64; N]) -> Result<SharedMutex<N>> {
        let map = SharedWords::new(N + 1)?;
        for (shared, word) in map[1..].iter().zip(words) {
            shared.store(word, Ordering::Relaxed);
        }
        Ok(SharedMutex { words: map })
    }

    fn futex(&self) -> &AtomicU32 {
        let word: *const AtomicU64 = &self.words[0];
        // SAFETY: the 8 bytes of word 0 are only ever used as this one aligned 32-bit atomic.
        unsafe { &*word.cast::<AtomicU32>() }
    }

    /// Waits until no other thread holds the mutex. The words are written back when
    /// the result is dropped.
    pub fn lock(&self) -> Locked<'_, N> {
        let recovered = acquire(self.futex());
        let mut values = [0; N];
        for (value, word) in values.iter_mut().zip(&self.words[1..]) {
            *value = word.load(Ordering::Relaxed);
        }
        Locked { mutex: self, values, recovered }
    }
}

/// The words of a locked [`SharedMutex`], as an array.
#[derive(Debug)]
pub struct Locked<'a, const N: usize> {
    mutex: &'a SharedMutex<N>,
    values: [u64; N],
    recovered: bool,
}

impl<const N: usize> Locked<'_, N> {
    /// True if the last holder died: its changes were not written back, so the words are as
    /// they were before it took the mutex, but what it did elsewhere may be half done.
    pub fn recovered(&self) -> bool {
        self.recovered
    }
}

impl<const N: usize> Deref for Locked<'_, N> {
    type Target = [u64; N];

    fn deref(&self) -> &[u64; N] {
        &self.values
    }
}

impl<const N: usize> DerefMut for Locked<'_, N> {
    fn deref_mut(&mut self) -> &mut [u64; N] {
        &mut self.values
    }
}

impl<const N: usize> Drop for Locked<'_, N> {
    fn drop(&mut self) {
        for (word, value) in self.mutex.words[1..].iter().zip(self.values) {
            word.store(value, Ordering::Relaxed);
        }
        release(self.mutex.futex());
    }
}

thread_local! {
    /// This thread's id and the process it was asked in: a fork changes both.
    static THREAD: Cell<(u32, u32)> = const { Cell::new((0, 0)) };
}

/// The kernel's id of this thread, which is what a PI futex holds.
fn thread_id() -> u32 {
    let process = std::process::id();
    let (known_in, id) = THREAD.get();
    if known_in == process {
        return id;
    }
    let id = nix::unistd::gettid().as_raw() as u32;
    THREAD.set((process, id));
    id
}

/// Takes the futex; true if its holder died.
fn acquire(futex: &AtomicU32) -> bool {
    let me = thread_id();
    if futex.compare_exchange(0, me, Ordering::Acquire, Ordering::Relaxed).is_ok() {
        return false;
    }
    loop {
        let seen = futex.load(Ordering::Relaxed);
        match futex_call(futex, libc::FUTEX_LOCK_PI) {
            Ok(()) => {
                // The kernel says so if the holder died while we waited.
                let died = futex.fetch_and(!libc::FUTEX_OWNER_DIED, Ordering::Acquire)
                    & libc::FUTEX_OWNER_DIED;
                return died != 0;
            }
            // The kernel knows no such thread (any more), or none that could hold a lock of ours; or this very thread
            // holds it, which can only be an earlier thread of the same number since guards are not held across calls
            // of `lock`. That was said about the number that stood there before; another holder's is not taken over.
            Err(Errno::ESRCH | Errno::EDEADLK | Errno::EPERM) => {
                let mine = me | (seen & libc::FUTEX_WAITERS);
                if seen & libc::FUTEX_TID_MASK != 0
                    && futex
                        .compare_exchange(seen, mine, Ordering::Acquire, Ordering::Relaxed)
                        .is_ok()
                {
                    return true;
                }
            }
            // A signal, or the holder is just exiting.
            Err(_) => std::thread::yield_now(),
        }
    }
}

fn release(futex: &AtomicU32) {
    let me = thread_id();
    if futex.compare_exchange(me, 0, Ordering::Release, Ordering::Relaxed).is_err()
        && futex_call(futex, libc::FUTEX_UNLOCK_PI).is_err()
    {
        // Not ours according to the word, so somebody wrote over it; let the others go on.
        futex.store(0, Ordering::Release);
    }
}

fn futex_call(futex: &AtomicU32, operation: libc::c_int) -> std::result::Result<(), Errno> {
    // SAFETY: the word is mapped for as long as the reference lives; both operations read and write only
    // that word, take no timeout (null) and ignore the other arguments.
    let result = unsafe {
        libc::syscall(
            libc::SYS_futex,
            futex.as_ptr(),
            operation,
            0,
            std::ptr::null::<libc::timespec>(),
            0,
            0,
        )
    };
    Errno::result(result).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn increments_from_many_threads_are_not_lost() {
        let mutex = Arc::new(SharedMutex::new([0, 5]).unwrap());
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let mutex = Arc::clone(&mutex);
                std::thread::spawn(move || {
                    for _ in 0..10_000 {
                        mutex.lock()[0] += 1;
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(*mutex.lock(), [40_000, 5]);
    }

    #[test]
    fn the_death_of_the_holder_is_noticed() {
        let mutex = Arc::new(SharedMutex::new([1]).unwrap());
        let other = Arc::clone(&mutex);
        std::thread::spawn(move || {
            let mut locked = other.lock();
            locked[0] = 2;
            std::mem::forget(locked);
        })
        .join()
        .unwrap();
        let locked = mutex.lock();
        assert!(locked.recovered());
        assert_eq!(*locked, [1]);
        drop(locked);
        assert!(!mutex.lock().recovered());
    }
}
