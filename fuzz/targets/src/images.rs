//! Decoders of images: the whole filter on a disk of any bytes.

use nbdkit_filters::fuzz::{self, image};

/// The bzip2 filter.
///
/// # Panics
/// If the filter does, or if it contradicts itself.
pub fn bzip2(data: &[u8]) {
    image("bzip2", data, &[]);
    image("bzip2", data, &[("bzip2-max-expand", "0")]);
}

/// The gzip filter.
///
/// # Panics
/// If the filter does, or if it contradicts itself.
pub fn gzip(data: &[u8]) {
    image("gzip", data, &[]);
    image("gzip", data, &[("gzip-max-expand", "0")]);
}

/// The indexed-gzip filter on a small image, whose index has any fields and body.
///
/// # Panics
/// If the filter does, or if it contradicts itself.
pub fn gzip_index(case: &[u8]) {
    fuzz::gzip_index(case);
}

/// The luks filter. The header's numbers of iterations are made small: they only take time.
///
/// # Panics
/// If the filter does, or if it contradicts itself.
pub fn luks(data: &[u8]) {
    let mut data = data.to_vec();
    // "LUKS1 On-Disk Format Specification", 2.1 and 2.2: of the key, and of each slot.
    for at in std::iter::once(164).chain((0..8).map(|slot| 208 + slot * 48 + 4)) {
        if let Some(iterations) = data.get_mut(at..at + 4) {
            iterations[..3].fill(0);
        }
    }
    image("luks", &data, &[("passphrase", "secret")]);
}

/// The luks filter on a LUKS2 disk with a header of any text.
///
/// # Panics
/// If the filter does, or if it contradicts itself.
pub fn luks2(text: &[u8]) {
    if let Some(disk) = fuzz::luks2(text) {
        image("luks", &disk, &[("passphrase", fuzz::PASSPHRASE)]);
    }
}

/// The lzip filter.
///
/// # Panics
/// If the filter does, or if it contradicts itself.
pub fn lzip(data: &[u8]) {
    image("lzip", data, &[("lzip-max-block", "1M"), ("lzip-max-depth", "1")]);
}

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

/// The zstd filter.
///
/// # Panics
/// If the filter does, or if it contradicts itself.
pub fn zstd(data: &[u8]) {
    image("zstd", data, &[("zstd-max-block", "1M"), ("zstd-max-depth", "1")]);
}
