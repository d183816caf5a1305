//! nbdkit-protect-filter(1): refuses writes that would change certain parts of the disk.

use std::ops::Range;
use std::sync::Arc;

use nbdkit_api::{
    DataPath, Direction, Errno, Error, Filter, Flags, Next, NextConfig, Open, OpenLayer, Result,
    Slot, Value, parse,
};

use crate::compare;

/// The filter: what is protected.
#[derive(Debug, Default)]
pub struct Protect {
    ranges: Vec<Protected>,
}

/// What one parameter protects.
#[derive(Debug, Clone)]
struct Protected {
    range: Range<u64>,
    /// As the parameter has it, for messages.
    text: String,
}

impl Filter for Protect {
    fn name(&self) -> &str {
        "protect"
    }

    fn longname(&self) -> Option<&str> {
        Some("nbdkit protect filter")
    }

    fn config_help(&self) -> Option<&str> {
        Some("protect=<START>-<END>      Protect range of bytes START-END (inclusive).")
    }

    fn config(&mut self, next: NextConfig<'_>, key: &str, value: Value<'_>) -> Result<()> {
        if key != "protect" {
            return next.config(key, value);
        }
        let text = value.str()?;
        for range in parse_ranges(text)? {
            self.ranges.push(Protected { range, text: text.to_owned() });
        }
        Ok(())
    }

    fn can_park(&self) -> bool {
        true
    }

    fn open(&self, below: &mut Slot<'_>, open: &Open<'_>) -> Result<Box<dyn OpenLayer>> {
        below.open(open)?;
        Ok(Box::new(Handle(self.ranges.as_slice().into())))
    }
}

/// `START-END`, both inclusive and both optional, or the complement of that behind `~`: two ranges,
/// which may be empty.
fn parse_ranges(text: &str) -> Result<[Range<u64>; 2]> {
    let range = text.strip_prefix('~');
    let (start, end) = range
        .unwrap_or(text)
        .split_once('-')
        .ok_or_else(|| Error::msg(format!("cannot parse range, missing '-': {text}")))?;
    let number = |text: &str, default: u64| {
        if text.is_empty() { Ok(default) } else { parse::integer("range", text) }
    };
    let (start, last) = (number(start, 0)?, number(end, u64::MAX)?);
    if last < start {
        return Err(Error::msg(format!("invalid range, end < start: {text}")));
    }
    // Disks are far smaller than 2^64 bytes.
    let end = last.saturating_add(1);
    Ok(if range.is_some() { [0..start, end..u64::MAX] } else { [start..end, end..end] })
}

struct Handle(Arc<[Protected]>);

/// The part of a request that is in a range.
fn overlap(range: &Range<u64>, count: u64, offset: u64) -> Option<Range<u64>> {
    let common = range.start.max(offset)..range.end.min(offset + count);
    (!common.is_empty()).then_some(common)
}

impl Handle {
    /// Checks each part of a request that is protected.
    ///
    /// # Errors
    /// EPERM: a part would change. Those of `is_unchanged`.
    fn check(
        &self,
        count: u64,
        offset: u64,
        is_unchanged: impl Fn(Range<u64>) -> Result<bool>,
    ) -> Result<()> {
        for Protected { range, text } in &*self.0 {
            if let Some(part) = overlap(range, count, offset)
                && !is_unchanged(part)?
            {
                let why = format!("protect filter prevented write to protected range {text}");
                return Err(Error::new(Errno::EPERM, why));
            }
        }
        Ok(())
    }

    /// The parts of a request that are not protected.
    fn unprotected(&self, count: u64, offset: u64) -> Vec<Range<u64>> {
        let mut parts: Vec<_> = std::iter::once(offset..offset + count).collect();
        for Protected { range, .. } in &*self.0 {
            let around = |part: Range<u64>| {
                [part.start..part.end.min(range.start), part.start.max(range.end)..part.end]
            };
            parts = parts.into_iter().flat_map(around).filter(|part| !part.is_empty()).collect();
        }
        parts
    }

    fn touches(&self, count: u64, offset: u64) -> bool {
        self.0.iter().any(|protected| overlap(&protected.range, count, offset).is_some())
    }
}

impl OpenLayer for Handle {
    fn pwrite(&self, next: &Next, buf: &[u8], offset: u64, flags: Flags) -> Result<()> {
        let at = |position: u64| (position - offset) as usize;
        self.check(buf.len() as u64, offset, |part| {
            compare::has_bytes(next, &buf[at(part.start)..at(part.end)], part.start)
        })?;
        for part in self.unprotected(buf.len() as u64, offset) {
            next.pwrite(&buf[at(part.start)..at(part.end)], part.start, flags)?;
        }
        Ok(())
    }

    fn trim(&self, next: &Next, count: u64, offset: u64, flags: Flags) -> Result<()> {
        self.check(count, offset, |part| {
            compare::has_zeroes(next, part.end - part.start, part.start)
        })?;
        for part in self.unprotected(count, offset) {
            next.trim(part.end - part.start, part.start, flags)?;
        }
        Ok(())
    }

