//! Dropping capabilities, with the check that they are gone and cannot be regained.
//! capabilities(7).

#![forbid(unsafe_code)]

use caps::CapSet;

use crate::{Error, Result};
pub use caps::{Capability, CapsHashSet};

/// Whether this thread has a capability in force.
///
/// # Errors
/// Those of capget(2).
pub fn has(capability: Capability) -> Result<bool> {
    caps::has_cap(None, CapSet::Effective, capability).map_err(failed)
}

/// Those of `capabilities` that this thread is permitted.
///
/// # Errors
/// Those of capget(2).
pub fn held(capabilities: impl IntoIterator<Item = Capability>) -> Result<CapsHashSet> {
    let held = caps::read(None, CapSet::Permitted).map_err(failed)?;
    Ok(capabilities.into_iter().filter(|capability| held.contains(capability)).collect())
}

/// Puts only these in force, as far as this thread has them. The others stay permitted: they can be
/// raised again, and limit what executed programs get where there are no new privileges. execve(2).
///
/// # Errors
/// Those of capset(2).
pub fn lower_effective(kept: impl IntoIterator<Item = Capability>) -> Result<()> {
    caps::set(None, CapSet::Effective, &held(kept)?).map_err(failed)
}

/// Drops all inheritable capabilities; the ambient ones go with them.
///
/// # Errors
/// Those of capset(2).
pub fn clear_inheritable() -> Result<()> {
    caps::clear(None, CapSet::Inheritable).map_err(failed)
}

/// Drops all capabilities but these for good, as far as this thread has them. Returns those that it
/// keeps.
///
/// # Errors
/// Those of capset(2); one is left, or could be regained.
pub fn keep(kept: impl IntoIterator<Item = Capability>) -> Result<CapsHashSet> {
    let kept = held(kept)?;
    clear_inheritable()?;
    caps::set(None, CapSet::Effective, &kept).map_err(failed)?;
    caps::set(None, CapSet::Permitted, &kept).map_err(failed)?;
    let none = CapsHashSet::new();
    for (set, kept) in
        [(CapSet::Permitted, &kept), (CapSet::Effective, &kept), (CapSet::Inheritable, &none)]
    {
        check(&left(set)?, kept)?;
    }
    // The kernel keeps none ambient that is not inheritable. To read the set takes two calls for
    // each capability; to clear it takes one. Before Linux 4.3 there is none.
    let _ = caps::clear(None, CapSet::Ambient);
    // One that every kernel has: raising another that this kernel does not know would succeed.
    let any = Capability::CAP_SYS_ADMIN;
    if !kept.contains(&any) && caps::raise(None, CapSet::Permitted, any).is_ok() {
        return Err(Error::new("capabilities could be regained after dropping them"));
    }
    Ok(kept)
}

/// Drops all capabilities but these from the bounding set: what is executed as root gets no others.
/// Does nothing where this thread may not do that (CAP_SETPCAP).
///
/// # Errors
/// Those of prctl(2); one is left.
pub fn limit_bounding_set(kept: &CapsHashSet) -> Result<()> {
    if !has(Capability::CAP_SETPCAP)? {
        return Ok(());
    }
    for capability in left(CapSet::Bounding)?.difference(kept) {
        caps::drop(None, CapSet::Bounding, *capability).map_err(failed)?;
    }
    check(&left(CapSet::Bounding)?, kept)
}

/// What a set has. For the ambient and the bounding set that is a system call for each capability,
/// or two.
fn left(set: CapSet) -> Result<CapsHashSet> {
    caps::read(None, set).map_err(failed)
}

/// Checks that a set has none but these.
fn check(left: &CapsHashSet, kept: &CapsHashSet) -> Result<()> {
    if left.is_subset(kept) {
        return Ok(());
    }
    Err(Error::new(format!("capabilities could not be dropped: {left:?}")))
}

fn failed(cause: caps::errors::CapsError) -> Error {
    Error::of("capabilities")(cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Capabilities belong to a thread, here one of the test's own.
    #[test]
    fn what_is_dropped_is_gone_and_what_is_kept_stays() {
        std::thread::spawn(|| {
            let wanted = [Capability::CAP_KILL];
            let expected = held(wanted).unwrap();
            lower_effective([]).unwrap();
            assert!(!has(Capability::CAP_KILL).unwrap());
            assert_eq!(keep(wanted).unwrap(), expected);
            assert_eq!(has(Capability::CAP_KILL), Ok(!expected.is_empty()));
            assert_eq!(held(caps::all()).unwrap(), expected);
            // Without CAP_SETPCAP the bounding set stays.
            let bounding = || caps::read(None, CapSet::Bounding).unwrap();
            let before = bounding();
            limit_bounding_set(&CapsHashSet::new()).unwrap();
            assert_eq!(bounding(), before);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn none_stays_ambient_not_even_one_that_is_kept() {
        std::thread::spawn(|| {
            let kept = Capability::CAP_CHOWN;
            if !has(kept).unwrap() {
                return;
            }
            caps::raise(None, CapSet::Inheritable, kept).unwrap();
            caps::raise(None, CapSet::Ambient, kept).unwrap();
            assert!(left(CapSet::Ambient).unwrap().contains(&kept));
            assert_eq!(keep([kept]), Ok([kept].into()));
            assert_eq!(left(CapSet::Ambient), Ok(CapsHashSet::new()));
        })
        .join()
        .unwrap();
    }

    #[test]
    fn the_bounding_set_is_limited_to_what_is_kept() {
        std::thread::spawn(|| {
            if !has(Capability::CAP_SETPCAP).unwrap() {
                return;
            }
            let kept = CapsHashSet::from([Capability::CAP_CHOWN]);
            limit_bounding_set(&kept).unwrap();
            assert!(caps::read(None, CapSet::Bounding).unwrap().is_subset(&kept));
        })
        .join()
        .unwrap();
    }
}
