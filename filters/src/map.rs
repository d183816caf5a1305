//! Maps ranges of the disk to others: nbdkit's map filter, which came with 1.46.

use std::ops::Range;
use std::sync::Arc;

use nbdkit_api::{
    DataPath, Direction, Errno, Error, Extents, Filter, Flags, Next, NextConfig, Open, OpenLayer,
    Result, Slot, ThreadModel, Value, debug, log,
};

/// The filter: the mapped ranges, of which earlier ones win.
#[derive(Debug, Default)]
pub struct Map {
    ranges: Vec<Mapped>,
}

/// Bytes that are at `to` and behind it in the layer below.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mapped {
    from: Range<u64>,
    to: u64,
}

impl Filter for Map {
    fn name(&self) -> &str {
        "map"
    }

    fn longname(&self) -> Option<&str> {
        Some("nbdkit map filter")
    }

    fn config_help(&self) -> Option<&str> {
        Some("map=<START>-<END>:<DEST>   Map bytes START-END (inclusive) to DEST.")
    }

    fn debug_flags(&self) -> &'static [&'static str] {
        &["ranges"]
    }

    fn config(&mut self, next: NextConfig<'_>, key: &str, value: Value<'_>) -> Result<()> {
        if key != "map" {
            return next.config(key, value);
        }
        let text = value.str()?;
        let range = parse(text).ok_or_else(|| {
            Error::msg(format!("map: cannot parse '{text}': expected START-END:DEST"))
        })?;
        self.ranges.push(range);
        Ok(())
    }

    fn get_ready(&mut self, _: ThreadModel) -> Result<()> {
        if log::flag("map", "ranges") != 0 {
            for Mapped { from, to } in &self.ranges {
                debug!("map: {}-{} to {to}", from.start, from.end - 1);
            }
        }
        Ok(())
    }

    fn open(&self, below: &mut Slot<'_>, open: &Open<'_>) -> Result<Box<dyn OpenLayer>> {
        below.open(open)?;
        Ok(Box::new(Handle(self.ranges.as_slice().into())))
    }
}

