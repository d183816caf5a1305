//! nbdkit-vmdk-plugin(1): the disk in a VMDK image, which is only read. Nbdkitd's own.
//!
//! An image is a text, the descriptor, that lists extents one behind the other: files of the same
//! directory with the bytes of the disk as they are (flat) or with those that were written
//! (sparse), or zeroes. Or it is one sparse extent with the descriptor in it.
//!
//! Source of all that is below: "Virtual Disk Format 5.0", VMware's technical note. Sectors have
//! 512 bytes; numbers are little-endian.

#![forbid(unsafe_code)]

mod descriptor;
#[cfg(any(test, feature = "fuzz"))]
mod example;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod fuzz;
mod grain;
mod sparse;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use nbdkit_api::paths::{self, Declared};
use nbdkit_api::{BlockCache, Errno, Error, Result};

use crate::disk_image::source::{self, Part, Source};
use crate::disk_image::{DiskImage, Format, Map};
use crate::files::{File, Files};
use descriptor::{Content, Described};
use sparse::{Header, Sparse};

/// The plugin.
pub(crate) type Vmdk = DiskImage<Images>;

/// Bytes of a sector.
const SECTOR: u64 = 512;

/// Images of VMware.
#[derive(Debug, Default)]
pub(crate) struct Images;

impl Format for Images {
    const NAME: &'static str = "vmdk";
    const LONGNAME: &'static str = "nbdkit VMDK plugin";
    const HELP: &'static str =
        "[file=]<FILENAME>     (required) The VMDK image to serve, or its descriptor.";
    const MEMORY: u64 = source::MEMORY + grain::MEMORY;
    type Map = Disk<Part>;

    fn parts(image: &Part, path: &Path) -> Result<Vec<Declared>> {
        let Image { extents, is_extent } = Image::read(image)?;
        if is_extent {
            return Ok(Vec::new());
        }
        let names: BTreeSet<_> = extents.iter().filter_map(|it| it.content.name()).collect();
        let mut parts = Vec::new();
        for name in names {
            let part = path.with_file_name(OsStr::from_bytes(name));
            // Who unpacks an image that came from elsewhere does not mean to serve files of
            // others.
            let metadata = std::fs::symlink_metadata(&part);
            if metadata.is_ok_and(|metadata| metadata.is_symlink()) {
                let name = name.escape_ascii();
                return Err(bad(format_args!("its extent {name} is a symbolic link")));
            }
            parts.push(Declared::file(part).read_only(true));
        }
        Ok(parts)
    }

    fn open(image: Part, parts: &[Declared]) -> Result<Disk<Part>> {
        let declared = parts.to_vec();
        let open = move |number: usize| paths::open(&declared[number], None, true);
        let files = Arc::new(Files::on_demand(parts.len(), open));
        let name = |part: &Declared| part.path.file_name().map(OsStr::to_owned);
        let numbers: BTreeMap<_, _> = parts.iter().map(name).zip(0..).collect();
        Disk::of(&image, |name| {
            let number = numbers.get(&Some(OsStr::from_bytes(name).to_owned()));
            let number = number.ok_or_else(|| {
                bad("its descriptor has files that it had not when the server started")
            })?;
            Ok(Part::of(&files, *number))
        })
    }
}

/// What an image says of its extents.
struct Image {
    extents: Vec<Described>,
    /// It is itself the only one.
    is_extent: bool,
}

impl Image {
    fn read(image: &impl Source) -> Result<Image> {
        let size = image.size()?;
        let Some(header) = Header::read(image, size)? else {
            let text = descriptor::read(image, 0, size)?;
            return Ok(Image { extents: descriptor::parse(&text)?, is_extent: false });
        };
        let Some((offset, length)) = header.descriptor else {
            return Err(bad("it is one extent of a disk: serve the descriptor of that"));
        };
        let text = descriptor::read(image, offset, length)?;
        // It names the image as it was called when it was made.
        let listed = descriptor::parse(&text)?;
        if listed.len() != 1 {
            return Err(bad("it has a descriptor with other extents than itself"));
        }
        let content = Content::Sparse { name: Vec::new() };
        Ok(Image { extents: vec![Described { length: header.capacity, content }], is_extent: true })
    }
}

