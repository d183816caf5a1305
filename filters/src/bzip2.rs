//! nbdkit-bzip2-filter(1): serves what a bzip2 file decompresses to, from a temporary file.

use std::io::{self, BufRead};

use bzip2::bufread::BzDecoder;

use crate::compressed::expansion::{self, Format};
use crate::compressed::points::Disk;

/// A file is streams one after the other, as pbzip2(1) makes them.
pub(crate) struct Streams;

const MAGIC: [u8; 3] = *b"BZh";

impl Format for Streams {
    const NAME: &'static str = "bzip2";
    const LONGNAME: &'static str = "nbdkit bzip2 filter";

    fn expand(image: &mut dyn BufRead, disk: &mut Disk<'_>) -> io::Result<u64> {
        // The decoder checks the sums of the blocks and of the stream.
        expansion::members("bzip2", &MAGIC, image, |stream| {
            expansion::copy(&mut BzDecoder::new(stream), disk)
        })?;
        Ok(0)
    }
}

#[cfg(test)]
mod tests;
