//! nbdkit-xz-filter(1): decompresses an xz file block by block.
//!
//! The blocks are found by the indexes at the end of each stream. A block is given to the decoder
//! as a stream of its own, whose header and index are made here, so that the decoder has all of its
//! own checks; the check of the block's data is done here.

mod format;

use nbdkit_api::{Filter, Needs, NextConfig, Open, OpenLayer, Result, Slot, ThreadModel, Value};

use crate::compressed::blocks::Parameters;

pub(crate) use format::Xz as Format;
#[cfg(test)]
pub(crate) use format::tests::stream as with_index;

/// The filter: its parameters and, once ready, the indexes.
#[derive(Debug, Default)]
pub struct Xz(Parameters);

impl Filter for Xz {
    fn name(&self) -> &str {
        "xz"
    }

    fn longname(&self) -> Option<&str> {
        Some("nbdkit XZ filter")
    }

    fn config_help(&self) -> Option<&str> {
        Some(
            "xz-max-block=<SIZE> (optional) Maximum block size allowed (default: 512M)\n\
             xz-max-depth=<N>    (optional) Maximum blocks in cache (default: 8)",
        )
    }

    fn config(&mut self, next: NextConfig<'_>, key: &str, value: Value<'_>) -> Result<()> {
        self.0.config::<Format>(next, key, value)
    }

    fn get_ready(&mut self, _: ThreadModel) -> Result<()> {
        self.0.get_ready()
    }

    fn needs(&self, below: Needs) -> Needs {
        below.read_only().memory(self.0.memory())
    }

    fn open(&self, below: &mut Slot<'_>, open: &Open<'_>) -> Result<Box<dyn OpenLayer>> {
        self.0.open::<Format>(below, open)
    }
}

#[cfg(test)]
mod tests;
