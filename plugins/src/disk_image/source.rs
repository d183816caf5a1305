//! Where the bytes of an image come from: files, or memory in tests.

use std::sync::Arc;

use nbdkit_api::paths::Opened;
use nbdkit_api::{BlockCache, Result, ResultExt};

use crate::file::disk::file_size;
use crate::files::{File, Files};

/// Bytes of an image.
pub(crate) trait Source: Send + Sync {
    /// How many.
    ///
    /// # Errors
    /// The kernel's.
    fn size(&self) -> Result<u64>;

    /// Fills `buf` from `offset`.
    ///
    /// # Errors
    /// The kernel's. EIO: there are not so many.
    fn read(&self, buf: &mut [u8], offset: u64) -> Result<()>;

    /// The file that they are, if it is open and stays so.
    fn file(&self) -> Option<&File>;
}

/// One of a client's files.
#[derive(Clone)]
pub(crate) struct Part {
    files: Arc<Files>,
    number: usize,
}

impl Part {
    /// A file that is open.
    pub(crate) fn opened(opened: Opened) -> Part {
        Part { files: Arc::new(Files::open(vec![opened])), number: 0 }
    }

    /// The file of this number.
    pub(crate) fn of(files: &Arc<Files>, number: usize) -> Part {
        Part { files: Arc::clone(files), number }
    }
}

impl Source for Part {
    fn size(&self) -> Result<u64> {
        let file = self.files.get(self.number)?;
        let opened = &file.opened;
        file_size(&opened.file, opened.is_block_device)
            .or_error(|| format!("size: {}", opened.name))
    }

    fn read(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.files.get(self.number)?.read(buf, offset)
    }

    fn file(&self) -> Option<&File> {
        self.files.open_one(self.number)
    }
}

/// Memory.
#[cfg(any(test, feature = "fuzz"))]
impl Source for &[u8] {
    fn size(&self) -> Result<u64> {
        Ok(self.len() as u64)
    }

    fn read(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = self.get(from..).and_then(|rest| rest.get(..buf.len()));
        let silent = || nbdkit_api::Error::silent(nbdkit_api::Errno::EIO);
        buf.copy_from_slice(bytes.ok_or_else(silent)?);
        Ok(())
    }

    fn file(&self) -> Option<&File> {
        None
    }
}

/// Bytes of an image that are read at a time where its tables are.
const PAGE: u64 = 32 << 10;
/// Pages that are kept.
const PAGES: usize = 64;

/// Room for the pages.
pub(crate) fn pages() -> Arc<BlockCache> {
    Arc::new(BlockCache::new(PAGES))
}

/// An image, with those pages of its tables that were used last.
pub(crate) struct Tables<S> {
    source: S,
    /// Bytes of the image.
    size: u64,
    pages: Arc<BlockCache>,
    /// Of the first page.
    key: u64,
}

/// Bytes of memory that pages take, those that are being read included.
pub(crate) const MEMORY: u64 = PAGE * PAGES as u64 * 2;

impl<S: Source> Tables<S> {
    /// Of an image.
    ///
    /// # Errors
    /// Those of [`Source::size`].
    pub(crate) fn of(source: S) -> Result<Tables<S>> {
        Tables::of_one(source, 0, &pages())
    }

    /// Of one of several images, which have the pages in common. `number` is less than 2^16.
    ///
    /// # Errors
    /// Those of [`Source::size`].
    pub(crate) fn of_one(source: S, number: usize, pages: &Arc<BlockCache>) -> Result<Tables<S>> {
        // An image has at most 2^63 bytes, and so 2^48 pages.
        let key = (number as u64) << 48;
        Ok(Tables { size: source.size()?, source, pages: Arc::clone(pages), key })
    }

    /// Bytes of the image.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// The image itself.
    pub(crate) fn source(&self) -> &S {
        &self.source
    }

    /// Fills `buf` from `offset` of the image, by way of the pages.
    ///
    /// # Errors
    /// Those of [`Source::read`]. EIO: the range is not within the image.
    pub(crate) fn read(&self, mut buf: &mut [u8], mut offset: u64) -> Result<()> {
        while !buf.is_empty() {
            let (number, within) = (offset / PAGE, (offset % PAGE) as usize);
            let page = self.pages.get(self.key | number, || {
                let length = PAGE.min(self.size.saturating_sub(number * PAGE));
                let mut page = vec![0; length as usize];
                self.source.read(&mut page, number * PAGE)?;
                Ok(page)
            })?;
            let count = buf.len().min(PAGE as usize - within);
            let (part, rest) = buf.split_at_mut(count);
            let bytes = page.get(within..within + count);
            part.copy_from_slice(bytes.ok_or_else(super::table::outside)?);
            buf = rest;
            offset += count as u64;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_read_across_pages_and_not_beyond_the_image() {
        let image: Vec<u8> = (0..PAGE * 2 + 10).map(|at| (at % 251) as u8).collect();
        let tables = Tables::of(&image[..]).unwrap();
        assert_eq!(tables.size(), PAGE * 2 + 10);
        for (at, count) in [(0, 1), (PAGE - 3, 6), (PAGE - 1, PAGE + 2), (PAGE * 2, 10)] {
            let mut buf = vec![0; count as usize];
            tables.read(&mut buf, at).unwrap();
            assert!(buf == image[at as usize..][..count as usize], "{count} at {at}");
        }
        for at in [PAGE * 2 + 9, PAGE * 2 + 10, PAGE * 3, u64::MAX - 1] {
            assert!(tables.read(&mut [0; 2], at).is_err(), "{at}");
        }
    }
}
