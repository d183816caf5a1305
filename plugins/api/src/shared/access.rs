//! Each access to a shared word, in one place: tests kill a process before and after every one of
//! them (`deaths`).

#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering};

/// The point between two accesses to shared memory at which a test may kill this process.
#[inline]
pub(super) fn step() {
    #[cfg(test)]
    super::deaths::step();
}

/// A word that orders nothing.
#[inline]
pub(super) fn peek(word: &AtomicU64) -> u64 {
    step();
    word.load(Ordering::Relaxed)
}

/// A word, and with it all that its writer has written before it.
#[inline]
pub(super) fn load(word: &AtomicU64) -> u64 {
    step();
    word.load(Ordering::Acquire)
}

/// Stores a word, and with it publishes what was written before it.
#[inline]
pub(super) fn store(word: &AtomicU64, value: u64) {
    step();
    word.store(value, Ordering::Release);
    step();
}

/// Stores a word that a later [`store`] publishes.
#[inline]
pub(super) fn put(word: &AtomicU64, value: u64) {
    step();
    word.store(value, Ordering::Relaxed);
    step();
}

/// Sets bits of a word that orders nothing.
#[inline]
pub(super) fn mark(word: &AtomicU64, bits: u64) {
    step();
    word.fetch_or(bits, Ordering::Relaxed);
    step();
}

/// Stores `to` if the word is `from`.
///
/// # Errors
/// What the word was.
#[inline]
pub(super) fn exchange(word: &AtomicU64, from: u64, to: u64) -> Result<(), u64> {
    step();
    let result = word.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire);
    step();
    result.map(drop)
}
