//! The index of an image's blocks, made by the first client for all.

use std::sync::Arc;

use nbdkit_api::shared::{SharedFile, SharedOnce};
use nbdkit_api::{BlockCache, Client, Errno, Error, Result};

use super::corrupt;

/// Most blocks of an image: 256 MiB of index. An image of more is refused.
/// Tests have less to do.
pub(crate) const MAX_BLOCKS: u64 = if cfg!(test) { 5000 } else { 1 << 23 };

/// A part of the image that can be decompressed by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Block {
    /// Where it is in the decompressed image, bytes.
    pub(crate) start: u64,
    /// Decompressed bytes.
    pub(crate) size: u64,
    /// Where it is in the compressed image, bytes.
    pub(crate) offset: u64,
    /// Compressed bytes.
    pub(crate) length: u64,
    /// What the format has to know besides.
    pub(crate) detail: u64,
}

impl Block {
    const BYTES: usize = 40;

    fn encode(self) -> [u8; Block::BYTES] {
        let mut bytes = [0; Block::BYTES];
        let words = [self.start, self.size, self.offset, self.length, self.detail];
        for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }

    fn decode(bytes: &[u8; Block::BYTES]) -> Block {
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at * 8..][..8]);
            u64::from_ne_bytes(word)
        };
        Block { start: word(0), size: word(1), offset: word(2), length: word(3), detail: word(4) }
    }
}

/// What is known about all blocks together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Summary {
    /// Bytes of the compressed image when the index was made.
    pub(crate) compressed: u64,
    /// Bytes of the decompressed image.
    pub(crate) size: u64,
    pub(crate) blocks: u64,
    /// Decompressed bytes of the largest block.
    pub(crate) largest: u64,
}

/// An index, perhaps not made yet. Another worker may scribble on it.
#[derive(Debug)]
pub(super) struct Index {
    once: SharedOnce<4>,
    /// [`Block`]s in the order of the decompressed image.
    blocks: SharedFile,
}

impl Index {
    pub(super) fn new() -> Result<Index> {
        let once = SharedOnce::new("index of the compressed image")?;
        Ok(Index { once, blocks: SharedFile::in_memory("index", 0)? })
    }

