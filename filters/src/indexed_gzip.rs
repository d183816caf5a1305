//! nbdkit-indexed-gzip-filter(1): serves what a gzip file decompresses to from points in the middle
//! of the file, whose index is in a file, so that the next start need not decompress.

use std::io::{self, BufRead};
use std::path::PathBuf;
use std::sync::Arc;

use nbdkit_api::{
    Error, Filter, Needs, NextConfig, Open, OpenLayer, Result, Slot, ThreadModel, Value,
};

use crate::compressed::blocks::{Block, Image};
use crate::compressed::corrupt;
use crate::compressed::expansion::{Expansion, Format, Plan};
use crate::compressed::index_file::IndexFile;
use crate::compressed::points::{Bounds, Disk, SPAN};
use crate::gzip;

const NAME: &str = "indexed-gzip";
/// Less takes an index as large as the disk.
const LEAST_SPAN: u64 = 64 << 10;
/// With a block of deflate behind it that makes as much, this is what a client keeps at most.
const MOST_SPAN: u64 = 8 << 20;

/// The filter: its parameters and, once ready, the index.
#[derive(Debug)]
pub struct IndexedGzip {
    path: Option<PathBuf>,
    span: u64,
    /// What the index is in memory, and the file that it comes from or goes to.
    ready: Option<(Arc<Expansion>, Arc<IndexFile>)>,
}

impl Default for IndexedGzip {
    fn default() -> IndexedGzip {
        IndexedGzip { path: None, span: SPAN, ready: None }
    }
}

impl Filter for IndexedGzip {
    fn name(&self) -> &str {
        NAME
    }

    fn longname(&self) -> Option<&str> {
        Some("nbdkit indexed gzip filter")
    }

    fn config_help(&self) -> Option<&str> {
        Some(
            "gzip-index-path=<PATH>  (required) The file of the index, which is made if need be.\n\
             gzip-index-span=<SIZE>  (optional) Bytes from one point of the index to the next \
             (default: 1M).",
        )
    }

    fn config(&mut self, next: NextConfig<'_>, key: &str, value: Value<'_>) -> Result<()> {
        match key {
            "gzip-index-path" => self.path = Some(value.absolute_path()?),
            "gzip-index-span" => {
                self.span = value.size()?;
                if !(LEAST_SPAN..=MOST_SPAN).contains(&self.span) {
                    return Err(Error::msg("gzip-index-span must be between 64K and 8M"));
                }
            }
            _ => return next.config(key, value),
        }
        Ok(())
    }

    fn config_complete(&mut self, next: NextConfig<'_>) -> Result<()> {
        if self.path.is_none() {
            return Err(Error::msg("indexed-gzip filter requires gzip-index-path parameter"));
        }
        next.config_complete()
    }

    fn get_ready(&mut self, _: ThreadModel) -> Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        let file = IndexFile::open(NAME, path)?;
        self.ready = Some((Arc::new(Expansion::new()?), Arc::new(file)));
        Ok(())
    }

    fn needs(&self, below: Needs) -> Needs {
        below.read_only().memory(Members::MEMORY)
    }

    fn open(&self, below: &mut Slot<'_>, open: &Open<'_>) -> Result<Box<dyn OpenLayer>> {
        below.open(&open.readonly(true))?;
        let (expansion, file) =
            self.ready.as_ref().ok_or_else(|| corrupt(NAME, "opened before get_ready"))?;
        let bounds = Bounds { most: Some(0), span: self.span, max_span: Members::MAX_SPAN };
        let plan = Plan { bounds, kept: Some(Arc::clone(file)) };
        Ok(Arc::clone(expansion).layer::<Members>(open, plan))
    }
}

/// As the gzip filter's, under another name.
struct Members;

impl Format for Members {
    const NAME: &'static str = NAME;
    const LONGNAME: &'static str = "nbdkit indexed gzip filter";

    fn expand(image: &mut dyn BufRead, disk: &mut Disk<'_>) -> io::Result<u64> {
        gzip::expand(NAME, image, disk)
    }

    fn decode(image: &Image<'_>, block: &Block, window: &[u8]) -> Result<Vec<u8>> {
        gzip::decode(NAME, image, block, window)
    }
}

#[cfg(test)]
mod tests;
