//! mlock(2) for a mapping that several processes share.

#![expect(unsafe_code, reason = "mlock takes an address")]

use std::ptr::NonNull;

use nbdkit_api::Errno;
use nbdkit_api::shared::SharedWords;

/// Locks the pages of `words` into memory until they are unmapped.
pub(super) fn lock(words: &SharedWords) -> Result<(), Errno> {
    let start = NonNull::from(&words[..]).cast();
    // SAFETY: the range is that of a live mapping, which the reference proves; mlock changes
    // neither its contents nor what may be done with it.
    unsafe { nix::sys::mman::mlock(start, size_of_val(&words[..])) }
}
