//! Decoders of images: the whole filter on a disk of any bytes.

use nbdkit_filters::fuzz::image;

/// The gzip filter.
///
/// # Panics
/// If the filter does, or if it contradicts itself.
pub fn gzip(data: &[u8]) {
    image("gzip", data, &[]);
}

/// The xz filter.
///
/// # Panics
/// If the filter does, or if it contradicts itself.
pub fn xz(data: &[u8]) {
    image("xz", data, &[("xz-max-block", "1M"), ("xz-max-depth", "1")]);
}
