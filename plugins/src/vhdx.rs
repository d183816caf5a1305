//! nbdkit-vhdx-plugin(1): the disk in a VHDX image, which is only read. Nbdkitd's own.
//!
//! Source of all that is below: \[MS-VHDX\], "Virtual Hard Disk v2 (VHDX) File Format", version
//! 4.0; sections are its. Numbers are little-endian.

#![forbid(unsafe_code)]

#[cfg(any(test, feature = "fuzz"))]
mod example;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod fuzz;
mod header;
mod layout;
mod log;
mod replayed;

use nbdkit_api::paths::Declared;
use nbdkit_api::{Errno, Error, Result};

use crate::disk_image::source::{self, Part, Source, Tables};
use crate::disk_image::table::{self, Entry};
use crate::disk_image::{DiskImage, Format, Map, little_endian};
use layout::Layout;
use replayed::Replayed;

/// The plugin.
pub(crate) type Vhdx = DiskImage<Images>;

/// Bytes of what most things are aligned to.
const MIB: u64 = 1 << 20;
/// The sums of headers, region tables and entries of the log: CRC-32C.
const CRC: crc::Crc<u32, crc::Table<16>> = crc::Crc::<u32, crc::Table<16>>::new(&crc::CRC_32_ISCSI);

/// Images of Hyper-V.
#[derive(Debug, Default)]
pub(crate) struct Images;

impl Format for Images {
    const NAME: &'static str = "vhdx";
    const LONGNAME: &'static str = "nbdkit VHDX plugin";
    const HELP: &'static str = "[file=]<FILENAME>     (required) The VHDX image to serve.";
    // The log, and what it has for the image.
    const MEMORY: u64 = source::MEMORY + log::MOST * 2;
    type Map = Disk<Part>;

    fn open(image: Part, _: &[Declared]) -> Result<Disk<Part>> {
        Disk::of(image)
    }
}

/// The disk in an image.
pub(crate) struct Disk<S> {
    image: Tables<Replayed<S>>,
    layout: Layout,
}

impl<S: Source> Disk<S> {
    /// The disk in `image`.
    ///
    /// # Errors
    /// EINVAL: it is no VHDX image, or one that cannot be read. Those of the source.
    pub(crate) fn of(image: S) -> Result<Disk<S>> {
        let size = image.size()?;
        let image = match header::read(&image, size)? {
            Some(log) => log::replay(image, size, &log)?,
            None => Replayed::nothing(image, size, size),
        };
        let image = Tables::of(image)?;
        let layout = Layout::read(&image)?;
        Ok(Disk { image, layout })
    }
}

/// What an entry of the block allocation table says: 2.5.1.
fn entry(bits: u64) -> Entry {
    match (bits & 7, bits >> 20) {
        // Not present, undefined, zero, unmapped: 2.5.1.1. What has no parent reads as zeroes.
        (0..=3, _) => Entry::Zeroes,
        // Fully present. The first MiB has the headers.
        (6, number @ 1..) => Entry::At(number * MIB),
        _ => Entry::Bad,
    }
}

impl<S: Source> Map for Disk<S> {
    /// Bytes of the image.
    type Place = u64;

    fn size(&self) -> u64 {
        self.layout.size
    }

    fn find(&self, at: u64, count: u64) -> Result<(Option<u64>, u64)> {
        let layout = &self.layout;
        table::find((at, count), layout.block, self.image.size(), |first, entries| {
            let from = layout.entry(first);
            let last = layout.entry(first + entries.len() as u64 - 1);
            let mut bytes = vec![0; (last - from + 1) as usize * 8];
            self.image.read(&mut bytes, layout.table + from * 8)?;
            for (number, slot) in (first..).zip(entries) {
                let at = (layout.entry(number) - from) as usize * 8;
                *slot = entry(little_endian(&bytes, at, 8));
            }
            Ok(())
        })
    }

    fn read(&self, buf: &mut [u8], place: u64) -> Result<()> {
        self.image.source().read(buf, place)
    }
}

fn bad(why: impl std::fmt::Display) -> Error {
    Error::new(Errno::EINVAL, format!("bad VHDX image: {why}"))
}

/// The sum of a structure, whose field for the sum is its second: it counts as zero.
fn sum(structure: &[u8]) -> u32 {
    let mut digest = CRC.digest();
    digest.update(&structure[..4]);
    digest.update(&[0; 4]);
    digest.update(&structure[8..]);
    digest.finalize()
}

/// Whether a structure has this signature and the right sum.
fn is_sound(structure: &[u8], signature: &[u8; 4]) -> bool {
    structure.starts_with(signature) && little_endian(structure, 4, 4) == u64::from(sum(structure))
}

#[cfg(test)]
mod tests;
