//! nbdkit-vhd-plugin(1): the disk in a VHD image, which is only read. Nbdkitd's own.

#![forbid(unsafe_code)]

mod format;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod fuzz;

use nbdkit_api::Result;
use nbdkit_api::paths::Declared;

use crate::disk_image::source::{self, Part};
use crate::disk_image::{DiskImage, Format};
use format::Disk;

/// The plugin.
pub(crate) type Vhd = DiskImage<Images>;

/// Images that qemu-img(1) calls vpc.
#[derive(Debug, Default)]
pub(crate) struct Images;

impl Format for Images {
    const NAME: &'static str = "vhd";
    const LONGNAME: &'static str = "nbdkit VHD plugin";
    const HELP: &'static str = "[file=]<FILENAME>     (required) The VHD image to serve.";
    const MEMORY: u64 = source::MEMORY;
    type Map = Disk<Part>;

    fn open(image: Part, _: &[Declared]) -> Result<Disk<Part>> {
        Disk::of(image)
    }
}

#[cfg(test)]
mod tests;
