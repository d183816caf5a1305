//! What an expression evaluates to: a sparse image that shares its parts, so that repeating,
//! slicing and naming cost nothing until the bytes are written to the disk.
//!
//! Runs in the template. The expressions may describe far more than the machine can hold
//! (`((1)*1000000)*1000000`); [`Image::cost`] tells beforehand.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use nbdkit_api::{Error, Result};

use super::source::File;

/// Largest disk, bytes.
pub(super) const MAX_SIZE: u64 = i64::MAX as u64;
/// Parts of an image that are copied into another one rather than referred to.
const INLINE: usize = 8;
/// Images within images. Reading and dropping recurse this deep.
const MAX_DEPTH: u32 = 400;
/// What storing a single byte costs: a page.
const PAGE: u64 = 4096;

/// `size` bytes: zeroes, but for the segments.
#[derive(Debug, Default)]
pub(super) struct Image {
    size: u64,
    /// By offset, not overlapping, none empty.
    segments: BTreeMap<u64, Segment>,
    depth: u32,
    cost: OnceCell<u64>,
}

#[derive(Debug, Clone)]
struct Segment {
    length: u64,
    /// Where in the content it begins.
    from: u64,
    content: Content,
}

#[derive(Debug, Clone)]
pub(super) enum Content {
    Bytes(Rc<Vec<u8>>),
    /// The same byte, not zero, for ever.
    Fill(u8),
    /// A regular file.
    File(Rc<File>),
    /// An image, not empty, repeated for ever.
    Tile(Rc<Image>),
}

impl Image {
    /// An image of the first `length` bytes of `content`.
    pub(super) fn of(content: Content, length: u64) -> Image {
        let mut image = Image::default();
        image.put_segment(0, Segment { length, from: 0, content });
        image
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Makes the image at least `size` bytes long.
    pub(super) fn extend_to(&mut self, size: u64) {
        self.size = self.size.max(size);
    }

    /// Puts bytes `from .. from + length` of `image` at `at`, over what is there. The ranges must
    /// have been checked: `from + length` against the image, `at + length` against [`MAX_SIZE`].
    pub(super) fn put(&mut self, at: u64, image: &Rc<Image>, from: u64, length: u64) -> Result<()> {
        self.extend_to(at + length);
        self.erase(at, length);
        if length == 0 || image.segments.is_empty() {
            return Ok(());
        }
        let end = from + length;
        if image.overlapping(from, end).take(INLINE + 1).count() > INLINE {
            self.depth = self.depth.max(image.depth + 1);
            if self.depth > MAX_DEPTH {
                return Err(Error::msg(format!(
                    "data parameter: images are nested more than {MAX_DEPTH} levels deep"
                )));
            }
            let content = Content::Tile(Rc::clone(image));
            self.segments.insert(at, Segment { length, from, content });
            return Ok(());
        }
        self.depth = self.depth.max(image.depth);
        for (start, segment) in image.overlapping(from, end) {
            let cut = from.saturating_sub(start);
            let part = segment.part(cut, (end - start).min(segment.length) - cut);
            self.put_segment(at + (start + cut - from), part);
        }
        Ok(())
    }

    fn put_segment(&mut self, at: u64, segment: Segment) {
        self.extend_to(at + segment.length);
        self.erase(at, segment.length);
        if segment.length > 0 && !segment.is_zero() {
            self.segments.insert(at, segment);
        }
    }

    /// Turns a range into zeroes.
    fn erase(&mut self, at: u64, length: u64) {
        let end = at + length;
        if let Some((&start, before)) = self.segments.range_mut(..at).next_back()
            && start + before.length > at
        {
            let before_end = start + before.length;
            let tail = (before_end > end).then(|| before.part(end - start, before_end - end));
            before.length = at - start;
            if let Some(tail) = tail {
                self.segments.insert(end, tail);
            }
        }
        while let Some((&start, _)) = self.segments.range(at..end).next() {
            if let Some(segment) = self.segments.remove(&start)
                && start + segment.length > end
            {
                let cut = end - start;
                self.segments.insert(end, segment.part(cut, segment.length - cut));
            }
        }
    }

    /// The segments that have bytes in `from .. to`, with their offsets.
    fn overlapping(&self, from: u64, to: u64) -> impl Iterator<Item = (u64, &Segment)> {
        let first = match self.segments.range(..=from).next_back() {
            Some((&start, segment)) if start + segment.length > from => start,
            _ => from,
        };
        self.segments.range(first..to.max(first)).map(|(&start, segment)| (start, segment))
    }

    /// Bytes `from .. to` of `image`, which must be in range.
    pub(super) fn slice(image: &Rc<Image>, from: u64, to: u64) -> Result<Image> {
        let mut slice = Image::default();
        slice.put(0, image, from, to - from)?;
        Ok(slice)
    }

    /// `image`, `count` times.
    ///
    /// # Errors
    /// The result would be larger than a disk can be.
    pub(super) fn repeat(image: &Rc<Image>, count: u64) -> Result<Image> {
        let size =
            image.size.checked_mul(count).filter(|&size| size <= MAX_SIZE).ok_or_else(|| {
                Error::msg(format!("data parameter: {} bytes * {count} overflows", image.size))
            })?;
        let mut repeated = Image::default();
        repeated.extend_to(size);
        if size == 0 || image.segments.is_empty() {
            return Ok(repeated);
        }
        // A byte, or something repeated before, need not be wrapped once more.
        if let Some((0, only)) = image.segments.iter().next().map(|(&start, s)| (start, s))
            && only.length == image.size
            && let Some(content) = only.repeated()
        {
            repeated.depth = image.depth;
            repeated.segments.insert(0, Segment { length: size, from: 0, content });
            return Ok(repeated);
        }
        repeated.depth = image.depth + 1;
        if repeated.depth > MAX_DEPTH {
            return Err(Error::msg(format!(
                "data parameter: images are nested more than {MAX_DEPTH} levels deep"
            )));
        }
        let content = Content::Tile(Rc::clone(image));
        repeated.segments.insert(0, Segment { length: size, from: 0, content });
        Ok(repeated)
    }

    /// Fills `buf` from `at`; beyond the end there are zeroes.
    ///
    /// # Errors
    /// A file cannot be read.
    pub(super) fn read(&self, buf: &mut [u8], at: u64) -> Result<()> {
        buf.fill(0);
        let end = at + buf.len() as u64;
        for (start, segment) in self.overlapping(at, end) {
            let skipped = at.saturating_sub(start);
            let stop = (start + segment.length).min(end);
            // Within `buf`, hence within usize.
            let place = (start + skipped - at) as usize..(stop - at) as usize;
            segment.read(&mut buf[place], skipped)?;
        }
        Ok(())
    }

    /// The first offset from `at` on where there may be something other than zeroes.
    pub(super) fn next_data(&self, at: u64) -> Option<u64> {
        self.overlapping(at, self.size).find_map(|(start, segment)| {
            let skipped = at.saturating_sub(start);
            segment.next_data(skipped).map(|found| start + found)
        })
    }

    /// About how many bytes it takes to store the image sparsely. Never too little by more than the
    /// rounding to pages.
    pub(super) fn cost(&self) -> u64 {
        *self.cost.get_or_init(|| {
            let parts = self.segments.values().map(Segment::cost);
            parts.fold(0, u64::saturating_add).min(self.size.max(PAGE))
        })
    }
}

impl Segment {
    fn part(&self, skip: u64, length: u64) -> Segment {
        let from = match &self.content {
            Content::Bytes(_) | Content::File(_) => self.from + skip,
            Content::Fill(_) => 0,
            Content::Tile(image) => (self.from + skip) % image.size,
        };
        Segment { length, from, content: self.content.clone() }
    }

