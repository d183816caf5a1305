//! The accesses to shared words and what they order, by name.

#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering};

/// A word that orders nothing.
#[inline]
pub(super) fn peek(word: &AtomicU64) -> u64 {
    word.load(Ordering::Relaxed)
}

/// A word, and with it all that its writer has written before it.
#[inline]
pub(super) fn load(word: &AtomicU64) -> u64 {
    word.load(Ordering::Acquire)
}

/// Stores a word, and with it publishes what was written before it.
#[inline]
pub(super) fn store(word: &AtomicU64, value: u64) {
    word.store(value, Ordering::Release);
}

/// Stores a word that a later [`store`] publishes.
#[inline]
pub(super) fn put(word: &AtomicU64, value: u64) {
    word.store(value, Ordering::Relaxed);
}

/// Sets bits of a word that orders nothing.
#[inline]
pub(super) fn mark(word: &AtomicU64, bits: u64) {
    word.fetch_or(bits, Ordering::Relaxed);
}

/// Stores `to` if the word is `from`.
///
/// # Errors
/// What the word was.
#[inline]
pub(super) fn exchange(word: &AtomicU64, from: u64, to: u64) -> Result<(), u64> {
    word.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).map(drop)
}
