//! Debug flags of builds with the feature `red-team`. `-D nbdkit.skip=SUM` leaves out layers, to
//! show which layer stops an attack. `-D nbdkit.lacks=SUM` emulates a kernel without filters (8) or
//! Landlock (4), `-D nbdkit.landlock=VERSION` one with an older Landlock. In all other builds only
//! `--sandbox` leaves out layers.

#![forbid(unsafe_code)]

/// The layers, by the number that leaves them out.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Layer {
    /// Namespaces.
    Namespaces = 1,
    /// Dropping capabilities.
    Capabilities = 2,
    /// Landlock.
    Paths = 4,
    /// The seccomp filters.
    Calls = 8,
    /// Limits, no_new_privs, and not being dumpable.
    Limits = 16,
}

/// Whether a layer is left out.
#[cfg(feature = "red-team")]
pub(crate) fn skips(layer: Layer) -> bool {
    nbdkit_api::log::flag("nbdkit", "skip") & layer as i32 != 0
}

/// Whether a layer is left out: never.
#[cfg(not(feature = "red-team"))]
pub(crate) const fn skips(_: Layer) -> bool {
    false
}

/// Whether this kernel has filters.
pub(crate) fn has_filters() -> bool {
    !lacks(Layer::Calls) && nbdkit_sandbox::seccomp::are_supported()
}

/// Which version of Landlock this kernel has; 0: none.
pub(crate) fn landlock() -> u32 {
    let version = nbdkit_sandbox::landlock::version();
    if lacks(Layer::Paths) { 0 } else { version.min(landlock_at_most()) }
}

#[cfg(feature = "red-team")]
fn lacks(layer: Layer) -> bool {
    nbdkit_api::log::flag("nbdkit", "lacks") & layer as i32 != 0
}

#[cfg(not(feature = "red-team"))]
const fn lacks(_: Layer) -> bool {
    false
}

#[cfg(feature = "red-team")]
fn landlock_at_most() -> u32 {
    let version = u32::try_from(nbdkit_api::log::flag("nbdkit", "landlock")).unwrap_or(0);
    if version == 0 { u32::MAX } else { version }
}

#[cfg(not(feature = "red-team"))]
const fn landlock_at_most() -> u32 {
    u32::MAX
}
