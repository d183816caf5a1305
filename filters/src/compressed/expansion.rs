//! A filter for images that can only be decompressed from the beginning: the first client expands
//! the image into an unlinked temporary file, for all clients of the export. Where the format has
//! points to begin from in the middle, an image that is too large for that is read by these points.
//!
//! If the process that does it dies, the next one begins anew. Runs of zeroes are not written: the
//! file is sparse.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::sync::{Arc, OnceLock};

use nbdkit_api::shared::SharedFile;
use nbdkit_api::{
    BlockCache, Blocking, Cache, Client, Direction, Errno, Error, FileRange, Filter, Needs, Next,
    NextConfig, Open, OpenLayer, Result, Slot, ThreadModel, Value, error, page_cache,
};

use super::blocks::{Block, Builder, Image};
use super::by_export::ByExport;
use super::corrupt;
use super::index::{Index, Summary};
use super::index_file::IndexFile;
use super::points::{BLOCK, Bounds, Disk, MAX_SPAN, SPAN, WINDOW};
use super::reader;

/// Largest disk that is expanded if there are points, unless a parameter says otherwise.
const MAX_EXPAND: u64 = 1 << 30;
/// A compressed format without an index.
pub(crate) trait Format: Send + Sync + 'static {
    /// Of the filter.
    const NAME: &'static str;
    /// For `--help`.
    const LONGNAME: &'static str;

    /// The parameter that says which disks are expanded. Of formats that have points.
    const MAX_EXPAND: Option<&'static str> = None;

    /// Bytes of the disk from one point to the next, at least: what a read decompresses.
    const SPAN: u64 = SPAN;
    /// Most bytes from one point to the next.
    const MAX_SPAN: u64 = MAX_SPAN;
    /// Parts between points that a client keeps.
    const DEPTH: usize = 16;
    /// What that and decompressing take of a worker's memory, bytes.
    const MEMORY: u64 = Self::DEPTH as u64 * Self::MAX_SPAN;

    /// Decompresses all of `image`. How many bytes of it that took; 0 of formats without points.
    ///
    /// # Errors
    /// The image is damaged; those of `image` and `disk`.
    fn expand(image: &mut dyn BufRead, disk: &mut Disk<'_>) -> io::Result<u64>;

    /// Decompresses what is between two points, and checks it. `window` is what comes before.
    ///
    /// # Errors
    /// EIO: the image is damaged, or the format has no points. ENOMEM.
    fn decode(image: &Image<'_>, block: &Block, window: &[u8]) -> Result<Vec<u8>> {
        let _ = (image, block, window);
        Err(corrupt(Self::NAME, "the expanded image is damaged"))
    }
}

/// What becomes of an image.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) bounds: Bounds,
    /// The file that has the index from one start of the server to the next.
    pub(crate) kept: Option<Arc<IndexFile>>,
}

impl Plan {
    /// Disks of at most so many bytes are expanded, those of formats without points always.
    pub(crate) fn of<F: Format>(most: Option<u64>) -> Plan {
        let bounds = Bounds { most, span: F::SPAN, max_span: F::MAX_SPAN };
        Plan { bounds, kept: None }
    }
}

/// Writes all that `decoder` makes to `disk`.
///
/// # Errors
/// Those of both.
pub(crate) fn copy(decoder: &mut dyn Read, disk: &mut dyn Write) -> io::Result<()> {
    let mut buf = vec![0; BLOCK];
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
    /// Largest disk that is expanded if there are points, bytes.
    max_expand: u64,
    /// [`Format::MAX_EXPAND`] for `--help`.
    help: String,
    format: std::marker::PhantomData<F>,
}

impl<F: Format> Default for Expanding<F> {
    fn default() -> Expanding<F> {
        let help = F::MAX_EXPAND.map(|key| {
            format!("{key}=<SIZE> (optional) Largest disk that is expanded (default: 1G)")
        });
        let (max_expand, help) = (MAX_EXPAND, help.unwrap_or_default());
        Expanding { expansions: None, max_expand, help, format: std::marker::PhantomData }
    }
}

impl<F: Format> Filter for Expanding<F> {
    fn name(&self) -> &str {
        F::NAME
    }

    fn longname(&self) -> Option<&str> {
        Some(F::LONGNAME)
    }

