//! The header of a qcow2 image, and the compression that it chooses. Source: docs/interop/qcow2.rst
//! of QEMU.

use std::io::Read;

use nbdkit_api::{Next, Result};

use super::NAME;
use crate::compressed::blocks::Image;
use crate::compressed::{corrupt, reader};

/// The largest cluster, bytes.
pub(super) const MAX_CLUSTER: u64 = 1 << 21;

const MAGIC: u32 = 0x5146_49fb;
/// Bytes of a header of version 2.
const LENGTH_2: u64 = 72;
/// Bytes of the fields of version 3 that are read here; the last is the compression type, which
/// older images have not.
const LENGTH_3: u64 = 104;
const LENGTH_WITH_COMPRESSION: u64 = 105;

/// Incompatible features: what would be wrong is only which clusters are free.
const DIRTY: u64 = 1 << 0;
/// The compression type is not deflate.
const COMPRESSION: u64 = 1 << 3;
const NAMES: [(u64, &str); 3] = [
    (1 << 1, "is marked as corrupt"),
    (1 << 2, "has its data in another file"),
    (1 << 4, "has extended L2 entries"),
];

/// How clusters are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    Deflate,
    Zstd,
}

/// What the header says, checked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    version: u32,
    cluster_bits: u32,
    size: u64,
    l1_offset: u64,
    compression: Compression,
}

impl Header {
    /// Reads and checks the header of an image of `image` bytes.
    ///
    /// # Errors
    /// EIO: this is no image, or one that has what is not supported; those of the layer below.
    pub(super) fn read(next: &Next, image: u64) -> Result<Header> {
        let mut bytes = [0; 112];
        let length = image.min(bytes.len() as u64);
        next.pread(&mut bytes[..length as usize], 0)?;
        Header::parse(&bytes, image)
    }

    fn parse(bytes: &[u8; 112], image: u64) -> Result<Header> {
        let refuse = |why: &str| Err(corrupt(NAME, why));
        let word = |at: usize| u32::from_be_bytes(std::array::from_fn(|i| bytes[at + i]));
        let long = |at: usize| u64::from_be_bytes(std::array::from_fn(|i| bytes[at + i]));
        if image < LENGTH_2 || word(0) != MAGIC {
            return refuse("the plugin does not have a qcow2 image");
        }
        let version = word(4);
        if !matches!(version, 2 | 3) {
            return refuse(&format!("qcow2 version {version} is not supported, only 2 and 3"));
        }
        let cluster_bits = word(20);
        if !(9..=21).contains(&cluster_bits) {
            return refuse(&format!("clusters of 2^{cluster_bits} bytes: must be 2^9 to 2^21"));
        }
        if long(8) != 0 {
            return refuse("images with a backing file are not supported");
        }
        if word(32) != 0 {
            return refuse("encrypted images are not supported");
        }
        let length = if version == 2 { LENGTH_2 } else { u64::from(word(100)) };
        if version == 3 && (length < LENGTH_3 || !length.is_multiple_of(8) || length > image) {
            return refuse(&format!("a header of {length} bytes"));
        }
        let features = if version == 2 { 0 } else { long(72) };
        for (bit, what) in NAMES {
            if features & bit != 0 {
                return refuse(&format!("the image {what}: not supported"));
            }
        }
        let unknown = features & !(DIRTY | COMPRESSION);
        if unknown != 0 {
            return refuse(&format!("incompatible features {unknown:#x} are not supported"));
        }
        let chosen = features & COMPRESSION != 0 && length >= LENGTH_WITH_COMPRESSION;
        let compression = match if chosen { bytes[104] } else { 0 } {
            0 => Compression::Deflate,
            1 => Compression::Zstd,
            other => return refuse(&format!("compression type {other} is not supported")),
        };
        let header =
            Header { version, cluster_bits, size: long(24), l1_offset: long(40), compression };
        header.check_size(u64::from(word(36)), image)?;
        Ok(header)
    }

    /// Checks that the L1 table is there for all of the disk.
    fn check_size(&self, entries: u64, image: u64) -> Result<()> {
        let refuse = |why: &str| Err(corrupt(NAME, why));
        if i64::try_from(self.size).is_err() {
            return refuse("a disk of more than 2^63 - 1 bytes");
        }
        let needed = self.size.div_ceil(self.cluster_size()).div_ceil(self.entries());
        if needed > entries {
            return refuse(&format!("an L1 table of {entries} entries where {needed} are needed"));
        }
        let end = (needed * 8).checked_add(self.l1_offset);
        let is_within = end.is_some_and(|end| end <= image);
        if needed > 0 && !(is_within && self.is_cluster(self.l1_offset)) {
            return refuse(&format!("the L1 table cannot be at {}", self.l1_offset));
        }
        Ok(())
    }

    /// Whether a cluster, not the first, begins at this offset of the image.
    pub(super) fn is_cluster(&self, offset: u64) -> bool {
        offset != 0 && offset.is_multiple_of(self.cluster_size())
    }

    /// Bytes of a cluster, and of an L2 table.
    pub(super) fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    pub(super) fn cluster_bits(&self) -> u32 {
        self.cluster_bits
    }

    /// Entries of an L2 table.
    pub(super) fn entries(&self) -> u64 {
        self.cluster_size() / 8
    }

    /// Bytes of the disk.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    pub(super) fn l1_offset(&self) -> u64 {
        self.l1_offset
    }

    /// Whether entries have a bit that says that the cluster reads as zeroes.
    pub(super) fn has_zero_flag(&self) -> bool {
        self.version >= 3
    }

    /// Decompresses the cluster that is in `length` bytes of the image at `offset`, the last of
    /// which may not belong to it.
    ///
    /// # Errors
    /// EIO: it does not make a whole cluster; those of the layer below.
    pub(super) fn decompress(
        &self,
        image: &Image<'_>,
        offset: u64,
        length: u64,
    ) -> Result<Vec<u8>> {
        let mut compressed = reader::buffer(NAME, length)?;
        compressed.resize(length as usize, 0);
        image.read(&mut compressed, offset)?;
        let mut cluster = reader::buffer(NAME, self.cluster_size())?;
        cluster.resize(self.cluster_size() as usize, 0);
        match self.compression {
            Compression::Deflate => {
                flate2::read::DeflateDecoder::new(&*compressed).read_exact(&mut cluster)
            }
            Compression::Zstd => zstd::Decoder::with_buffer(&*compressed).and_then(|decoder| {
                let mut decoder = decoder.single_frame();
                // A window is not larger than what is compressed.
                decoder.window_log_max(WINDOW_BITS)?;
                decoder.read_exact(&mut cluster)
            }),
        }
        .map_err(|error| corrupt(NAME, format!("a compressed cluster at {offset}: {error}")))?;
        Ok(cluster)
    }
}

/// Of zstd: the largest cluster, and what zstd rounds up to.
const WINDOW_BITS: u32 = 23;
