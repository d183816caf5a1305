//! nbdkit-qcow2dec-filter(1): the disk in a qcow2 image, read-only.
//!
//! Every client reads the tables for itself, as far as its requests need them: a look at the header
//! is all that opening costs.

mod header;
mod tables;

use std::sync::OnceLock;

use nbdkit_api::{
    BlockCache, Cache, ExtentKind, Extents, Filter, Flags, Needs, Next, NextConfig, Open,
    OpenLayer, Result, Slot, Value,
};

use crate::compressed::blocks::Image;
use crate::compressed::corrupt;
use header::Header;
use tables::{Place, Tables};

const NAME: &str = "qcow2dec";
/// Decompressed clusters that a client keeps.
const CLUSTERS: usize = 8;
/// Clusters that one answer about extents looks at, at most.
const MOST_CLUSTERS: u64 = 1 << 20;

/// The filter, which has no parameters.
#[derive(Debug, Clone, Copy, Default)]
pub struct Qcow2dec;

impl Filter for Qcow2dec {
    fn name(&self) -> &str {
        NAME
    }

    fn longname(&self) -> Option<&str> {
        Some("nbdkit qcow2dec filter")
    }

    fn config(&mut self, next: NextConfig<'_>, key: &str, value: Value<'_>) -> Result<()> {
        next.config(key, value)
    }

    fn dump_plugin(&self, out: &mut dyn std::io::Write) -> std::io::Result<()> {
        out.write_all(b"qcow2dec_deflate=yes\nqcow2dec_zstd=yes\n")
    }

    fn needs(&self, below: Needs) -> Needs {
        // Beside each cluster that is kept, one is being decompressed, from at most two.
        let clusters = CLUSTERS as u64 * header::MAX_CLUSTER * 4;
        below.read_only().memory(clusters + tables::MEMORY)
    }

    fn open(&self, below: &mut Slot<'_>, open: &Open<'_>) -> Result<Box<dyn OpenLayer>> {
        below.open(&open.readonly(true))?;
        Ok(Box::new(Handle { disk: OnceLock::new(), clusters: BlockCache::new(CLUSTERS) }))
    }
}

struct Handle {
    /// Set when the layer is prepared.
    disk: OnceLock<Disk>,
    /// By the number of the cluster.
    clusters: BlockCache,
}

/// What an image says of its disk.
struct Disk {
    header: Header,
    /// Bytes of the image.
    image: u64,
    tables: Tables,
}

/// A part of a request.
struct Piece {
    /// Of the disk, bytes.
    offset: u64,
    length: u64,
    place: Place,
    /// The cluster that it is in.
    cluster: u64,
}

impl Handle {
    fn disk(&self) -> Result<&Disk> {
        self.disk.get().ok_or_else(|| corrupt(NAME, "used before prepare"))
    }

    /// Calls `each` with a range's parts, one for each cluster, while that returns true.
    fn pieces(
        &self,
        next: &Next,
        count: u64,
        offset: u64,
        mut each: impl FnMut(Piece) -> Result<bool>,
    ) -> Result<()> {
        let disk = self.disk()?;
        let size = disk.header.cluster_size();
        let end = offset + count;
        let mut lookup = disk.tables.lookup(next);
        let mut at = offset;
        while at < end {
            let cluster = at / size;
            let length = (size - at % size).min(end - at);
            let place = lookup.place_of(&disk.header, disk.image, cluster)?.at(at % size);
            if !each(Piece { offset: at, length, place, cluster })? {
                break;
            }
            at += length;
        }
        Ok(())
    }

    /// Copies a part of a compressed cluster.
    fn read_compressed(
        &self,
        next: &Next,
        disk: &Disk,
        piece: &Piece,
        (offset, length): (u64, u64),
        buf: &mut [u8],
    ) -> Result<()> {
        let data = self.clusters.get(piece.cluster, || {
            let image = Image { next, client: None };
            disk.header.decompress(&image, offset, length)
        })?;
        let from = (piece.offset % disk.header.cluster_size()) as usize;
        let part = data.get(from..).and_then(|data| data.get(..buf.len()));
        buf.copy_from_slice(part.ok_or_else(|| corrupt(NAME, "a cluster is too short"))?);
        Ok(())
    }
}

/// Bytes that are together in the image and in a client's buffer, to be read in one go.
#[derive(Default)]
struct Run {
    /// In the image.
    at: u64,
    /// In the buffer.
    from: usize,
    length: usize,
}

impl Run {
    fn end(&self) -> u64 {
        self.at + self.length as u64
    }

    /// Reads it into its place of `buf`.
    fn read(&self, next: &Next, disk: &Disk, buf: &mut [u8]) -> Result<()> {
        if self.length == 0 {
            return Ok(());
        }
        if self.end() > disk.image {
            let at = self.at;
            return Err(corrupt(NAME, format!("the image is cut off in a cluster at {at}")));
        }
        next.pread(&mut buf[self.from..][..self.length], self.at)
    }
}

impl OpenLayer for Handle {
    fn prepare(&self, next: &Next, _: bool) -> Result<()> {
        let image = next.size()?;
        let header = Header::read(next, image)?;
        let _ = self.disk.set(Disk { header, image, tables: Tables::new() });
        Ok(())
    }

    fn size(&self, _: &Next) -> Result<u64> {
        Ok(self.disk()?.header.size())
    }

    fn can_write(&self, _: &Next) -> Result<bool> {
        Ok(false)
    }

    fn can_extents(&self, _: &Next) -> Result<bool> {
        Ok(true)
    }

    fn can_multi_conn(&self, _: &Next) -> Result<bool> {
        Ok(true)
    }

    fn can_cache(&self, _: &Next) -> Result<Cache> {
        Ok(Cache::Emulate)
    }

    fn pread(&self, next: &Next, buf: &mut [u8], offset: u64) -> Result<()> {
        let disk = self.disk()?;
        let mut run = Run::default();
        self.pieces(next, buf.len() as u64, offset, |piece| {
            let from = (piece.offset - offset) as usize;
            let length = piece.length as usize;
            match piece.place {
                Place::At(at) if run.length > 0 && at == run.end() => {
                    run.length += length;
                    return Ok(true);
                }
                Place::At(at) => {
                    let before = std::mem::replace(&mut run, Run { at, from, length });
                    before.read(next, disk, buf)?;
                    return Ok(true);
                }
                Place::Nowhere => buf[from..][..length].fill(0),
                Place::Compressed { offset, length: compressed } => {
                    let buf = &mut buf[from..][..length];
                    self.read_compressed(next, disk, &piece, (offset, compressed), buf)?;
                }
            }
            std::mem::take(&mut run).read(next, disk, buf)?;
            Ok(true)
        })?;
        run.read(next, disk, buf)
    }

    fn extents(
        &self,
        next: &Next,
        count: u64,
        offset: u64,
        flags: Flags,
        extents: &mut Extents,
    ) -> Result<()> {
        let mut looked_at = 0;
        let mut first = None;
        self.pieces(next, count, offset, |piece| {
            let is_zero = matches!(piece.place, Place::Nowhere);
            if flags.contains(Flags::REQ_ONE) && *first.get_or_insert(is_zero) != is_zero {
                return Ok(false);
            }
            let kind = if is_zero { ExtentKind::SPARSE } else { ExtentKind::DATA };
            extents.add(piece.offset, piece.length, kind)?;
            looked_at += 1;
            Ok(looked_at < MOST_CLUSTERS)
        })
    }
}

#[cfg(test)]
mod tests;
