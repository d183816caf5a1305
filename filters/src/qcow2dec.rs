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

    /// Calls `each` with a range's parts, one for each cluster, while that returns true. Without
    /// `next`, the tables have to be kept.
    fn pieces(
        &self,
        next: Option<&Next>,
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
        copy_part(disk, &data, piece, buf)
    }
}

/// Copies a part of a cluster, whose bytes are `data`.
fn copy_part(disk: &Disk, data: &[u8], piece: &Piece, buf: &mut [u8]) -> Result<()> {
    let from = (piece.offset % disk.header.cluster_size()) as usize;
    let part = data.get(from..).and_then(|data| data.get(..buf.len()));
    buf.copy_from_slice(part.ok_or_else(|| corrupt(NAME, "a cluster is too short"))?);
    Ok(())
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

    /// Adds a cluster's part, if it comes next in the image and in the buffer.
    fn extend(&mut self, at: u64, from: usize, length: usize) -> bool {
        let fits = self.length > 0 && at == self.end() && from == self.from + self.length;
        if fits {
            self.length += length;
        }
        fits
    }

    /// Its part of `buf`.
    ///
    /// # Errors
    /// EIO: it is not within the image.
    fn part<'a>(&self, disk: &Disk, buf: &'a mut [u8]) -> Result<&'a mut [u8]> {
        if self.end() > disk.image {
            let at = self.at;
            return Err(corrupt(NAME, format!("the image is cut off in a cluster at {at}")));
        }
        Ok(&mut buf[self.from..][..self.length])
    }

    fn read(&self, next: &Next, disk: &Disk, buf: &mut [u8]) -> Result<()> {
        if self.length == 0 { Ok(()) } else { next.pread(self.part(disk, buf)?, self.at) }
    }

    fn try_read(&self, next: &Next, disk: &Disk, buf: &mut [u8]) -> Option<Result<()>> {
        if self.length == 0 {
            return Some(Ok(()));
        }
        match self.part(disk, buf) {
            Ok(part) => next.try_pread(part, self.at),
            Err(error) => Some(Err(error)),
        }
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
        self.pieces(Some(next), buf.len() as u64, offset, |piece| {
            let from = (piece.offset - offset) as usize;
            let length = piece.length as usize;
            match piece.place {
                Place::At(at) if run.extend(at, from, length) => return Ok(true),
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

    /// By tables and compressed clusters that are kept, and one read of the image. Errors are left
    /// to `pread`.
    fn try_pread(&self, next: &Next, buf: &mut [u8], offset: u64) -> Option<Result<()>> {
        let disk = self.disk().ok()?;
        let mut run = Run::default();
        let mut is_found = true;
        let walked = self.pieces(None, buf.len() as u64, offset, |piece| {
            let from = (piece.offset - offset) as usize;
            let length = piece.length as usize;
            is_found = match piece.place {
                Place::At(at) if run.length == 0 => {
                    run = Run { at, from, length };
                    true
                }
                Place::At(at) => run.extend(at, from, length),
                Place::Nowhere => {
                    buf[from..][..length].fill(0);
                    true
                }
                Place::Compressed { .. } => match self.clusters.kept(piece.cluster) {
                    Some(data) => {
                        copy_part(disk, &data, &piece, &mut buf[from..][..length])?;
                        true
                    }
                    None => false,
                },
            };
            Ok(is_found)
        });
        if walked.is_ok() && is_found { run.try_read(next, disk, buf) } else { None }
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
        self.pieces(Some(next), count, offset, |piece| {
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