    fn zero(&self, next: &Next, count: u64, offset: u64, flags: Flags) -> Result<()> {
        self.check(count, offset, |part| {
            compare::has_zeroes(next, part.end - part.start, part.start)
        })?;
        for part in self.unprotected(count, offset) {
            next.zero(part.end - part.start, part.start, flags)?;
        }
        Ok(())
    }

    fn data_path(&self, direction: Direction) -> DataPath {
        match direction {
            Direction::Write if !self.0.is_empty() => DataPath::PerRequest,
            Direction::Read | Direction::Write => DataPath::Transparent,
        }
    }

    fn passes(&self, _: &Next, _: Direction, count: u64, offset: u64) -> bool {
        !self.touches(count, offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, Disk};

    #[test]
    fn ranges_are_inclusive_open_ended_and_complemented() {
        for (text, expected) in [
            ("1-2", [1..3, 3..3]),
            ("-0x10", [0..17, 17..17]),
            ("010-", [8..u64::MAX, u64::MAX..u64::MAX]),
            ("~5-9", [0..5, 10..u64::MAX]),
            ("~-", [0..0, u64::MAX..u64::MAX]),
            ("-", [0..u64::MAX, u64::MAX..u64::MAX]),
        ] {
            assert_eq!(parse_ranges(text).unwrap(), expected, "{text}");
        }
        for bad in ["", "5", "2-1", "~2-1", "1k-2k", "1-2-3", "--1", "0-99999999999999999999"] {
            assert!(parse_ranges(bad).is_err(), "{bad}");
        }
    }

    /// Bytes 1000 to 1999 and 3000 to 3999 are protected.
    const PARAMS: [(&str, &str); 2] = [("protect", "1000-1999"), ("protect", "3000-3999")];

    #[test]
    fn what_changes_nothing_is_permitted_and_does_not_touch_protected_parts() {
        let disk = Arc::new(Disk::pattern(10_000));
        let backend = testing::backend(&disk, &["protect"], &PARAMS);
        let same = testing::read(&backend, 5000, 0);
        disk.take_calls();
        backend.pwrite(&same, 0, Flags::FUA).unwrap();
        let calls = disk.take_calls();
        let writes: Vec<_> = calls.iter().filter(|call| call.starts_with("pwrite")).collect();
        assert_eq!(writes, ["pwrite 1000@0 FUA", "pwrite 1000@2000 FUA", "pwrite 1000@4000 FUA"]);
        disk.data.lock().unwrap()[1000..4000].fill(0);
        disk.take_calls();
        backend.zero(5000, 0, Flags::MAY_TRIM).unwrap();
        backend.trim(1500, 1500, Flags::empty()).unwrap();
        let mut calls = disk.take_calls();
        calls.retain(|call| call.starts_with("zero") || call.starts_with("trim"));
        assert_eq!(
            calls,
            [
                "zero 1000@0 MAY_TRIM",
                "zero 1000@2000 MAY_TRIM",
                "zero 1000@4000 MAY_TRIM",
                "trim 1000@2000"
            ]
        );
    }

    #[test]
    fn what_changes_a_protected_byte_changes_nothing_at_all() {
        let disk = Arc::new(Disk::pattern(10_000));
        let backend = testing::backend(&disk, &["protect"], &PARAMS);
        let before = disk.data.lock().unwrap().clone();
        let mut other = before[..5000].to_vec();
        other[3999] ^= 1;
        let none = Flags::empty();
        for (number, error) in [
            backend.pwrite(&other, 0, none),
            backend.pwrite(&other[3999..4500], 3999, none),
            backend.zero(2, 999, none),
            backend.zero(9000, 0, Flags::FAST_ZERO),
            backend.trim(100, 1999, none),
        ]
        .into_iter()
        .enumerate()
        {
            assert_eq!(error.unwrap_err().errno(), Errno::EPERM, "{number}");
        }
        assert_eq!(*disk.data.lock().unwrap(), before);
        backend.pwrite(&other[..1000], 2000, none).unwrap();
        backend.zero(1000, 4000, none).unwrap();
        assert_ne!(*disk.data.lock().unwrap(), before);
    }

    #[test]
    fn long_requests_are_compared_in_chunks() {
        let disk = Arc::new(Disk::pattern(1 << 20));
        let backend = testing::backend(&disk, &["protect"], &[("protect", "-")]);
        let mut bytes = disk.data.lock().unwrap().clone();
        backend.pwrite(&bytes, 0, Flags::empty()).unwrap();
        bytes[(1 << 20) - 1] ^= 1;
        assert!(backend.pwrite(&bytes, 0, Flags::empty()).is_err());
        disk.data.lock().unwrap().fill(0);
        backend.zero(1 << 20, 0, Flags::empty()).unwrap();
        // In the last extent of data: every other 64 KiB is listed as zeroes and not read.
        disk.data.lock().unwrap()[(14 << 16) + 65_535] = 1;
        assert!(backend.zero(1 << 20, 0, Flags::empty()).is_err());
        backend.zero((1 << 20) - (2 << 16), 0, Flags::empty()).unwrap();
    }
}
