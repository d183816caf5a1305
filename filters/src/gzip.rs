//! nbdkit-gzip-filter(1): serves what a gzip file decompresses to, from a temporary file.

use std::io::{self, BufRead, Write};

use flate2::bufread::GzDecoder;
use nbdkit_api::{Filter, Needs, Open, OpenLayer, Result, Slot, ThreadModel};

use crate::compressed::expansion::{self, Expansions, Format};

/// The filter: once ready, the expanded images.
#[derive(Debug, Default)]
pub struct Gzip {
    expansions: Option<Expansions>,
}

impl Filter for Gzip {
    fn name(&self) -> &str {
        "gzip"
    }

    fn longname(&self) -> Option<&str> {
        Some("nbdkit gzip filter")
    }

    fn get_ready(&mut self, _: ThreadModel) -> Result<()> {
        self.expansions = Some(Expansions::new()?);
        Ok(())
    }

    fn needs(&self, below: Needs) -> Needs {
        below.read_only()
    }

    fn open(&self, below: &mut Slot<'_>, open: &Open<'_>) -> Result<Box<dyn OpenLayer>> {
        Expansions::open::<Members>(self.expansions.as_ref(), below, open)
    }
}

/// RFC 1952, 2.2: a file is members one after the other.
struct Members;

/// RFC 1952, 2.3.1.
const MAGIC: [u8; 2] = [0x1f, 0x8b];

impl Format for Members {
    const NAME: &'static str = "gzip";

    fn expand(image: &mut dyn BufRead, disk: &mut dyn Write) -> io::Result<()> {
        // The decoder checks the sum and the size of the member.
        expansion::members("gzip", &MAGIC, image, |member| {
            expansion::copy(&mut GzDecoder::new(member), disk)
        })
    }
}

#[cfg(test)]
mod tests;
