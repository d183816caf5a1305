//! nbdkit-bzip2-filter(1): serves what a bzip2 file decompresses to, from a temporary file.

use std::io::{self, BufRead, Write};

use bzip2::bufread::BzDecoder;
use nbdkit_api::{Filter, Needs, Open, OpenLayer, Result, Slot, ThreadModel};

use crate::compressed::expansion::{self, Expansions, Format};

/// The filter: once ready, the expanded images.
#[derive(Debug, Default)]
pub struct Bzip2 {
    expansions: Option<Expansions>,
}

impl Filter for Bzip2 {
    fn name(&self) -> &str {
        "bzip2"
    }

    fn longname(&self) -> Option<&str> {
        Some("nbdkit bzip2 filter")
    }

    fn get_ready(&mut self, _: ThreadModel) -> Result<()> {
        self.expansions = Some(Expansions::new()?);
        Ok(())
    }

    fn needs(&self, below: Needs) -> Needs {
        below.read_only()
    }

    fn open(&self, below: &mut Slot<'_>, open: &Open<'_>) -> Result<Box<dyn OpenLayer>> {
        Expansions::open::<Streams>(self.expansions.as_ref(), below, open)
    }
}

/// A file is streams one after the other, as pbzip2(1) makes them.
struct Streams;

const MAGIC: [u8; 3] = *b"BZh";

impl Format for Streams {
    const NAME: &'static str = "bzip2";

    fn expand(image: &mut dyn BufRead, disk: &mut dyn Write) -> io::Result<()> {
        // The decoder checks the sums of the blocks and of the stream.
        expansion::members("bzip2", &MAGIC, image, |stream| {
            expansion::copy(&mut BzDecoder::new(stream), disk)
        })
    }
}

#[cfg(test)]
mod tests;
