//! nbdkit-gzip-filter(1): serves what a gzip file decompresses to, from a temporary file, or, if it
//! is too large for one, from points in the middle of the file.

mod members;

use std::cell::Cell;
use std::io::{self, BufRead, BufReader};

use nbdkit_api::Result;

use self::members::MAGIC;
use crate::compressed::blocks::{Block, Image};
use crate::compressed::expansion::{self, Format};
use crate::compressed::points::{Disk, Start};
use crate::compressed::reader;
use crate::compressed::sink::{Counted, Indexed, Taken};

const NAME: &str = "gzip";

/// RFC 1952, 2.2: a file is members one after the other.
pub(crate) struct Members;

impl Format for Members {
    const NAME: &'static str = NAME;
    const LONGNAME: &'static str = "nbdkit gzip filter";
    const MAX_EXPAND: Option<&'static str> = Some("gzip-max-expand");

    fn expand(image: &mut dyn BufRead, disk: &mut Disk<'_>) -> io::Result<u64> {
        expand(NAME, image, disk)
    }

    fn decode(image: &Image<'_>, block: &Block, window: &[u8]) -> Result<Vec<u8>> {
        decode(NAME, image, block, window)
    }
}

/// [`Format::expand`] of the filter `name`.
pub(crate) fn expand(name: &str, image: &mut dyn BufRead, disk: &mut Disk<'_>) -> io::Result<u64> {
    let count = Cell::new(0);
    let mut image = Counted { inner: image, count: &count };
    let mut end = 0;
    expansion::members(name, &MAGIC, &mut image, |member| {
        if disk.is_due() {
            // Where its magic begins, which has been read.
            let at = count.get() - MAGIC.len() as u64;
            disk.point(at, Start::Member, &[]).map_err(io::Error::other)?;
        }
        members::member(member, &mut Indexed { disk, count: &count })?;
        end = count.get();
        Ok(())
    })?;
    Ok(end)
}

/// [`Format::decode`] of the filter `name`.
pub(crate) fn decode(
    name: &str,
    image: &Image<'_>,
    block: &Block,
    window: &[u8],
) -> Result<Vec<u8>> {
    let (start, sum) = Start::of(block);
    let part = image.stream(block.offset, block.offset + block.length);
    let mut part = BufReader::with_capacity(reader::CHUNK, part);
    let mut taken = Taken::new(name, block.size)?;
    members::from_point(&mut part, start, window, &mut taken)
        .map_err(|error| reader::decoder_error(name, error))?;
    taken.finish(name, sum)
}

#[cfg(test)]
pub(crate) mod tests;
