//! Images for the fuzz target, which are megabytes of zeroes with some bytes here and there: a case
//! is those bytes, and the sums of what they make are right.

use super::example::{self, put, seal};
use super::header::{HEADER, HEADERS};
use super::layout::{REGIONS, TABLE};
use super::replayed::SECTOR;
use super::{Disk, MIB};
use crate::disk_image::walk;

/// Most MiB of an image.
const MOST: usize = 6;
/// Offsets in a case are in these.
const UNIT: usize = 8;
/// A case that has this bit in its first byte leaves the sums alone.
const UNSEALED: u8 = 1 << 7;

/// Any case is an image or an error, and what is found is in it.
pub(crate) fn run(case: &[u8]) {
    let image = expand(case);
    if let Ok(disk) = Disk::of(&image[..]) {
        walk(&disk, false);
    }
}

/// The image of a case: its MiB, and then offset, length and bytes of what is not zero.
fn expand(case: &[u8]) -> Vec<u8> {
    let (&first, mut rest) = case.split_first().unwrap_or((&0, &[]));
    let mut image = vec![0; (usize::from(first & !UNSEALED) % (MOST + 1)) * MIB as usize];
    while let [a, b, c, length, after @ ..] = rest {
        let at = u32::from_le_bytes([*a, *b, *c, 0]) as usize * UNIT;
        let (bytes, after) = after.split_at(after.len().min((*length).into()));
        if at + bytes.len() <= image.len() {
            put(&mut image, at, bytes);
        }
        rest = after;
    }
    if first & UNSEALED == 0 {
        seal_all(&mut image);
    }
    image
}

fn seal_all(image: &mut [u8]) {
    let tables = REGIONS.map(|at| (at, TABLE));
    for (at, length) in HEADERS.map(|at| (at, HEADER)).into_iter().chain(tables) {
        let at = at as usize;
        if at + length <= image.len() {
            seal(image, at, length);
        }
    }
    // Where logs usually are.
    for at in (MIB as usize..image.len().min(2 * MIB as usize)).step_by(SECTOR) {
        if image[at..].starts_with(b"loge") {
            let length = u32::from_le_bytes(std::array::from_fn(|n| image[at + 8 + n])) as usize;
            if (SECTOR..=64 * SECTOR).contains(&length) && at + length <= image.len() {
                seal(image, at, length);
            }
        }
    }
}

/// The case of an image.
fn case(image: &[u8]) -> Vec<u8> {
    let mut case = vec![(image.len() / MIB as usize) as u8];
    let is_zero = |unit: &&[u8]| unit.iter().all(|byte| *byte == 0);
    let mut units = (0_u32..).zip(image.chunks(UNIT)).peekable();
    while let Some((number, unit)) = units.next() {
        if is_zero(&unit) {
            continue;
        }
        let mut bytes = unit.to_vec();
        while bytes.len() + UNIT <= usize::from(u8::MAX)
            && let Some((_, more)) = units.next_if(|(_, unit)| !is_zero(unit))
        {
            bytes.extend(more);
        }
        case.extend(&number.to_le_bytes()[..3]);
        case.push(bytes.len() as u8);
        case.extend(bytes);
    }
    case
}

/// Cases of good images: without a log, and with one.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    [example::image(), example::crashed()].map(|image| case(&image)).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seeds_are_the_images_that_they_were_made_of() {
        for (seed, image) in seeds().into_iter().zip([example::image(), example::crashed()]) {
            assert!(seed.len() < 1000, "{} bytes", seed.len());
            assert!(expand(&seed) == image);
            assert!(Disk::of(&image[..]).is_ok());
            run(&seed);
        }
    }
}
