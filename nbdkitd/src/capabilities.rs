//! What a listener that runs as root keeps once it serves: the right to signal processes of another user, which is how it
//! ends workers. Everything else was for start-up. capabilities(7).
//!
//! A template that is made anew is executed, and so gets what it needs from the bounding set, to drop it itself.

#![forbid(unsafe_code)]

use caps::errors::CapsError;
use caps::{CapSet, Capability, CapsHashSet};

/// The capabilities of a serving listener.
const KEPT: [Capability; 1] = [Capability::CAP_KILL];

/// Gives up all but [`KEPT`], and makes sure that they are gone. Does nothing for a process that has none.
///
/// # Errors
/// The system's, or that a capability could be had back; one line for the user.
pub(crate) fn keep_for_service() -> Result<(), String> {
    drop_others().map_err(|error| format!("capabilities: {error}"))?;
    if caps::raise(None, CapSet::Permitted, Capability::CAP_SYS_ADMIN).is_ok() {
        return Err("capabilities could be regained after dropping them".to_owned());
    }
    Ok(())
}

fn drop_others() -> Result<(), CapsError> {
    let held = caps::read(None, CapSet::Permitted)?;
    let kept: CapsHashSet = KEPT.into_iter().filter(|kept| held.contains(kept)).collect();
    // Ambient capabilities go with the inheritable ones.
    caps::clear(None, CapSet::Inheritable)?;
    caps::set(None, CapSet::Effective, &kept)?;
    caps::set(None, CapSet::Permitted, &kept)
}