/// The disk in an image.
pub(crate) struct Disk<S> {
    extents: Vec<Extent<S>>,
    /// Bytes of the disk.
    size: u64,
    /// Of all sparse extents.
    pages: Arc<BlockCache>,
    /// Grains that were decompressed, by where they begin on the disk.
    grains: BlockCache,
}

struct Extent<S> {
    /// Of the disk, bytes.
    start: u64,
    length: u64,
    /// For messages.
    name: String,
    bytes: Bytes<S>,
}

/// Where the bytes of an extent are.
enum Bytes<S> {
    Zeroes,
    /// In a file from this offset on.
    Flat(S, u64),
    /// In a file that is looked at when the extent is first used.
    Sparse(S, OnceLock<Sparse<S>>),
}

/// Where bytes of the disk are, by the number of the extent.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Place {
    /// At this offset of its file.
    Plain { extent: usize, offset: u64 },
    /// In a compressed grain that is at this offset of its file.
    Grain { extent: usize, offset: u64, within: u64, start: u64 },
}

impl<S: Source + Clone> Disk<S> {
    /// The disk in `image`, with the further files that `part` finds by their names.
    ///
    /// # Errors
    /// EINVAL: it is no VMDK image, or one that cannot be read. Those of the source and of `part`.
    pub(crate) fn of(image: &S, part: impl Fn(&[u8]) -> Result<S>) -> Result<Disk<S>> {
        let Image { extents: described, is_extent } = Image::read(image)?;
        let part = |name: &[u8]| if is_extent { Ok(image.clone()) } else { part(name) };
        let (mut extents, mut size) = (Vec::new(), 0_u64);
        for Described { length, content } in described {
            let name = content.name().unwrap_or_default().escape_ascii().to_string();
            let bytes = match &content {
                Content::Zeroes => Bytes::Zeroes,
                Content::Flat { name, offset } => Bytes::Flat(part(name)?, *offset),
                Content::Sparse { name } => Bytes::Sparse(part(name)?, OnceLock::new()),
            };
            extents.push(Extent { start: size, length, name, bytes });
            let end = size.checked_add(length).filter(|end| i64::try_from(*end).is_ok());
            size = end.ok_or_else(|| bad("a disk of more than 2^63 - 1 bytes"))?;
        }
        Ok(Disk { extents, size, pages: source::pages(), grains: grain::cache() })
    }

    /// A sparse extent, which is opened if it is not.
    fn sparse<'a>(
        &self,
        number: usize,
        source: &S,
        slot: &'a OnceLock<Sparse<S>>,
    ) -> Result<&'a Sparse<S>> {
        if let Some(sparse) = slot.get() {
            return Ok(sparse);
        }
        let sparse = Sparse::of(source.clone(), number, &self.pages)?;
        let length = self.extents[number].length;
        if sparse.capacity() < length {
            return Err(bad(format_args!("it has less than the {length} bytes of the extent")));
        }
        // Another thread may have been first.
        Ok(slot.get_or_init(|| sparse))
    }

    /// As [`Map::find`], of one extent, whose length is not exceeded.
    fn find_in(&self, number: usize, at: u64, count: u64) -> Result<(Option<Place>, u64)> {
        match &self.extents[number].bytes {
            Bytes::Zeroes => Ok((None, count)),
            Bytes::Flat(source, offset) => {
                if source.file().is_none() {
                    // Opens it, so that its holes are known.
                    source.size()?;
                }
                Ok((Some(Place::Plain { extent: number, offset: offset + at }), count))
            }
            Bytes::Sparse(source, slot) => {
                let sparse = self.sparse(number, source, slot)?;
                let (offset, count) = sparse.find(at, count)?;
                let place = offset.map(|offset| {
                    let within = at % sparse.grain();
                    if sparse.is_compressed() {
                        let start = at - within;
                        Place::Grain { extent: number, offset: offset - within, within, start }
                    } else {
                        Place::Plain { extent: number, offset }
                    }
                });
                Ok((place, count))
            }
        }
    }

    /// The extent that has this byte of the disk.
    fn extent_of(&self, at: u64) -> (usize, &Extent<S>) {
        let number = self.extents.partition_point(|extent| extent.start + extent.length <= at);
        (number, &self.extents[number])
    }
}

