//! nbdkit-tar-filter(1): serves one file in an uncompressed tar archive, where it is.
//!
//! The first client looks for the file, and all others get the result through shared memory. What
//! is found there is checked: it may be a hostile worker's.

mod archive;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod example;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::sync::Arc;

use nbdkit_api::shared::SharedOnce;
use nbdkit_api::{
    Error, Filter, Next, NextConfig, Open, OpenLayer, Result, Slot, ThreadModel, Value,
};

use crate::window::Window;
use archive::Archive;

/// The filter: which file is served and, once ready, where it is.
#[derive(Debug, Default)]
pub struct Tar {
    entry: Option<Vec<u8>>,
    /// Bytes of the archive that may be looked at, 0 for all.
    limit: u64,
    found: Option<Arc<Found>>,
}

/// Where the file of the export that was opened first is: start, end, size of the archive, hash of
/// the export's name.
type Found = SharedOnce<4>;

impl Filter for Tar {
    fn name(&self) -> &str {
        "tar"
    }

    fn longname(&self) -> Option<&str> {
        Some("nbdkit tar filter")
    }

    fn config_help(&self) -> Option<&str> {
        Some(
            "tar-entry=<FILENAME> (required) The path inside the tar file to serve.\n\
             tar-limit=SIZE       Limit on reading to find the entry (default 0 = no limit).",
        )
    }

    fn config(&mut self, next: NextConfig<'_>, key: &str, value: Value<'_>) -> Result<()> {
        match key {
            "tar-entry" if self.entry.is_some() => {
                return Err(Error::msg("only one tar-entry parameter can be given"));
            }
            "tar-entry" => self.entry = Some(value.as_bytes().to_vec()),
            "tar-limit" => self.limit = value.size()?,
            // The program that nbdkit runs to find the entry. This filter runs none.
            "tar" => {}
            _ => return next.config(key, value),
        }
        Ok(())
    }

    fn config_complete(&mut self, next: NextConfig<'_>) -> Result<()> {
        if self.entry.is_none() {
            return Err(Error::msg("you must supply the tar-entry=<FILENAME> parameter"));
        }
        next.config_complete()
    }

    fn get_ready(&mut self, _: ThreadModel) -> Result<()> {
        self.found = Some(Arc::new(SharedOnce::new("tar: search for the entry")?));
        Ok(())
    }

    fn open(&self, below: &mut Slot<'_>, open: &Open<'_>) -> Result<Box<dyn OpenLayer>> {
        below.open(open)?;
        let (Some(found), Some(entry)) = (&self.found, &self.entry) else {
            return Err(Error::msg("tar: opened before get_ready"));
        };
        let (found, entry, limit) = (Arc::clone(found), entry.clone(), self.limit);
        let client = open.client.map(Arc::clone);
        let mut hasher = DefaultHasher::new();
        open.export.hash(&mut hasher);
        let export = hasher.finish();
        Ok(Window::new(move |next| {
            let size = next.size()?;
            let search = || search(next, size, &entry, limit);
            let [start, end, of_size, of_export] = found.get_or_do(client.as_deref(), || {
                let part = search()?;
                Ok([part.start, part.end, size, export])
            })?;
            // Another export has another archive, and so has a plugin whose disk was replaced.
            if (of_size, of_export) == (size, export) { Ok(start..end) } else { search() }
        }))
    }
}

fn search(next: &Next, size: u64, entry: &[u8], limit: u64) -> Result<Range<u64>> {
    let read = |buf: &mut [u8], offset| next.pread(buf, offset);
    let limit = if limit == 0 { u64::MAX } else { limit };
    Archive { read: &read, size, limit }.find(entry)
}

#[cfg(test)]
mod tests;
