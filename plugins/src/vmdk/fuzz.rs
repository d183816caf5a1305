//! Images for the fuzz target: a sparse extent with a descriptor, or a descriptor and, after a
//! zero, the bytes of whatever file it names.

use super::Disk;
use super::example::{self, Kind};
use crate::disk_image::{Map, walk};

/// Any case is an image or an error, and what is found is in it.
pub(crate) fn run(case: &[u8]) {
    let is_one = [&b"KDMV"[..], b"COWD"].iter().any(|magic| case.starts_with(magic));
    let end = case.iter().position(|byte| *byte == 0).filter(|_| !is_one);
    let (image, part) = case.split_at(end.unwrap_or(case.len()));
    let part = part.get(1..).unwrap_or_default();
    let Ok(disk) = Disk::of(&image, |_| Ok(part)) else { return };
    if disk.check().is_ok() {
        // A compressed grain may be damaged.
        walk(&disk, disk.is_compressed());
    }
}

/// Cases of good images of each kind.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let kind = Kind { grain: 1, ..Kind::default() };
    let split = |extents: &str, part: Vec<u8>| [example::descriptor(extents), part].join(&0);
    let mut cowd = example::cowd(kind);
    // Of its table only the beginning is needed.
    cowd.drain(6 * 512..37 * 512);
    cowd[5 * 512 + 4] = 6;
    vec![
        example::sparse(Kind { is_whole: true, ..kind }),
        example::sparse(Kind { is_whole: true, is_stream: true, ..kind }),
        split("RW 1 FLAT \"a\" 1\nRW 1 ZERO\nRW 1 VMFS \"b\"", vec![7; 1024]),
        split("RW 3 SPARSE \"a\"\nRW 2 SPARSE \"b\"", example::sparse(kind)),
        split("RW 3 VMFSSPARSE \"a\"", cowd),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seeds_are_images() {
        for seed in seeds() {
            // More the fuzzer would cut off.
            assert!(seed.len() <= 4096, "{} bytes", seed.len());
            let (image, part) = match seed.iter().position(|byte| *byte == 0) {
                Some(end) if seed.starts_with(b"#") => (&seed[..end], &seed[end + 1..]),
                _ => (&seed[..], &[][..]),
            };
            let disk = Disk::of(&image, |_| Ok(part)).unwrap();
            disk.check().unwrap();
            run(&seed);
        }
    }
}
