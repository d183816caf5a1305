//! nbdkit-gzip-filter(1): serves what a gzip file decompresses to, from a temporary file.

use std::io::{self, BufRead, Read, Write};

use flate2::bufread::GzDecoder;
use nbdkit_api::{Filter, Needs, Open, OpenLayer, Result, Slot, ThreadModel, error};

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
        let mut is_first = true;
        loop {
            let mut magic = Vec::new();
            image.take(MAGIC.len() as u64).read_to_end(&mut magic)?;
            if magic != MAGIC {
                if is_first {
                    return Err(io::Error::other("not a gzip file"));
                }
                return warn_of_garbage(&mut magic.chain(image));
            }
            // The decoder checks the sum and the size of the member.
            expansion::copy(&mut GzDecoder::new(magic.chain(&mut *image)), disk)?;
            is_first = false;
        }
    }
}

/// Behind the last member there may be anything, and it is ignored, as by gzip(1); zeroes are what
/// tapes and block devices end with.
fn warn_of_garbage(end: &mut dyn BufRead) -> io::Result<()> {
    loop {
        let bytes = end.fill_buf()?;
        if bytes.iter().any(|byte| *byte != 0) {
            // Seen without -v.
            error!("gzip: what follows the last member is no gzip file, and is ignored");
            return Ok(());
        }
        match bytes.len() {
            0 => return Ok(()),
            count => end.consume(count),
        }
    }
}

#[cfg(test)]
mod tests;
