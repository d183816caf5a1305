//! Images for the fuzz target, and small ones to begin with.

use super::format::{Disk, FOOTER, FOOTER_SUM, HEADER, HEADER_SUM, number, seal};
use crate::disk_image::walk;

/// Bytes of a block of the examples, of which their disk has three.
pub(super) const BLOCK: usize = 512;

/// Any bytes are an image or an error, and what is found is in it: as they are, and with sums that
/// are right.
pub(crate) fn run(image: &[u8]) {
    let mut sealed = image.to_vec();
    seal_all(&mut sealed);
    for image in [image, &sealed] {
        if let Ok(disk) = Disk::of(image) {
            walk(&disk, false);
        }
    }
}

fn seal_all(image: &mut [u8]) {
    let Some(end) = image.len().checked_sub(FOOTER) else { return };
    for at in [0, end] {
        let footer = &mut image[at..at + FOOTER];
        let header = usize::try_from(number(footer, 16, 8)).unwrap_or(usize::MAX);
        seal(footer, FOOTER_SUM);
        let header = image.get_mut(header..).and_then(|rest| rest.get_mut(..HEADER));
        if let Some(header) = header {
            seal(header, HEADER_SUM);
        }
    }
}

/// A small image: of three blocks, the second of which it has, or fixed.
pub(crate) fn example(dynamic: bool) -> Vec<u8> {
    let mut footer = [0; FOOTER];
    footer[..8].copy_from_slice(b"conectix");
    footer[16..24].copy_from_slice(&(if dynamic { 512 } else { u64::MAX }).to_be_bytes());
    footer[28..32].copy_from_slice(b"test");
    footer[48..56].copy_from_slice(&(3 * BLOCK as u64).to_be_bytes());
    footer[60..64].copy_from_slice(&(if dynamic { 3_u32 } else { 2 }).to_be_bytes());
    seal(&mut footer, FOOTER_SUM);
    if !dynamic {
        return [&[7; 3 * BLOCK][..], &footer].concat();
    }
    let mut header = [0; HEADER];
    header[..8].copy_from_slice(b"cxsparse");
    header[16..24].copy_from_slice(&1536_u64.to_be_bytes());
    header[28..32].copy_from_slice(&3_u32.to_be_bytes());
    header[32..36].copy_from_slice(&(BLOCK as u32).to_be_bytes());
    seal(&mut header, HEADER_SUM);
    let mut table = [0xff; 512];
    // Behind the table.
    table[4..8].copy_from_slice(&4_u32.to_be_bytes());
    // The fuzzer cuts off what is longer than 4 KiB.
    [&footer[..], &header, &table, &[0xff; 512], &[7; BLOCK], &footer].concat()
}