    fn is_zero(&self) -> bool {
        match &self.content {
            // Both bounds fit the vector that the segment was made for.
            Content::Bytes(bytes) => bytes[self.from as usize..(self.from + self.length) as usize]
                .iter()
                .all(|&b| b == 0),
            Content::Fill(byte) => *byte == 0,
            Content::File(_) => false,
            Content::Tile(image) => image.segments.is_empty(),
        }
    }

    /// What this segment repeated for ever is, if that is simpler than a tile around it.
    fn repeated(&self) -> Option<Content> {
        match &self.content {
            Content::Fill(byte) => Some(Content::Fill(*byte)),
            Content::Bytes(bytes) if self.length == 1 => {
                Some(Content::Fill(bytes[self.from as usize]))
            }
            Content::Tile(image) if self.from == 0 && self.length.is_multiple_of(image.size) => {
                Some(self.content.clone())
            }
            _ => None,
        }
    }

    /// Fills `out` from byte `at` of the segment; the range lies within it.
    fn read(&self, out: &mut [u8], at: u64) -> Result<()> {
        let from = self.from + at;
        match &self.content {
            Content::Bytes(bytes) => {
                out.copy_from_slice(&bytes[from as usize..from as usize + out.len()]);
            }
            Content::Fill(byte) => out.fill(*byte),
            Content::File(file) => file.read(out, from)?,
            Content::Tile(image) => read_tile(image, out, from % image.size)?,
        }
        Ok(())
    }

    fn next_data(&self, at: u64) -> Option<u64> {
        let found = match &self.content {
            Content::Bytes(_) | Content::Fill(_) => at,
            Content::File(file) => file.next_data(self.from + at)?.checked_sub(self.from)?,
            Content::Tile(image) => {
                let phase = (self.from + at) % image.size;
                match image.next_data(phase) {
                    Some(found) => at + (found - phase),
                    None => at.checked_add(image.size - phase + image.next_data(0)?)?,
                }
            }
        };
        (found < self.length).then_some(found)
    }

    fn cost(&self) -> u64 {
        match &self.content {
            Content::Bytes(_) | Content::Fill(_) => self.length.max(PAGE),
            Content::File(file) => file.allocated().clamp(PAGE, self.length.max(PAGE)),
            Content::Tile(image) => {
                let tiles = self.length.div_ceil(image.size);
                image.cost().saturating_mul(tiles).min(self.length.max(PAGE))
            }
        }
    }
}

/// Fills `out` with `image` over and over, beginning `phase` bytes into it.
fn read_tile(image: &Image, out: &mut [u8], phase: u64) -> Result<()> {
    let mut filled = 0;
    let mut phase = phase;
    while filled < out.len() {
        // One period stands behind us: what follows is a copy of it.
        if filled as u64 >= image.size {
            let period = image.size as usize;
            while filled < out.len() {
                // A whole number of periods, so that every copy begins where the last one did.
                let length = (filled - filled % period).min(out.len() - filled);
                out.copy_within(filled % period..filled % period + length, filled);
                filled += length;
            }
            return Ok(());
        }
        let length = (image.size - phase).min((out.len() - filled) as u64) as usize;
        image.read(&mut out[filled..filled + length], phase)?;
        filled += length;
        phase = 0;
    }
    Ok(())
}
