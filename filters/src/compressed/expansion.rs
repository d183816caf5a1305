//! A filter for images that can only be decompressed from the beginning: the first client expands
//! the image into an unlinked temporary file, for all clients of the export.
//!
//! If the process that does it dies, the next one begins anew. Runs of zeroes are not written: the
//! file is sparse.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::sync::{Arc, OnceLock};

use nbdkit_api::shared::{SharedFile, SharedOnce};
use nbdkit_api::{
    Blocking, Cache, Client, Direction, Errno, Error, FileRange, Filter, Needs, Next, Open,
    OpenLayer, Result, Slot, ThreadModel, error, page_cache,
};

use super::by_export::ByExport;
use super::corrupt;
use super::reader::{self, Below};

/// A compressed format without an index.
pub(crate) trait Format: Send + Sync + 'static {
    /// Of the filter.
    const NAME: &'static str;
    /// For `--help`.
    const LONGNAME: &'static str;

    /// Decompresses all of `image`.
    ///
    /// # Errors
    /// The image is damaged; those of `image` and `disk`.
    fn expand(image: &mut dyn BufRead, disk: &mut dyn Write) -> io::Result<()>;
}

/// Writes all that `decoder` makes to `disk`.
///
/// # Errors
/// Those of both.
pub(crate) fn copy(decoder: &mut dyn Read, disk: &mut dyn Write) -> io::Result<()> {
    let mut buf = vec![0; Sparse::BLOCK];
    loop {
        match decoder.read(&mut buf) {
            Ok(0) => return Ok(()),
            Ok(count) => disk.write_all(&buf[..count])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Has `decode` read a file that consists of members one after the other, each of which begins with
/// `magic`.
///
/// Behind the last one there may be anything, and it is ignored, as by gzip(1) and bzip2(1); zeroes
/// are what tapes and block devices end with.
///
/// # Errors
/// There is no member; those of `decode`.
pub(crate) fn members(
    filter: &str,
    magic: &[u8],
    mut image: &mut dyn BufRead,
    mut decode: impl FnMut(&mut dyn BufRead) -> io::Result<()>,
) -> io::Result<()> {
    let mut is_first = true;
    loop {
        let mut begin = Vec::new();
        (&mut image).take(magic.len() as u64).read_to_end(&mut begin)?;
        let begins = begin == magic;
        let mut member = io::Cursor::new(begin).chain(&mut image);
        match (begins, is_first) {
            (true, _) => decode(&mut member)?,
            (false, true) => return Err(io::Error::other(format!("not a {filter} file"))),
            (false, false) => return warn_of_garbage(filter, &mut member),
        }
        is_first = false;
    }
}

fn warn_of_garbage(filter: &str, end: &mut dyn BufRead) -> io::Result<()> {
    loop {
        let bytes = end.fill_buf()?;
        if bytes.iter().any(|byte| *byte != 0) {
            // Seen without -v.
            error!("{filter}: what follows the last member is none, and is ignored");
            return Ok(());
        }
        match bytes.len() {
            0 => return Ok(()),
            count => end.consume(count),
        }
    }
}

/// The filter for a format of which all images are expanded.
#[derive(Debug)]
pub(crate) struct Expanding<F> {
    /// Once ready, the expanded images.
    expansions: Option<Expansions>,
    format: std::marker::PhantomData<F>,
}

impl<F> Default for Expanding<F> {
    fn default() -> Expanding<F> {
        Expanding { expansions: None, format: std::marker::PhantomData }
    }
}

impl<F: Format> Filter for Expanding<F> {
    fn name(&self) -> &str {
        F::NAME
    }

    fn longname(&self) -> Option<&str> {
        Some(F::LONGNAME)
    }

    fn get_ready(&mut self, _: ThreadModel) -> Result<()> {
        self.expansions = Some(Expansions::new()?);
        Ok(())
    }

    fn needs(&self, below: Needs) -> Needs {
        below.read_only()
    }

    fn open(&self, below: &mut Slot<'_>, open: &Open<'_>) -> Result<Box<dyn OpenLayer>> {
        Expansions::open::<F>(self.expansions.as_ref(), below, open)
    }
}

/// What the clients of the server share: an expanded image for each export.
#[derive(Debug)]
pub(crate) struct Expansions(ByExport<Expansion>);

impl Expansions {
    /// # Errors
    /// Those of making temporary files.
    pub(crate) fn new() -> Result<Expansions> {
        ByExport::new(Expansion::new).map(Expansions)
    }

    /// Opens the layer below read-only, and the filter on it.
    ///
    /// # Errors
    /// Those of the layer below; EMFILE if there are too many exports.
    pub(crate) fn open<F: Format>(
        this: Option<&Expansions>,
        below: &mut Slot<'_>,
        open: &Open<'_>,
    ) -> Result<Box<dyn OpenLayer>> {
        below.open(&open.readonly(true))?;
        Expansions::layer::<F>(this, open)
    }

    /// The filter on a layer that is open.
    ///
    /// # Errors
    /// EMFILE if there are too many exports.
    pub(crate) fn layer<F: Format>(
        this: Option<&Expansions>,
        open: &Open<'_>,
    ) -> Result<Box<dyn OpenLayer>> {
        let this = this.ok_or_else(|| corrupt(F::NAME, "opened before get_ready"))?;
        let expansion = this.0.of(open).ok_or_else(|| {
            Error::new(
                Errno::EMFILE,
                format!("{}: clients have opened too many exports: restart the server", F::NAME),
            )
        })?;
        Ok(Box::new(Handle::<F> {
            client: open.client.cloned(),
            expansion,
            size: OnceLock::new(),
            format: std::marker::PhantomData,
        }))
    }
}

/// An expanded image, perhaps not made yet. Another worker may scribble on it.
#[derive(Debug)]
struct Expansion {
    /// The sizes of the compressed and of the expanded image, bytes.
    once: SharedOnce<2>,
    file: SharedFile,
}

impl Expansion {
    fn new() -> Result<Expansion> {
        let file = SharedFile::temporary("expanded image", 0)?;
        Ok(Expansion { once: SharedOnce::new("expansion of the compressed image")?, file })
    }

    /// The size of the expanded image, bytes; expands it unless that has been done.
    fn size<F: Format>(&self, client: Option<&Arc<Client>>, next: &Next) -> Result<u64> {
        let compressed = next.size()?;
        let [expanded_from, size] = self.once.get_or_do(client.map(|client| &**client), || {
            let size = self.expand::<F>(client, next, compressed);
            // The space is free at once, not with the next attempt.
            if size.is_err() {
                self.file.set_len(0)?;
            }
            Ok([compressed, size?])
        })?;
        if compressed != expanded_from {
            return Err(Error::new(
                Errno::EINVAL,
                format!(
                    "plugin size changed unexpectedly: you must restart nbdkit so the {} filter \
                     can uncompress the data again",
                    F::NAME
                ),
            ));
        }
        if i64::try_from(size).is_err() {
            return Err(corrupt(F::NAME, "the expanded image is damaged"));
        }
        Ok(size)
    }

    fn expand<F: Format>(
        &self,
        client: Option<&Arc<Client>>,
        next: &Next,
        compressed: u64,
    ) -> Result<u64> {
        // Another process may have died in the middle.
        self.file.set_len(0)?;
        let below = Below::new(next, client, 0, compressed);
        let mut image = BufReader::with_capacity(reader::CHUNK, below);
        let mut disk = Sparse::new(&self.file);
        F::expand(&mut image, &mut disk)
            .and_then(|()| disk.flush())
            .map_err(|error| reader::decoder_error(F::NAME, error))?;
        self.file.set_len(disk.size)?;
        Ok(disk.size)
    }
}

/// Writes a file from its beginning, and leaves out blocks of zeroes.
struct Sparse<'a> {
    file: &'a SharedFile,
    /// Bytes so far, those of `block` too.
    size: u64,
    /// What was not written yet: the beginning of a block.
    block: Vec<u8>,
}

impl<'a> Sparse<'a> {
    /// Bytes.
    const BLOCK: usize = 64 << 10;

    fn new(file: &'a SharedFile) -> Sparse<'a> {
        Sparse { file, size: 0, block: Vec::with_capacity(Sparse::BLOCK) }
    }
}

impl Write for Sparse<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let count = buf.len().min(Sparse::BLOCK - self.block.len());
        self.block.extend(&buf[..count]);
        self.size += count as u64;
        if self.block.len() == Sparse::BLOCK {
            self.flush()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.block.iter().any(|byte| *byte != 0) {
            let offset = self.size - self.block.len() as u64;
            self.file.write_at(&self.block, offset).map_err(io::Error::other)?;
        }
        self.block.clear();
        Ok(())
    }
}

struct Handle<F> {
    client: Option<Arc<Client>>,
    expansion: Arc<Expansion>,
    /// Bytes of the expanded image, once it is there.
    size: OnceLock<u64>,
    format: std::marker::PhantomData<F>,
}

impl<F: Format> OpenLayer for Handle<F> {
    fn prepare(&self, next: &Next, _: bool) -> Result<()> {
        let size = self.expansion.size::<F>(self.client.as_ref(), next)?;
        let _ = self.size.set(size);
        Ok(())
    }

    fn size(&self, _: &Next) -> Result<u64> {
        self.size.get().copied().ok_or_else(|| corrupt(F::NAME, "used before prepare"))
    }

    fn export_description(&self, next: &Next) -> Option<String> {
        super::description(F::NAME, next)
    }

    fn can_write(&self, _: &Next) -> Result<bool> {
        Ok(false)
    }

    fn can_extents(&self, _: &Next) -> Result<bool> {
        Ok(false)
    }

    fn can_multi_conn(&self, _: &Next) -> Result<bool> {
        Ok(true)
    }

    fn can_cache(&self, _: &Next) -> Result<Cache> {
        Ok(Cache::Emulate)
    }

    fn pread(&self, _: &Next, buf: &mut [u8], offset: u64) -> Result<()> {
        self.expansion.file.read_at(buf, offset)
    }

    fn blocking(&self) -> Blocking {
        Blocking::Short
    }

    /// What is in the page cache.
    fn try_pread(&self, _: &Next, buf: &mut [u8], offset: u64) -> Option<Result<()>> {
        let read = page_cache::read_now(self.expansion.file.as_fd(), buf, offset).ok()?;
        (read == buf.len()).then_some(Ok(()))
    }

    fn file_range(&self, direction: Direction, _: u32, offset: u64) -> Option<FileRange<'_>> {
        let fd = self.expansion.file.as_fd();
        let range = FileRange { fd, offset, in_memory: Some(page_cache::is_in_memory) };
        (direction == Direction::Read).then_some(range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, made_by, sample};

    #[test]
    fn what_failed_takes_no_space() {
        let image = made_by("gzip", &["--stdout"], &sample(300_000));
        let Some(mut image) = image else { return };
        let end = image.len() - 8;
        image[end] ^= 1;
        let next = testing::backend(&testing::disk_of(image), &[], &[]);
        let expansion = Expansion::new().unwrap();
        expansion.size::<crate::gzip::Members>(None, &next).unwrap_err();
        assert_eq!(expansion.file.size().unwrap(), 0);
    }

    #[test]
    fn zeroes_are_holes_and_everything_else_is_where_it_was_written() {
        let file = SharedFile::temporary("sparse", 0).unwrap();
        let mut disk = Sparse::new(&file);
        let mut expected = Vec::new();
        for (count, byte) in [(100, 1), (1 << 20, 0), (70_000, 2), (5, 0), (1 << 20, 0)] {
            let part = vec![byte; count];
            disk.write_all(&part).unwrap();
            expected.extend(part);
        }
        disk.flush().unwrap();
        file.set_len(disk.size).unwrap();
        let mut found = vec![9; expected.len()];
        file.read_at(&mut found, 0).unwrap();
        assert!(found == expected);
        assert_eq!(file.size().unwrap(), expected.len() as u64);
        // Four blocks of 64 KiB hold something.
        assert!(file.used().unwrap() <= 4 * 65536, "{}", file.used().unwrap());
    }
}
