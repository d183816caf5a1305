//! nbdkit-bzip2-filter(1): serves what a bzip2 file decompresses to, from a temporary file, or, if
//! it is too large for one, from its blocks.

mod streams;

use std::cell::Cell;
use std::io::{self, BufRead, BufReader};

use nbdkit_api::Result;

use crate::compressed::blocks::{Block, Image};
use crate::compressed::expansion::{self, Format};
use crate::compressed::points::{Disk, Start};
use crate::compressed::reader;
use crate::compressed::sink::{Counted, Indexed, Taken};

const NAME: &str = "bzip2";
/// Bytes behind a block in which the magic number is that ends it.
const NEXT_MAGIC: u64 = 8;

/// A file is streams one after the other, as pbzip2(1) makes them.
pub(crate) struct Streams;

impl Format for Streams {
    const NAME: &'static str = NAME;
    const LONGNAME: &'static str = "nbdkit bzip2 filter";
    const MAX_EXPAND: Option<&'static str> = Some("bzip2-max-expand");
    /// Blocks of the usual 900,000 bytes are points.
    const SPAN: u64 = 512 << 10;
    /// Less than [`SPAN`](Self::SPAN), and a block.
    const MAX_SPAN: u64 = streams::MAX_BLOCK;
    const DEPTH: usize = 8;
    /// Each as it is kept, and one block as it comes from the decoder.
    const MEMORY: u64 = 2 * 8 * streams::MAX_BLOCK;

    fn expand(image: &mut dyn BufRead, disk: &mut Disk<'_>) -> io::Result<u64> {
        let count = Cell::new(0);
        let mut image = Counted { inner: image, count: &count };
        let mut end = 0;
        expansion::members(NAME, &streams::MAGIC, &mut image, |stream| {
            streams::stream(stream, &mut Indexed { disk, count: &count })?;
            end = count.get();
            Ok(())
        })?;
        Ok(end)
    }

    fn decode(image: &Image<'_>, block: &Block, _: &[u8]) -> Result<Vec<u8>> {
        let (start, sum) = Start::of(block);
        let end = block.offset.saturating_add(block.length).saturating_add(NEXT_MAGIC);
        let part = image.stream(block.offset, end.min(image.next.size()?));
        let mut part = BufReader::with_capacity(reader::CHUNK, part);
        let mut taken = Taken::new(NAME, block.size)?;
        streams::from_point(&mut part, start, &mut taken)
            .map_err(|error| reader::decoder_error(NAME, error))?;
        taken.finish(NAME, sum)
    }
}

#[cfg(test)]
mod tests;
