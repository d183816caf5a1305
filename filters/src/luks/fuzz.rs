//! LUKS2 metadata of any bytes, for the fuzz targets.

use super::header::{Header, Kdf};
use super::{example2, metadata};

/// What a fuzz target waits for: passes times KiB, and iterations.
const MOST_WORK: u32 = 64;
const MOST_ITERATIONS: u32 = 100;

/// Opens the disk of [`text`].
pub const PASSPHRASE: &str = example2::PASSPHRASE;

/// A disk with this text in its header, unless deriving its key would take long.
///
/// # Panics
/// If decoding does.
pub fn luks2(text: &[u8]) -> Option<Vec<u8>> {
    let mut image = example2::body(&[7; 10_000]);
    let copy = example2::copy(text, 1, 0);
    image[..copy.len()].copy_from_slice(&copy);
    let end = text.iter().position(|byte| *byte == 0).unwrap_or(text.len());
    let header = metadata::decode(&text[..end], copy.len() as u64, image.len() as u64);
    header.as_ref().map_or(true, is_quick).then_some(image)
}

/// The text of a disk that [`PASSPHRASE`] opens.
pub fn text() -> String {
    example2::text()
}

fn is_quick(header: &Header) -> bool {
    header.master.digest.iterations <= MOST_ITERATIONS
        && header.slots.iter().all(|slot| match slot.kdf {
            Kdf::Pbkdf2 { iterations, .. } => iterations <= MOST_ITERATIONS,
            Kdf::Argon2 { passes, memory, .. } => passes.saturating_mul(memory) <= MOST_WORK,
        })
}
