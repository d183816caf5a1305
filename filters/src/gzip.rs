//! nbdkit-gzip-filter(1): serves what a gzip file decompresses to, from a temporary file, or, if it
//! is too large for one, from points in the middle of the file.

mod members;

use std::cell::Cell;
use std::io::{self, BufRead, BufReader, Write};

use flate2::Crc;
use nbdkit_api::Result;

use self::members::{Counted, MAGIC, Sink};
use crate::compressed::blocks::{Block, Image};
use crate::compressed::expansion::{self, Format};
use crate::compressed::points::{Disk, Start};
use crate::compressed::{corrupt, reader};

const NAME: &str = "gzip";

/// RFC 1952, 2.2: a file is members one after the other.
pub(crate) struct Members;

impl Format for Members {
    const NAME: &'static str = NAME;
    const LONGNAME: &'static str = "nbdkit gzip filter";
    const MAX_EXPAND: Option<&'static str> = Some("gzip-max-expand");

    fn expand(image: &mut dyn BufRead, disk: &mut Disk<'_>) -> io::Result<u64> {
        expand(NAME, image, disk)
    }

    fn decode(image: &Image<'_>, block: &Block, window: &[u8]) -> Result<Vec<u8>> {
        decode(NAME, image, block, window)
    }
}

/// [`Format::expand`] of the filter `name`.
pub(crate) fn expand(name: &str, image: &mut dyn BufRead, disk: &mut Disk<'_>) -> io::Result<u64> {
    let count = Cell::new(0);
    let mut image = Counted { inner: image, count: &count };
    let mut end = 0;
    expansion::members(name, &MAGIC, &mut image, |member| {
        if disk.is_due() {
            // Where its magic begins, which has been read.
            let at = count.get() - MAGIC.len() as u64;
            disk.point(at, Start::Member, &[]).map_err(io::Error::other)?;
        }
        members::member(member, &mut Indexed { disk, count: &count })?;
        end = count.get();
        Ok(())
    })?;
    Ok(end)
}

/// [`Format::decode`] of the filter `name`.
pub(crate) fn decode(
    name: &str,
    image: &Image<'_>,
    block: &Block,
    window: &[u8],
) -> Result<Vec<u8>> {
    let (start, sum) = Start::of(block);
    let part = image.stream(block.offset, block.offset + block.length);
    let size = usize::try_from(block.size).unwrap_or(usize::MAX);
    let mut part = BufReader::with_capacity(reader::CHUNK, part);
    let mut taken = Taken { data: reader::buffer(name, block.size)?, size };
    members::from_point(&mut part, start, window, &mut taken)
        .map_err(|error| reader::decoder_error(name, error))?;
    let mut found = Crc::new();
    found.update(&taken.data);
    if found.sum() != sum {
        return Err(corrupt(name, "the file is not what it was when its index was made"));
    }
    Ok(taken.data)
}

/// The disk, and how much of the image has been read.
struct Indexed<'a, 'd> {
    disk: &'a mut Disk<'d>,
    count: &'a Cell<u64>,
}

impl Sink for Indexed<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.disk.write_all(bytes)
    }

    fn is_due(&self) -> bool {
        self.disk.is_due()
    }

    fn point(&mut self, start: Start, window: &[u8]) -> io::Result<()> {
        self.disk.point(self.count.get(), start, window).map_err(io::Error::other)
    }
}

/// The first bytes.
struct Taken {
    data: Vec<u8>,
    size: usize,
}

impl Sink for Taken {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let count = bytes.len().min(self.size - self.data.len());
        self.data.extend(&bytes[..count]);
        Ok(())
    }

    fn is_full(&self) -> bool {
        self.data.len() == self.size
    }
}

#[cfg(test)]
pub(crate) mod tests;
