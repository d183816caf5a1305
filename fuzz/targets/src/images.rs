//! Decoders of images: the whole filter on a disk of any bytes.

use nbdkit_filters::fuzz::image;

/// The qcow2dec filter.
///
/// # Panics
/// If the filter does, or if it contradicts itself.
pub fn qcow2dec(data: &[u8]) {
    image("qcow2dec", data, &[]);
}

/// The xz filter.
///
/// # Panics
/// If the filter does, or if it contradicts itself.
pub fn xz(data: &[u8]) {
    image("xz", data, &[("xz-max-block", "1M"), ("xz-max-depth", "1")]);
}
