//! An image, and what its log has in place of some of its bytes.

use std::collections::BTreeMap;

use nbdkit_api::Result;

use crate::disk_image::source::Source;
use crate::disk_image::table;
use crate::files::File;

/// Bytes of a sector of the log, and of the image as the log sees it.
pub(super) const SECTOR: usize = 4096;

/// The image as it is once the log has been replayed.
pub(crate) struct Replayed<S> {
    source: S,
    /// Bytes of the source.
    there: u64,
    /// Bytes of the image. What the source does not have is zeroes.
    size: u64,
    /// By where they begin; they do not overlap.
    pieces: BTreeMap<u64, Piece>,
}

/// Bytes in place of those of the source.
struct Piece {
    end: u64,
    /// A sector, or zeroes.
    data: Option<Box<[u8]>>,
}

impl<S> Replayed<S> {
    /// The image of `size` bytes as it is in the source. If the source has fewer, zeroes follow.
    pub(super) fn nothing(source: S, there: u64, size: u64) -> Replayed<S> {
        Replayed { source, there, size, pieces: BTreeMap::new() }
    }

    /// Puts a sector in place of what was at `at`, a multiple of [`SECTOR`].
    pub(super) fn put(&mut self, at: u64, data: Box<[u8]>) {
        let end = at + SECTOR as u64;
        self.clear(at, end);
        self.pieces.insert(at, Piece { end, data: Some(data) });
    }

    /// Puts zeroes in place of what was at `at`. Both are multiples of [`SECTOR`].
    pub(super) fn put_zeroes(&mut self, at: u64, length: u64) {
        let end = at + length;
        if length > 0 {
            self.clear(at, end);
            self.pieces.insert(at, Piece { end, data: None });
        }
    }

    /// Removes what the pieces have of `start .. end`. A piece of zeroes may lie across the bounds;
    /// one of data cannot.
    fn clear(&mut self, start: u64, end: u64) {
        let before = self.pieces.range_mut(..start).next_back();
        if let Some((_, piece)) = before
            && piece.end > start
        {
            let beyond = std::mem::replace(&mut piece.end, start);
            if beyond > end {
                self.pieces.insert(end, Piece { end: beyond, data: None });
            }
        }
        while let Some((&at, _)) = self.pieces.range(start..end).next() {
            let last = self.pieces.remove(&at).filter(|piece| piece.end > end);
            if let Some(Piece { end: beyond, .. }) = last {
                self.pieces.insert(end, Piece { end: beyond, data: None });
            }
        }
    }

    /// Copies what the pieces have of the bytes from `offset` on.
    fn patch(&self, buf: &mut [u8], offset: u64) {
        let end = offset + buf.len() as u64;
        let before = self.pieces.range(..offset).next_back();
        for (at, piece) in before.into_iter().chain(self.pieces.range(offset..end)) {
            let (from, to) = ((*at).max(offset), piece.end.min(end));
            if from >= to {
                continue;
            }
            let part = &mut buf[(from - offset) as usize..(to - offset) as usize];
            match &piece.data {
                Some(data) => part.copy_from_slice(&data[(from - at) as usize..][..part.len()]),
                None => part.fill(0),
            }
        }
    }
}

impl<S: Source> Source for Replayed<S> {
    fn size(&self) -> Result<u64> {
        Ok(self.size)
    }

    fn read(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let end = offset.checked_add(buf.len() as u64);
        if end.is_none_or(|end| end > self.size) {
            return Err(table::outside());
        }
        let there = self.there.saturating_sub(offset).min(buf.len() as u64) as usize;
        if there > 0 {
            self.source.read(&mut buf[..there], offset)?;
        }
        buf[there..].fill(0);
        if !self.pieces.is_empty() {
            self.patch(buf, offset);
        }
        Ok(())
    }

    /// Not where the log has something in place of its bytes.
    fn file(&self) -> Option<&File> {
        self.source.file().filter(|_| self.pieces.is_empty() && self.size == self.there)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = SECTOR as u64;

    #[test]
    fn what_was_put_last_is_read() {
        // Each sector is what the source has (9), zeroes, or a number: a model of twelve.
        let image = vec![9; 10 * SECTOR];
        let mut replayed = Replayed::nothing(&image[..], 10 * S, 12 * S);
        let mut model = [9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 0, 0];
        let mut state = 7_u32;
        for round in 0..200 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let (at, length) = ((state >> 8) as usize % 12, (state >> 20) as usize % 5);
            let length = length.min(12 - at);
            if round % 2 == 0 {
                replayed.put_zeroes(at as u64 * S, length as u64 * S);
                model[at..at + length].fill(0);
            } else {
                let byte = (round % 8) as u8 + 1;
                replayed.put(at as u64 * S, vec![byte; SECTOR].into());
                model[at] = byte;
            }
            // In pieces that cross sectors.
            let mut found = vec![5; 12 * SECTOR];
            for (number, part) in found.chunks_mut(3000).enumerate() {
                replayed.read(part, number as u64 * 3000).unwrap();
            }
            let expected = model.map(|byte| vec![byte; SECTOR]).concat();
            assert!(found == expected, "round {round}: {model:?}");
        }
        assert!(replayed.read(&mut [0; 2], 12 * S - 1).is_err());
    }
}
