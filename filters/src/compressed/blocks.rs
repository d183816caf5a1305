//! A filter for images of blocks that can be decompressed by themselves. The format finds the
//! blocks and decompresses one.

use std::sync::{Arc, OnceLock};

use nbdkit_api::{
    BlockCache, Blocking, Cache, Client, Errno, Error, Next, NextConfig, Open, OpenLayer, Result,
    Slot, Value, client,
};

pub(crate) use super::by_export::ByExport;
pub(crate) use super::index::{Block, Builder, MAX_BLOCKS};
use super::index::{Index, Summary};
use super::{corrupt, reader};

/// A compressed format with an index.
pub(crate) trait Format: Send + Sync + 'static {
    /// Of the filter.
    const NAME: &'static str;

    /// Finds the blocks of an image of `size` bytes.
    ///
    /// # Errors
    /// EIO: it is none, or damaged.
    fn index(image: &Image<'_>, size: u64, builder: &mut Builder<'_>) -> Result<()>;

    /// Decompresses a block, and checks it. At most `block.size` bytes are kept.
    ///
    /// # Errors
    /// EIO: the block is damaged. ENOMEM.
    fn decode(image: &Image<'_>, block: &Block) -> Result<Vec<u8>>;
}

/// The compressed image: the layer below, read in a client's name.
#[derive(Clone, Copy)]
pub(crate) struct Image<'a> {
    pub(crate) next: &'a Next,
    pub(crate) client: Option<&'a Arc<Client>>,
}

impl<'a> Image<'a> {
    /// Fills `buf` from `offset`.
    ///
    /// # Errors
    /// Those of the layer below. ESHUTDOWN: the client has gone.
    pub(crate) fn read(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        client::check_present(self.client.map(|client| &**client))?;
        self.next.pread(buf, offset)
    }

    /// The bytes `at .. end` as a stream.
    pub(crate) fn stream(&self, at: u64, end: u64) -> reader::Below<'a> {
        reader::Below::new(self.next, self.client, at, end)
    }
}

/// The parameters that each of these filters has, `NAME-max-block` and `NAME-max-depth`, and what
/// clients share.
#[derive(Debug)]
pub(crate) struct Parameters {
    /// Largest block that is decompressed, bytes.
    max_block: u64,
    /// Blocks that a client keeps.
    depth: u32,
    indexes: Option<ByExport<Index>>,
}

impl Default for Parameters {
    fn default() -> Parameters {
        Parameters { max_block: 512 << 20, depth: 8, indexes: None }
    }
}

impl Parameters {
    /// Takes a parameter of the filter, or hands it on.
    ///
    /// # Errors
    /// Bad value.
    pub(crate) fn config<F: Format>(
        &mut self,
        next: NextConfig<'_>,
        key: &str,
        value: Value<'_>,
    ) -> Result<()> {
        match key.strip_prefix(F::NAME) {
            Some("-max-block") => self.max_block = value.size()?,
            Some("-max-depth") => {
                self.depth = value.integer(key)?;
                if self.depth == 0 {
                    return Err(Error::msg(format!("'{key}' parameter must be >= 1")));
                }
            }
            _ => return next.config(key, value),
        }
        Ok(())
    }

    /// Makes what clients share.
    ///
    /// # Errors
    /// ENOMEM, EMFILE.
    pub(crate) fn get_ready(&mut self) -> Result<()> {
        self.indexes = Some(ByExport::new(Index::new)?);
        Ok(())
    }

    /// Most bytes that a client takes: the blocks that it keeps, and as much for the window of each
    /// decoder.
    pub(crate) fn memory(&self) -> u64 {
        self.max_block.saturating_mul(2).saturating_mul(self.depth.into())
    }

    /// Decoders that may be at work for a client at the same time.
    pub(crate) fn depth(&self) -> u32 {
        self.depth
    }

    /// Opens the layer below read-only, and the filter on it.
    ///
    /// # Errors
    /// Those of the layer below.
    pub(crate) fn open<F: Format>(
        &self,
        below: &mut Slot<'_>,
        open: &Open<'_>,
    ) -> Result<Box<dyn OpenLayer>> {
        below.open(&open.readonly(true))?;
        self.layer::<F>(open)
    }

    /// The filter on a layer that is open.
    ///
    /// # Errors
    /// ENOMEM, EMFILE.
    pub(crate) fn layer<F: Format>(&self, open: &Open<'_>) -> Result<Box<dyn OpenLayer>> {
        let indexes = self.indexes.as_ref();
        let indexes = indexes.ok_or_else(|| corrupt(F::NAME, "opened before get_ready"))?;
        Ok(Box::new(Handle::<F> {
            client: open.client.cloned(),
            max_block: self.max_block,
            // Clients of too many exports have an index each.
            shared: indexes.of(open).map_or_else(|| Index::new().map(Arc::new), Ok)?,
            ready: OnceLock::new(),
            cache: BlockCache::new(self.depth as usize),
            format: std::marker::PhantomData,
        }))
    }
}

struct Handle<F> {
    client: Option<Arc<Client>>,
    max_block: u64,
    shared: Arc<Index>,
    /// Set when the layer is prepared.
    ready: OnceLock<(Arc<Index>, Summary)>,
    cache: BlockCache,
    format: std::marker::PhantomData<F>,
}

impl<F: Format> Handle<F> {
    fn summary_of(&self, index: &Index, next: &Next, size: u64) -> Result<Summary> {
        let image = Image { next, client: self.client.as_ref() };
        index
            .summary(F::NAME, self.client.as_ref(), size, |builder| F::index(&image, size, builder))
    }

    fn ready(&self) -> Result<&(Arc<Index>, Summary)> {
        self.ready.get().ok_or_else(|| corrupt(F::NAME, "used before prepare"))
    }
}

impl<F: Format> OpenLayer for Handle<F> {
    fn prepare(&self, next: &Next, _: bool) -> Result<()> {
        let size = next.size()?;
        let mut index = Arc::clone(&self.shared);
        let mut summary = self.summary_of(&index, next, size)?;
        // The file below is another one by now: this client has its own index.
        if summary.compressed != size {
            index = Arc::new(Index::new()?);
            summary = self.summary_of(&index, next, size)?;
        }
        let (largest, limit) = (summary.largest, self.max_block);
        if largest > limit {
            let name = F::NAME;
            return Err(Error::new(
                Errno::EIO,
                format!(
                    "{name}: the largest block has {largest} bytes, which is more than \
                     {name}-max-block={limit}: recompress the file with smaller blocks, or allow \
                     larger ones"
                ),
            ));
        }
        let _ = self.ready.set((index, summary));
        Ok(())
    }

    fn size(&self, _: &Next) -> Result<u64> {
        Ok(self.ready()?.1.size)
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
        let (index, summary) = self.ready()?;
        let image = Image { next, client: self.client.as_ref() };
        index.read(F::NAME, summary, &self.cache, self.max_block, buf, offset, |_, block| {
            F::decode(&image, block)
        })
    }

    fn blocking(&self) -> Blocking {
        Blocking::Long
    }

    /// What is decompressed already: to decompress is for several processors.
    fn try_pread(&self, _: &Next, buf: &mut [u8], offset: u64) -> Option<Result<()>> {
        let (index, summary) = self.ready().ok()?;
        index.read_kept(F::NAME, summary, &self.cache, self.max_block, buf, offset)
    }
}