    /// What `make` adds, unless another client has made the index. `compressed` is the image's
    /// size, bytes.
    ///
    /// # Errors
    /// Those of `make`; EIO for more than [`MAX_BLOCKS`]; ESHUTDOWN: the client has gone.
    pub(super) fn summary(
        &self,
        filter: &str,
        client: Option<&Arc<Client>>,
        compressed: u64,
        make: impl FnOnce(&mut Builder<'_>) -> Result<()>,
    ) -> Result<Summary> {
        let [compressed, size, blocks, largest] =
            self.once.get_or_do(client.map(|client| &**client), || {
                let mut builder = Builder::new(filter, &self.blocks, compressed);
                make(&mut builder)?;
                let summary = builder.finish()?;
                Ok([summary.compressed, summary.size, summary.blocks, summary.largest])
            })?;
        if i64::try_from(size).is_err() || blocks > MAX_BLOCKS {
            return Err(corrupt(filter, "the shared index is damaged"));
        }
        Ok(Summary { compressed, size, blocks, largest })
    }

    /// The number of the block that has the byte `at`, and the block. `limit`: the largest block
    /// that may be decompressed.
    ///
    /// # Errors
    /// EIO if the index is damaged.
    pub(super) fn find(
        &self,
        filter: &str,
        summary: &Summary,
        at: u64,
        limit: u64,
    ) -> Result<(u64, Block)> {
        let damaged = || corrupt(filter, "the shared index is damaged");
        // The last block that does not begin behind it.
        let (mut first, mut end) = (0, summary.blocks);
        while first < end {
            let middle = first + (end - first) / 2;
            if self.block(middle)?.start <= at { first = middle + 1 } else { end = middle }
        }
        let number = first.checked_sub(1).ok_or_else(damaged)?;
        let block = self.block(number)?;
        let holds = at >= block.start && at - block.start < block.size && block.size <= limit;
        let end = block.offset.checked_add(block.length);
        if !holds || end.is_none_or(|end| end > summary.compressed) {
            return Err(damaged());
        }
        Ok((number, block))
    }

    /// Fills `buf` from `offset` of the disk, from blocks in `cache` and those that `decode` makes,
    /// given their number. `limit`: the largest block that may be decompressed.
    ///
    /// # Errors
    /// Those of `decode`; EIO if the index is damaged.
    #[expect(clippy::too_many_arguments, reason = "what there is of each client, and a read")]
    pub(super) fn read(
        &self,
        filter: &str,
        summary: &Summary,
        cache: &BlockCache,
        limit: u64,
        buf: &mut [u8],
        offset: u64,
        decode: impl Fn(u64, &Block) -> Result<Vec<u8>>,
    ) -> Result<()> {
        let get = |number, block: &Block| cache.get(number, || decode(number, block)).map(Some);
        self.copy(filter, summary, limit, buf, offset, get).map(drop)
    }

    /// As [`read`](Self::read) from blocks that are all in `cache`; `None`: they are not, and a
    /// part of `buf` may have been filled.
    pub(super) fn read_kept(
        &self,
        filter: &str,
        summary: &Summary,
        cache: &BlockCache,
        limit: u64,
        buf: &mut [u8],
        offset: u64,
    ) -> Option<Result<()>> {
        let get = |number, _: &Block| Ok(cache.kept(number));
        self.copy(filter, summary, limit, buf, offset, get).transpose()
    }

    /// Fills `buf` from the blocks that `get` has; `None` if it has not all of them.
    fn copy(
        &self,
        filter: &str,
        summary: &Summary,
        limit: u64,
        mut buf: &mut [u8],
        mut offset: u64,
        get: impl Fn(u64, &Block) -> Result<Option<Arc<Vec<u8>>>>,
    ) -> Result<Option<()>> {
        while !buf.is_empty() {
            let (number, block) = self.find(filter, summary, offset, limit)?;
            let Some(data) = get(number, &block)? else { return Ok(None) };
            let from = usize::try_from(offset - block.start).unwrap_or(usize::MAX);
            let data = data.get(from..).filter(|data| !data.is_empty());
            let data = data.ok_or_else(|| corrupt(filter, "a block is shorter than its index"))?;
            let count = data.len().min(buf.len());
            let (part, left) = buf.split_at_mut(count);
            part.copy_from_slice(&data[..count]);
            buf = left;
            offset += count as u64;
        }
        Ok(Some(()))
    }

    fn block(&self, number: u64) -> Result<Block> {
        let mut bytes = [0; Block::BYTES];
        self.blocks.read_at(&mut bytes, number * Block::BYTES as u64)?;
        Ok(Block::decode(&bytes))
    }
}

/// What adds blocks to an index, in the order of the decompressed image.
pub(crate) struct Builder<'a> {
    filter: &'a str,
    file: &'a SharedFile,
    summary: Summary,
    /// Blocks that have not been written yet.
    pending: Vec<u8>,
    written: u64,
}

