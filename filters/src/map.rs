//! nbdkit-map-filter(1): shows parts of the disk at other offsets.

use std::sync::Arc;

use nbdkit_api::{
    Blocking, DataPath, Direction, Errno, Error, Extents, Filter, Flags, Next, NextConfig, Open,
    OpenLayer, Result, Slot, Value, log,
};

/// A part of the disk, and where its bytes are below.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part {
    start: u64,
    /// Behind its last byte.
    end: u64,
    below: u64,
}

/// The filter: the parts that are elsewhere, in ascending order and without overlaps.
#[derive(Debug, Default)]
pub struct Map {
    parts: Vec<Part>,
}

impl Filter for Map {
    fn name(&self) -> &str {
        "map"
    }

    fn longname(&self) -> Option<&str> {
        Some("nbdkit map filter")
    }

    fn config_help(&self) -> Option<&str> {
        Some("map=<START>-<END>:<DEST>       Map the range START-END (inclusive) to DEST.")
    }

    fn debug_flags(&self) -> &'static [&'static str] {
        &["ranges"]
    }

    fn config(&mut self, next: NextConfig<'_>, key: &str, value: Value<'_>) -> Result<()> {
        if key != "map" {
            return next.config(key, value);
        }
        let text = value.str()?;
        let part = parse(text).ok_or_else(|| {
            Error::msg(format!(
                "map={text}: expected START-END:DEST, bytes in decimal, where END is the last byte"
            ))
        })?;
        insert(&mut self.parts, part);
        Ok(())
    }

    fn can_park(&self) -> bool {
        true
    }

    fn open(&self, below: &mut Slot<'_>, open: &Open<'_>) -> Result<Box<dyn OpenLayer>> {
        below.open(open)?;
        if log::flag("map", "ranges") != 0 {
            for Part { start, end, below } in &self.parts {
                log::debug(&format!("map: {start}-{}:{below}", end - 1));
            }
        }
        Ok(Box::new(Handle(self.parts.as_slice().into())))
    }
}

/// `START-END:DEST`, if it is one and within the largest disk.
fn parse(text: &str) -> Option<Part> {
    let number = |text: &str| -> Option<u64> {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| text.parse().ok()).flatten()
    };
    let (range, dest) = text.split_once(':')?;
    let (start, last) = range.split_once('-')?;
    let (start, last, below) = (number(start)?, number(last)?, number(dest)?);
    let end = last.checked_add(1).filter(|end| start < *end && *end <= i64::MAX as u64)?;
    let ends_below = (end - start).checked_add(below)?;
    (ends_below <= i64::MAX as u64).then_some(Part { start, end, below })
}

/// Adds what of `part` is in no earlier one.
fn insert(parts: &mut Vec<Part>, part: Part) {
    let mut at = part.start;
    let mut free = Vec::new();
    for known in parts.iter().filter(|known| known.end > part.start && known.start < part.end) {
        if at < known.start {
            free.push((at, known.start));
        }
        at = known.end;
    }
    if at < part.end {
        free.push((at, part.end));
    }
    let moved =
        |(start, end): (u64, u64)| Part { start, end, below: part.below + (start - part.start) };
    parts.extend(free.into_iter().map(moved));
    parts.sort_by_key(|part| part.start);
}

struct Handle(Arc<[Part]>);

impl Handle {
    /// Calls `each` with the pieces of a range that are together below: how many bytes from its
    /// beginning, where it is below, and its length.
    ///
    /// # Errors
    /// EIO, before the first call, if a piece is beyond the end of the disk below; those of `each`.
    fn pieces(
        &self,
        next: &Next,
        count: u64,
        offset: u64,
        mut each: impl FnMut(u64, u64, u64) -> Result<bool>,
    ) -> Result<()> {
        let size = next.size()?;
        let mut beyond = Ok(());
        self.split(count, offset, |_, below, length| {
            let is_within = below.checked_add(length).is_some_and(|end| end <= size);
            if !is_within {
                let why = format!("map: {length} bytes at {below} are beyond the end of the disk");
                beyond = Err(Error::new(Errno::EIO, why));
            }
            Ok(is_within)
        })?;
        beyond?;
        self.split(count, offset, &mut each)
    }

    /// The same without a look at the size, while `each` returns true.
    fn split(
        &self,
        count: u64,
        offset: u64,
        mut each: impl FnMut(u64, u64, u64) -> Result<bool>,
    ) -> Result<()> {
        let end = offset + count;
        let mut at = offset;
        let first = self.0.partition_point(|part| part.end <= offset);
        let mut parts = self.0[first..].iter().peekable();
        while at < end {
            let (until, below) = match parts.peek() {
                Some(part) if part.start <= at => (part.end, part.below + (at - part.start)),
                Some(part) => (part.start, at),
                None => (end, at),
            };
            let length = until.min(end) - at;
            if !each(at - offset, below, length)? {
                return Ok(());
            }
            at += length;
            if parts.peek().is_some_and(|part| part.end <= at) {
                parts.next();
            }
        }
        Ok(())
    }
}

impl OpenLayer for Handle {
    fn pread(&self, next: &Next, buf: &mut [u8], offset: u64) -> Result<()> {
        self.pieces(next, buf.len() as u64, offset, |from, below, length| {
            next.pread(&mut buf[from as usize..][..length as usize], below).map(|()| true)
        })
    }

    fn pwrite(&self, next: &Next, buf: &[u8], offset: u64, flags: Flags) -> Result<()> {
        self.pieces(next, buf.len() as u64, offset, |from, below, length| {
            next.pwrite(&buf[from as usize..][..length as usize], below, flags).map(|()| true)
        })
    }

