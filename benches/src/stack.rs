//! Stacks with filters, and the images that they serve.
#![forbid(unsafe_code)]

/// Filters on the file plugin.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Stack {
    /// Outermost first.
    pub(crate) filters: &'static [&'static str],
    pub(crate) image: Image,
    pub(crate) parameters: &'static [&'static str],
}

/// Where the bytes that clients see are in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Image {
    Raw,
    /// In the first partition, from 1 MiB on.
    Partitioned,
    Luks,
    Xz,
    Gzip,
    Qcow2,
    /// The same, every cluster compressed.
    CompressedQcow2,
}

pub(crate) const OFFSET: Stack = Stack {
    filters: &["offset"],
    image: Image::Partitioned,
    parameters: &["offset=1M", "range=64M"],
};
pub(crate) const PARTITION: Stack =
    Stack { filters: &["partition"], image: Image::Partitioned, parameters: &["partition=1"] };
pub(crate) const BLOCKSIZE: Stack =
    Stack { filters: &["blocksize"], image: Image::Raw, parameters: &["minblock=512"] };
/// Nothing is in the cache.
pub(crate) const CACHE_MISS: Stack =
    Stack { filters: &["cache"], image: Image::Raw, parameters: &[] };
/// Everything is, after the first reads.
pub(crate) const CACHE_HIT: Stack =
    Stack { filters: &["cache"], image: Image::Raw, parameters: &["cache-on-read=true"] };
pub(crate) const COW: Stack = Stack { filters: &["cow"], image: Image::Raw, parameters: &[] };
/// Over a plugin of which each read takes a millisecond.
pub(crate) const READAHEAD: Stack =
    Stack { filters: &["readahead", "delay"], image: Image::Raw, parameters: &["rdelay=1ms"] };
pub(crate) const LUKS: Stack =
    Stack { filters: &["luks"], image: Image::Luks, parameters: &["passphrase=bench"] };
pub(crate) const XZ: Stack = Stack { filters: &["xz"], image: Image::Xz, parameters: &[] };
pub(crate) const GZIP: Stack = Stack { filters: &["gzip"], image: Image::Gzip, parameters: &[] };
pub(crate) const QCOW2: Stack =
    Stack { filters: &["qcow2dec"], image: Image::Qcow2, parameters: &[] };
pub(crate) const COMPRESSED_QCOW2: Stack =
    Stack { filters: &["qcow2dec"], image: Image::CompressedQcow2, parameters: &[] };
