//! nbdkit-gzip-filter(1): serves what a gzip file decompresses to, from a temporary file.

use std::io::{self, BufRead, Write};

use flate2::bufread::GzDecoder;

use crate::compressed::expansion::{self, Format};

/// RFC 1952, 2.2: a file is members one after the other.
pub(crate) struct Members;

/// RFC 1952, 2.3.1.
const MAGIC: [u8; 2] = [0x1f, 0x8b];

impl Format for Members {
    const NAME: &'static str = "gzip";
    const LONGNAME: &'static str = "nbdkit gzip filter";

    fn expand(image: &mut dyn BufRead, disk: &mut dyn Write) -> io::Result<()> {
        // The decoder checks the sum and the size of the member.
        expansion::members("gzip", &MAGIC, image, |member| {
            expansion::copy(&mut GzDecoder::new(member), disk)
        })
    }
}

#[cfg(test)]
mod tests;
