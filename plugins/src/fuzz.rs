//! What the fuzz targets need of the plugins: the data format without files and scripts, what
//! scripts print without running any, and what an upstream server sends without a socket.

#![forbid(unsafe_code)]

use std::process::ExitStatus;

use nbdkit_api::{Exports, Extents};

pub use crate::data::fuzz::image;
pub use crate::nbd::fuzz as nbd;
use crate::sh::{status, text};
use crate::{floppy, vhd, vhdx, vmdk};

/// Reads what a script printed as the answer of every method that has a syntax, and its messages
/// when it failed.
pub fn script(code: ExitStatus, stdout: &[u8], stderr: &[u8]) {
    let _ = status::judge("x", code, stderr, None);
    let _ = text::size(stdout).inspect(|size| assert!(i64::try_from(*size).is_ok(), "{size}"));
    let _ = text::block_size(stdout).map(|sizes| sizes.check());
    let _ = (text::fua(stdout), text::cache(stdout), text::thread_model(stdout));
    let mut exports = Exports::new();
    let _ = text::exports(stdout, &mut exports);
    // Those of a disk in the middle of nowhere.
    let (start, end) = (1 << 20, 1 << 40);
    let mut extents = Extents::new(start, end);
    let _ = text::extents(stdout, &mut extents);
    let mut at = start;
    for extent in extents.iter() {
        assert!(extent.offset == at && extent.length > 0, "extents are contiguous: {extents:?}");
        at = extent.end();
    }
    assert!(at == extents.covered_to() && at <= end, "extents are those asked for: {extents:?}");
}

/// Any names are refused, or can be told apart and read on a FAT file system.
///
/// # Panics
/// If not.
pub fn fat_names(names: &[u8]) {
    floppy::fuzz::run(names);
}

/// Any bytes are a VHD image, or an error, and what is found is in it.
///
/// # Panics
/// If not.
pub fn vhd(image: &[u8]) {
    vhd::fuzz::run(image);
}

/// Small VHD images of both kinds.
pub fn vhd_seeds() -> Vec<Vec<u8>> {
    [false, true].map(vhd::fuzz::example).into()
}

/// Any case is a VHDX image, or an error, and what is found is in it.
///
/// # Panics
/// If not.
pub fn vhdx(case: &[u8]) {
    vhdx::fuzz::run(case);
}

/// Cases of small VHDX images: without a log, and with one.
pub fn vhdx_seeds() -> Vec<Vec<u8>> {
    vhdx::fuzz::seeds()
}

/// Any case is a VMDK image, or an error, and what is found is in it.
///
/// # Panics
/// If not.
pub fn vmdk(case: &[u8]) {
    vmdk::fuzz::run(case);
}

/// Cases of small VMDK images of each kind.
pub fn vmdk_seeds() -> Vec<Vec<u8>> {
    vmdk::fuzz::seeds()
}
