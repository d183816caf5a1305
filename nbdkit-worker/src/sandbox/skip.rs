//! Leaving out one layer, to show what it is that stops an attack: `-D nbdkit.skip=SUM` of a build with the feature
//! `red-team`. In all other builds no layer can be left out but by `--sandbox`.

#![forbid(unsafe_code)]

/// The layers, by the number that leaves them out.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Layer {
    /// Namespaces.
    Namespaces = 1,
    /// Giving up capabilities.
    Capabilities = 2,
    /// Landlock.
    Paths = 4,
    /// The seccomp filters.
    Calls = 8,
    /// Limits, and not being dumpable.
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