    fn config_help(&self) -> Option<&str> {
        Some(&*self.help).filter(|help| !help.is_empty())
    }

    fn config(&mut self, next: NextConfig<'_>, key: &str, value: Value<'_>) -> Result<()> {
        if F::MAX_EXPAND != Some(key) {
            return next.config(key, value);
        }
        self.max_expand = value.size()?;
        Ok(())
    }

    fn get_ready(&mut self, _: ThreadModel) -> Result<()> {
        self.expansions = Some(Expansions::new()?);
        Ok(())
    }

    fn needs(&self, below: Needs) -> Needs {
        let blocks = if F::MAX_EXPAND.is_some() { F::MEMORY } else { 0 };
        below.read_only().memory(blocks)
    }

    fn open(&self, below: &mut Slot<'_>, open: &Open<'_>) -> Result<Box<dyn OpenLayer>> {
        below.open(&open.readonly(true))?;
        let plan = Plan::of::<F>(F::MAX_EXPAND.map(|_| self.max_expand));
        Expansions::layer::<F>(self.expansions.as_ref(), open, plan)
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

    /// The filter on a layer that is open.
    ///
    /// # Errors
    /// EMFILE if there are too many exports.
    pub(crate) fn layer<F: Format>(
        this: Option<&Expansions>,
        open: &Open<'_>,
        plan: Plan,
    ) -> Result<Box<dyn OpenLayer>> {
        let this = this.ok_or_else(|| corrupt(F::NAME, "opened before get_ready"))?;
        let expansion = this.0.of(open).ok_or_else(|| {
            Error::new(
                Errno::EMFILE,
                format!("{}: clients have opened too many exports: restart the server", F::NAME),
            )
        })?;
        Ok(expansion.layer::<F>(open, plan))
    }
}

/// An expanded image, perhaps not made yet. Another worker may scribble on it.
#[derive(Debug)]
pub(crate) struct Expansion {
    /// The blocks between points; one for all of the image if the format has none.
    index: Index,
    /// The expanded image, or nothing.
    file: SharedFile,
    /// What comes before each block, [`WINDOW`] bytes.
    windows: SharedFile,
}

impl Expansion {
    /// # Errors
    /// Those of making temporary files.
    pub(crate) fn new() -> Result<Expansion> {
        let temporary = |name| SharedFile::temporary(name, 0);
        let (file, windows) = (temporary("expanded image")?, temporary("windows")?);
        Ok(Expansion { index: Index::new()?, file, windows })
    }

    /// The filter on a layer that is open.
    pub(crate) fn layer<F: Format>(
        self: Arc<Self>,
        open: &Open<'_>,
        plan: Plan,
    ) -> Box<dyn OpenLayer> {
        Box::new(Handle::<F> {
            client: open.client.cloned(),
            expansion: self,
            plan,
            ready: OnceLock::new(),
            cache: BlockCache::new(F::DEPTH),
            format: std::marker::PhantomData,
        })
    }

    /// What is known of the expanded image; expands it unless that has been done.
    fn summary<F: Format>(&self, image: &Image<'_>, plan: &Plan) -> Result<Summary> {
        let compressed = image.next.size()?;
        let kept = plan.kept.as_ref().map(|file| file.of(image, compressed)).transpose()?;
        let summary = self.index.summary(F::NAME, image.client, compressed, |index| {
            // Another process may have died in the middle.
            self.clear()?;
            if let Some(kept) = &kept
                && kept.load(index, &self.windows)?
            {
                return Ok(());
            }
            self.make::<F>(image, plan, index)?;
            if let Some(kept) = &kept {
                kept.save(index, &self.windows);
            }
            Ok(())
        })?;
        kept.map_or(Ok(()), |kept| kept.check())?;
        if compressed != summary.compressed {
            return Err(Error::new(
                Errno::EINVAL,
                format!(
                    "plugin size changed unexpectedly: you must restart nbdkit so the {} filter \
                     can uncompress the data again",
                    F::NAME
                ),
            ));
        }
        Ok(summary)
    }