impl Builder<'_> {
    /// Bytes that are written at a time.
    const BATCH: usize = 1024 * Block::BYTES;

    fn new<'a>(filter: &'a str, file: &'a SharedFile, compressed: u64) -> Builder<'a> {
        let summary = Summary { compressed, ..Summary::default() };
        Builder { filter, file, summary, pending: Vec::new(), written: 0 }
    }

    /// One more block of `size` decompressed bytes, from the compressed bytes `offset .. offset +
    /// length`. Empty ones are left out.
    ///
    /// # Errors
    /// EIO: it lies outside of the image, the disk is too large, there are too many blocks.
    pub(crate) fn add(&mut self, size: u64, offset: u64, length: u64, detail: u64) -> Result<()> {
        let end = offset.checked_add(length);
        if end.is_none_or(|end| end > self.summary.compressed) {
            return Err(corrupt(self.filter, "a block lies outside of the file"));
        }
        if size == 0 {
            return Ok(());
        }
        let start = self.summary.size;
        let total = start.checked_add(size).filter(|total| i64::try_from(*total).is_ok());
        let total = total.ok_or_else(|| {
            Error::new(Errno::EFBIG, format!("{}: the decompressed size is too large", self.filter))
        })?;
        if self.summary.blocks == MAX_BLOCKS {
            return Err(corrupt(self.filter, format_args!("more than {MAX_BLOCKS} blocks")));
        }
        self.summary.size = total;
        self.summary.blocks += 1;
        self.summary.largest = self.summary.largest.max(size);
        self.pending.extend(Block { start, size, offset, length, detail }.encode());
        if self.pending.len() >= Builder::BATCH { self.write() } else { Ok(()) }
    }

    /// Bytes of the compressed image.
    pub(super) fn compressed(&self) -> u64 {
        self.summary.compressed
    }

    /// What was added so far.
    pub(super) fn summary(&self) -> Summary {
        self.summary
    }

    /// Takes back what was added.
    pub(super) fn clear(&mut self) {
        *self = Builder::new(self.filter, self.file, self.summary.compressed);
    }

    /// Calls `visit` for each block that was added.
    ///
    /// # Errors
    /// Those of `visit`, and of the file.
    pub(super) fn each(&mut self, mut visit: impl FnMut(&Block) -> Result<()>) -> Result<()> {
        self.write()?;
        let mut bytes = [0; Block::BYTES];
        for number in 0..self.summary.blocks {
            self.file.read_at(&mut bytes, number * Block::BYTES as u64)?;
            visit(&Block::decode(&bytes))?;
        }
        Ok(())
    }

    fn write(&mut self) -> Result<()> {
        self.file.write_at(&self.pending, self.written)?;
        self.written += self.pending.len() as u64;
        self.pending.clear();
        Ok(())
    }

    fn finish(mut self) -> Result<Summary> {
        self.write()?;
        Ok(self.summary)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_byte_is_found_in_its_block() {
        let index = Index::new().unwrap();
        let sizes = [5, 0, 1, 1000, 7];
        let summary = index
            .summary("x", None, 100, |add| {
                sizes.iter().enumerate().try_for_each(|(n, size)| add.add(*size, n as u64, 3, 9))
            })
            .unwrap();
        let expected = Summary { compressed: 100, size: 1013, blocks: 4, largest: 1000 };
        assert_eq!(summary, expected);
        for (at, number, start, offset) in [
            (0, 0, 0, 0),
            (4, 0, 0, 0),
            (5, 1, 5, 2),
            (6, 2, 6, 3),
            (1005, 2, 6, 3),
            (1012, 3, 1006, 4),
        ] {
            let (found, block) = index.find("x", &summary, at, 1000).unwrap();
            assert_eq!((found, block.start, block.offset), (number, start, offset), "{at}");
            assert_eq!(block.detail, 9);
        }
        assert!(index.find("x", &summary, 1013, 1000).is_err());
        assert!(index.find("x", &summary, 6, 999).is_err(), "larger than the limit");
        // The second to come does not make it again.
        let again = index.summary("x", None, 1, |_| panic!("made again"));
        assert_eq!(again.unwrap(), expected);
    }

    #[test]
    fn a_scribbled_index_is_an_error() {
        let index = Index::new().unwrap();
        let summary = index.summary("x", None, 10, |add| add.add(100, 0, 10, 0)).unwrap();
        for word in 0..5 {
            for value in [1_u64, u64::MAX, 1 << 63] {
                index.blocks.write_at(&value.to_ne_bytes(), word * 8).unwrap();
                if let Ok((_, block)) = index.find("x", &summary, 50, 100) {
                    assert!(block.size <= 100 && block.offset + block.length <= 10, "{block:?}");
                }
            }
        }
        assert!(index.find("x", &summary, 50, 100).is_err());
    }

    #[test]
    fn blocks_outside_of_the_file_and_disks_beyond_all_bounds_are_refused() {
        let refused = |make: fn(&mut Builder<'_>) -> Result<()>| {
            Index::new().unwrap().summary("x", None, 10, make).unwrap_err().message().to_owned()
        };
        assert_eq!(refused(|add| add.add(1, 5, 6, 0)), "x: a block lies outside of the file");
        assert_eq!(
            refused(|add| add.add(1, u64::MAX, 6, 0)),
            "x: a block lies outside of the file"
        );
        let large = "x: the decompressed size is too large";
        assert_eq!(refused(|add| add.add(1 << 63, 0, 1, 0)), large);
        assert_eq!(refused(|add| (0..5).try_for_each(|_| add.add(1 << 62, 0, 1, 0))), large);
    }
}