/// Decimal digits, and nothing else.
fn number(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

/// `START-END:DEST`. The end is inclusive and not before the start.
fn parse(text: &str) -> Option<Mapped> {
    let (from, to) = text.split_once(':')?;
    let (start, last) = from.split_once('-')?;
    let (start, last, to) = (number(start)?, number(last)?, number(to)?);
    let from = start..last.checked_add(1)?;
    // So that no sum overflows below.
    (start <= last && to.checked_add(from.end - start).is_some()).then_some(Mapped { from, to })
}

/// A part of a request, and where it is in the layer below.
#[derive(Debug, PartialEq, Eq)]
struct Piece {
    part: Range<u64>,
    below: u64,
}

struct Handle(Arc<[Mapped]>);

impl Handle {
    /// The first piece of a request.
    fn piece(&self, request: &Range<u64>) -> Piece {
        let start = request.start;
        let mut end = request.end;
        for Mapped { from, to } in &*self.0 {
            if from.contains(&start) {
                let part = start..end.min(from.end);
                return Piece { part, below: to + (start - from.start) };
            }
            if from.start > start {
                end = end.min(from.start);
            }
        }
        Piece { part: start..end, below: start }
    }

    /// Does a request piece by piece.
    ///
    /// # Errors
    /// EIO: a piece is beyond the end of the disk below. Those of `body`.
    fn each(
        &self,
        next: &Next,
        count: u64,
        offset: u64,
        mut body: impl FnMut(Piece) -> Result<()>,
    ) -> Result<()> {
        let size = next.size()?;
        let mut left = offset..offset + count;
        while !left.is_empty() {
            let piece = self.piece(&left);
            left.start = piece.part.end;
            let length = piece.part.end - piece.part.start;
            if piece.below.checked_add(length).is_none_or(|end| end > size) {
                let why = format!("map: offset {} is mapped beyond the end", piece.part.start);
                return Err(Error::new(Errno::EIO, why));
            }
            body(piece)?;
        }
        Ok(())
    }
}

impl OpenLayer for Handle {
    fn pread(&self, next: &Next, buf: &mut [u8], offset: u64) -> Result<()> {
        let at = |position: u64| (position - offset) as usize;
        self.each(next, buf.len() as u64, offset, |Piece { part, below }| {
            next.pread(&mut buf[at(part.start)..at(part.end)], below)
        })
    }

    fn pwrite(&self, next: &Next, buf: &[u8], offset: u64, flags: Flags) -> Result<()> {
        let at = |position: u64| (position - offset) as usize;
        self.each(next, buf.len() as u64, offset, |Piece { part, below }| {
            next.pwrite(&buf[at(part.start)..at(part.end)], below, flags)
        })
    }

    fn trim(&self, next: &Next, count: u64, offset: u64, flags: Flags) -> Result<()> {
        self.each(next, count, offset, |Piece { part, below }| {
            next.trim(part.end - part.start, below, flags)
        })
    }

    fn zero(&self, next: &Next, count: u64, offset: u64, flags: Flags) -> Result<()> {
        self.each(next, count, offset, |Piece { part, below }| {
            next.zero(part.end - part.start, below, flags)
        })
    }

    fn extents(
        &self,
        next: &Next,
        count: u64,
        offset: u64,
        flags: Flags,
        extents: &mut Extents,
    ) -> Result<()> {
        // A list may end early, but has no gaps.
        let mut covered = offset;
        self.each(next, count, offset, |Piece { part, below }| {
            if part.start != covered || flags.contains(Flags::REQ_ONE) && part.start > offset {
                return Ok(());
            }
            let length = part.end - part.start;
            let mut found = Extents::new(below, below + length);
            next.extents(length, below, flags, &mut found)?;
            for extent in found.iter() {
                extents.add(extent.offset - below + part.start, extent.length, extent.kind)?;
            }
            covered = part.start + (found.covered_to() - below);
            Ok(())
        })
    }

    fn cache(&self, next: &Next, count: u64, offset: u64) -> Result<()> {
        self.each(next, count, offset, |Piece { part, below }| {
            next.cache(part.end - part.start, below)
        })
    }

    fn data_path(&self, _: Direction) -> DataPath {
        if self.0.is_empty() { DataPath::Transparent } else { DataPath::PerRequest }
    }

    fn passes(&self, _: &Next, _: Direction, count: u64, offset: u64) -> bool {
        let request = offset..offset + count;
        self.piece(&request) == Piece { part: request, below: offset }
    }

    fn try_pread(&self, next: &Next, buf: &mut [u8], offset: u64) -> Option<Result<()>> {
        let request = offset..offset + buf.len() as u64;
        let Piece { part, below } = self.piece(&request);
        // One piece, or `pread` does it.
        if part == request { next.try_pread(buf, below) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, Disk};

    const PARAMS: [(&str, &str); 3] =
        [("map", "100-199:500"), ("map", "150-299:0"), ("map", "5000-5999:9500")];

    #[test]
    fn earlier_ranges_win_and_requests_are_split() {
        let disk = Arc::new(Disk::pattern(10_000));
        let backend = testing::backend(&disk, &["map"], &PARAMS);
        assert_eq!(backend.size().unwrap(), 10_000);
        let found = testing::read(&backend, 400, 50);
        let below = |at: u64| (at % 251) as u8;
        let expected: Vec<_> = (50..450)
            .map(|at| match at {
                100..200 => below(at + 400),
                200..300 => below(at - 150),
                _ => below(at),
            })
            .collect();
        assert_eq!(found, expected);
        disk.take_calls();
        backend.pwrite(&[9; 200], 150, Flags::FUA).unwrap();
        backend.zero(100, 150, Flags::empty()).unwrap();
        backend.trim(10, 295, Flags::empty()).unwrap();
        backend.cache(2, 199).unwrap();
        assert_eq!(
            disk.take_calls(),
            [
                "pwrite 50@550 FUA",
                "pwrite 100@50 FUA",
                "pwrite 50@300 FUA",
                "zero 50@550",
                "zero 50@50",
                "trim 5@145",
                "trim 5@300",
                "cache 1@599",
                "cache 1@50"
            ]
        );
    }

    #[test]
    fn what_is_mapped_beyond_the_end_is_an_error() {
        let disk = Arc::new(Disk::new(10_000));
        let backend = testing::backend(&disk, &["map"], &PARAMS);
        backend.pread(&mut [0; 500], 5000).unwrap();
        assert_eq!(backend.pread(&mut [0; 2], 5499).unwrap_err().errno(), Errno::EIO);
        assert_eq!(backend.zero(1, 5999, Flags::empty()).unwrap_err().errno(), Errno::EIO);
    }

    #[test]
    fn extents_are_those_of_the_mapped_ranges() {
        let disk = Arc::new(Disk::new(1 << 20));
        let params = [("map", "0-65535:65536"), ("map", "65536-70000:0")];
        let backend = testing::backend(&disk, &["map"], &params);
        assert_eq!(
            testing::extents_of(&backend, 200_000, 0),
            [
                (0, 65536, 3),
                (65536, 4465, 0),
                (70001, 61071, 3),
                (131_072, 65536, 0),
                (196_608, 3392, 3)
            ]
        );
        let mut one = Extents::new(0, 200_000);
        backend.extents(200_000, 0, Flags::REQ_ONE, &mut one).unwrap();
        assert_eq!(one.covered_to(), 65536);
    }

    #[test]
    fn ranges_that_make_no_sense_are_refused() {
        for bad in [
            "",
            "1-2",
            "2-1:0",
            "-1:0",
            "1-:0",
            "1-2:",
            "0x1-2:0",
            "+1-2:0",
            "1k-2k:0",
            "0-18446744073709551615:0",
            "0-9:18446744073709551610",
        ] {
            assert!(parse(bad).is_none(), "{bad}");
        }
        assert_eq!(parse("1-2:3"), Some(Mapped { from: 1..3, to: 3 }));
    }
}