    /// Expands the image, or makes its index.
    fn make<F: Format>(
        &self,
        image: &Image<'_>,
        plan: &Plan,
        index: &mut Builder<'_>,
    ) -> Result<()> {
        let mut below =
            BufReader::with_capacity(reader::CHUNK, image.stream(0, index.compressed()));
        let mut add = |size, offset, length, detail| index.add(size, offset, length, detail);
        let mut disk = Disk::new(&self.file, &self.windows, &mut add, plan.bounds);
        let expanded = F::expand(&mut below, &mut disk)
            .map_err(|error| reader::decoder_error(F::NAME, error))
            .and_then(|end| disk.finish(end));
        match expanded {
            Ok(true) => self.windows.set_len(0),
            Ok(false) => Ok(()),
            // The space is free at once, not with the next attempt.
            Err(error) => self.clear().and(Err(error)),
        }
    }

    fn clear(&self) -> Result<()> {
        self.file.set_len(0).and(self.windows.set_len(0))
    }

    /// The block with this number, decompressed from the point that it begins at.
    fn decode<F: Format>(&self, image: &Image<'_>, number: u64, block: &Block) -> Result<Vec<u8>> {
        let mut window = vec![0; WINDOW];
        let offset = number.saturating_mul(WINDOW as u64);
        // There is a hole, or the end, where it is all zeroes.
        if offset < self.windows.size()? {
            self.windows.read_at(&mut window, offset)?;
        }
        F::decode(image, block, &window)
    }
}

struct Handle<F> {
    client: Option<Arc<Client>>,
    expansion: Arc<Expansion>,
    plan: Plan,
    /// Once the expanded image is there: what is known of it, and whether all of it is in the file.
    ready: OnceLock<(Summary, bool)>,
    /// Blocks between points.
    cache: BlockCache,
    format: std::marker::PhantomData<F>,
}

impl<F: Format> Handle<F> {
    fn ready(&self) -> Result<&(Summary, bool)> {
        self.ready.get().ok_or_else(|| corrupt(F::NAME, "used before prepare"))
    }

    /// The file that has all of the expanded image.
    fn expanded(&self) -> Option<&SharedFile> {
        self.ready.get().filter(|(_, is_expanded)| *is_expanded).map(|_| &self.expansion.file)
    }
}

impl<F: Format> OpenLayer for Handle<F> {
    fn prepare(&self, next: &Next, _: bool) -> Result<()> {
        let image = Image { next, client: self.client.as_ref() };
        let summary = self.expansion.summary::<F>(&image, &self.plan)?;
        let is_expanded = self.expansion.file.size()? == summary.size;
        let _ = self.ready.set((summary, is_expanded));
        Ok(())
    }

    fn size(&self, _: &Next) -> Result<u64> {
        Ok(self.ready()?.0.size)
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

    fn pread(&self, next: &Next, buf: &mut [u8], offset: u64) -> Result<()> {
        let (summary, is_expanded) = self.ready()?;
        if *is_expanded {
            return self.expansion.file.read_at(buf, offset);
        }
        let image = Image { next, client: self.client.as_ref() };
        let index = &self.expansion.index;
        index.read(F::NAME, summary, &self.cache, F::MAX_SPAN, buf, offset, |number, block| {
            self.expansion.decode::<F>(&image, number, block)
        })
    }

    fn blocking(&self) -> Blocking {
        if self.expanded().is_some() { Blocking::Short } else { Blocking::Long }
    }

    /// What is in the page cache, or decompressed already.
    fn try_pread(&self, _: &Next, buf: &mut [u8], offset: u64) -> Option<Result<()>> {
        let Some(file) = self.expanded() else {
            let (summary, index) = (&self.ready().ok()?.0, &self.expansion.index);
            return index.read_kept(F::NAME, summary, &self.cache, F::MAX_SPAN, buf, offset);
        };
        let read = page_cache::read_now(file.as_fd(), buf, offset).ok()?;
        (read == buf.len()).then_some(Ok(()))
    }

    fn file_range(&self, direction: Direction, _: u32, offset: u64) -> Option<FileRange<'_>> {
        let fd = self.expanded()?.as_fd();
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
        for max_expand in [MAX_EXPAND, 0] {
            let expansion = Expansion::new().unwrap();
            let image = Image { next: &next, client: None };
            let plan = Plan::of::<crate::gzip::Members>(Some(max_expand));
            expansion.summary::<crate::gzip::Members>(&image, &plan).unwrap_err();
            assert_eq!(expansion.file.size().unwrap(), 0);
            assert_eq!(expansion.windows.size().unwrap(), 0);
        }
    }
}