    fn trim(&self, next: &Next, count: u64, offset: u64, flags: Flags) -> Result<()> {
        self.pieces(next, count, offset, |_, below, length| {
            next.trim(length, below, flags).map(|()| true)
        })
    }

    fn zero(&self, next: &Next, count: u64, offset: u64, flags: Flags) -> Result<()> {
        self.pieces(next, count, offset, |_, below, length| {
            next.zero(length, below, flags).map(|()| true)
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
        self.pieces(next, count, offset, |from, below, length| {
            let mut part = Extents::new(below, below + length);
            next.extents(length, below, flags, &mut part)?;
            let delta = (offset + from).cast_signed() - below.cast_signed();
            extents.add_shifted(&part, delta)?;
            // One that was not described to its end leaves a gap, which ends the list.
            Ok(part.covered_to() >= below + length && !flags.contains(Flags::REQ_ONE))
        })
    }

    fn cache(&self, next: &Next, count: u64, offset: u64) -> Result<()> {
        self.pieces(next, count, offset, |_, below, length| {
            next.cache(length, below).map(|()| true)
        })
    }

    fn data_path(&self, _: Direction) -> DataPath {
        if self.0.is_empty() { DataPath::Transparent } else { DataPath::PerRequest }
    }

    /// What is in one piece below; more takes several requests.
    fn try_pread(&self, next: &Next, buf: &mut [u8], offset: u64) -> Option<Result<()>> {
        if next.blocking() == Blocking::Never {
            return Some(self.pread(next, buf, offset));
        }
        let (count, mut at) = (buf.len() as u64, None);
        let found = self.pieces(next, count, offset, |_, below, length| {
            at = (length == count).then_some(below);
            Ok(false)
        });
        match found {
            Ok(()) => next.try_pread(buf, at?),
            Err(error) => Some(Err(error)),
        }
    }

    fn passes(&self, _: &Next, _: Direction, count: u64, offset: u64) -> bool {
        let index = self.0.partition_point(|part| part.end <= offset);
        self.0.get(index).is_none_or(|part| part.start >= offset + count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, Disk};

    fn parts(texts: &[&str]) -> Vec<(u64, u64, u64)> {
        let mut parts = Vec::new();
        texts.iter().for_each(|text| insert(&mut parts, parse(text).expect("a part")));
        parts.iter().map(|part| (part.start, part.end, part.below)).collect()
    }

    #[test]
    fn earlier_parts_win_where_they_overlap() {
        assert_eq!(parts(&["10-19:100", "0-29:200"]), [(0, 10, 200), (10, 20, 100), (20, 30, 220)]);
        assert_eq!(parts(&["0-29:200", "10-19:100"]), [(0, 30, 200)]);
        assert_eq!(parts(&["5-9:1", "0-6:50", "8-12:60"]), [(0, 5, 50), (5, 10, 1), (10, 13, 62)]);
    }

    #[test]
    fn what_is_no_part_is_refused() {
        let largest = format!("0-{}:0", i64::MAX);
        for text in
            ["", "1-0:0", "0-1", "a-1:0", "0-1:-1", "0-1:0x1", "+0-1:0", "1K-2K:0", &largest]
        {
            assert_eq!(parse(text), None, "{text}");
        }
        let all = format!("0-{}:0", i64::MAX - 1);
        assert!(parse(&all).is_some());
        assert!(testing::config_error("map", &[("map", "5-4:0")]).contains("START-END:DEST"));
    }

    #[test]
    fn requests_are_split_where_parts_begin_and_end() {
        let disk = Arc::new(Disk::pattern(1000));
        let backend =
            testing::backend(&disk, &["map"], &[("map", "100-199:500"), ("map", "200-299:0")]);
        assert_eq!(backend.size().unwrap(), 1000);
        let byte = |at: usize| (at % 251) as u8;
        let expected: Vec<u8> =
            (90..100).chain(500..600).chain(0..100).chain(300..310).map(byte).collect();
        assert_eq!(testing::read(&backend, 220, 90), expected);
        disk.take_calls();
        backend.pwrite(&[7; 20], 95, Flags::FUA).unwrap();
        backend.trim(10, 195, Flags::empty()).unwrap();
        backend.zero(500, 400, Flags::empty()).unwrap();
        backend.cache(4, 298).unwrap();
        assert_eq!(
            disk.take_calls(),
            [
                "pwrite 5@95 FUA",
                "pwrite 15@500 FUA",
                "trim 5@595",
                "trim 5@0",
                "zero 500@400",
                "cache 2@98",
                "cache 2@300"
            ]
        );
    }

    #[test]
    fn a_part_beyond_the_end_fails_and_changes_nothing() {
        let disk = Arc::new(Disk::new(1000));
        let backend = testing::backend(&disk, &["map"], &[("map", "10-19:995")]);
        disk.take_calls();
        assert_eq!(backend.pwrite(&[1; 10], 8, Flags::empty()).unwrap_err().errno(), Errno::EIO);
        assert!(disk.take_calls().is_empty());
        assert_eq!(testing::read(&backend, 10, 0), [0; 10]);
    }

    #[test]
    fn extents_are_those_of_where_the_bytes_are() {
        let disk = Arc::new(Disk::new(1 << 20));
        // 64K to 128K of the test's disk are a hole.
        let parameters = [("map", "0-65535:65536"), ("map", "65536-131071:0")];
        let backend = testing::backend(&disk, &["map"], &parameters);
        let moved = testing::extents_of(&backend, 1 << 20, 0);
        let plain = testing::extents_of(&testing::backend(&disk, &["map"], &[]), 1 << 20, 0);
        assert_eq!((moved[0].0, moved[0].1, moved[0].2), (0, 65536, plain[1].2));
        assert_eq!((moved[1].0, moved[1].2), (65536, plain[0].2));
    }
}