impl<S> Extent<S> {
    fn in_it(&self, why: Error) -> Error {
        if self.name.is_empty() { why } else { why.context(&self.name) }
    }
}

impl<S: Source + Clone> Map for Disk<S> {
    type Place = Place;

    fn size(&self) -> u64 {
        self.size
    }

    fn check(&self) -> Result<()> {
        for (number, extent) in self.extents.iter().enumerate() {
            let checked = match &extent.bytes {
                Bytes::Zeroes => Ok(()),
                Bytes::Sparse(source, slot) => self.sparse(number, source, slot).map(drop),
                Bytes::Flat(source, offset) => source.size().and_then(|size| {
                    if offset.checked_add(extent.length).is_none_or(|end| end > size) {
                        let length = extent.length;
                        let why = format_args!("it has less than {length} bytes at {offset}");
                        return Err(bad(why));
                    }
                    Ok(())
                }),
            };
            checked.map_err(|why| extent.in_it(why))?;
        }
        Ok(())
    }

    fn find(&self, at: u64, count: u64) -> Result<(Option<Place>, u64)> {
        let (number, extent) = self.extent_of(at);
        let within = at - extent.start;
        let found = self.find_in(number, within, count.min(extent.length - within));
        found.map_err(|why| extent.in_it(why))
    }

    fn read(&self, buf: &mut [u8], place: Place) -> Result<()> {
        match place {
            Place::Plain { extent, offset } => match &self.extents[extent].bytes {
                Bytes::Flat(source, _) | Bytes::Sparse(source, _) => source.read(buf, offset),
                Bytes::Zeroes => Err(Error::silent(Errno::EIO)),
            },
            Place::Grain { extent: number, offset, within, start } => {
                let extent = &self.extents[number];
                let Bytes::Sparse(source, slot) = &extent.bytes else {
                    return Err(Error::silent(Errno::EIO));
                };
                let sparse = self.sparse(number, source, slot)?;
                let grain = self.grains.get(extent.start + start, || {
                    let least = sparse.grain().min(extent.length - start);
                    grain::decompress(sparse.image(), offset, sparse.grain(), least)
                });
                let grain = grain.map_err(|why| extent.in_it(why))?;
                buf.copy_from_slice(&grain[within as usize..][..buf.len()]);
                Ok(())
            }
        }
    }

    fn file_at(&self, at: u64, count: u64) -> Option<(&File, u64)> {
        let (_, extent) = self.extent_of(at);
        let within = at - extent.start;
        let Bytes::Flat(source, offset) = &extent.bytes else { return None };
        let is_within = within.checked_add(count).is_some_and(|end| end <= extent.length);
        Some((source.file().filter(|_| is_within)?, offset + within))
    }
}

#[cfg(any(test, feature = "fuzz"))]
impl<S: Source + Clone> Disk<S> {
    /// Whether any of the sparse extents that were looked at is compressed.
    fn is_compressed(&self) -> bool {
        let sparse = |extent: &Extent<S>| match &extent.bytes {
            Bytes::Sparse(_, slot) => slot.get().is_some_and(Sparse::is_compressed),
            Bytes::Zeroes | Bytes::Flat(..) => false,
        };
        self.extents.iter().any(sparse)
    }
}

fn bad(why: impl std::fmt::Display) -> Error {
    Error::new(Errno::EINVAL, format!("bad VMDK image: {why}"))
}

#[cfg(test)]
mod tests;
