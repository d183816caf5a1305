//! nbdkit-ddrescue-filter(1): reads of blocks that ddrescue could not rescue fail. The map file is
//! read once, at the start.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use nbdkit_api::{
    Cache, DataPath, Direction, Errno, Error, Filter, Needs, Next, NextConfig, Open, OpenLayer,
    Result, ResultExt, Slot, Value,
};

/// The filter: the rescued parts of the disk, in order, none next to another.
#[derive(Debug, Default)]
pub struct DdRescue {
    path: Option<PathBuf>,
    rescued: Arc<[Range<u64>]>,
}

impl Filter for DdRescue {
    fn name(&self) -> &str {
        "ddrescue"
    }

    fn longname(&self) -> Option<&str> {
        Some("nbdkit ddrescue mapfile filter")
    }

    fn config_help(&self) -> Option<&str> {
        Some("ddrescue-mapfile=...     Specify ddrescue mapfile to use")
    }

    fn config(&mut self, next: NextConfig<'_>, key: &str, value: Value<'_>) -> Result<()> {
        if key != "ddrescue-mapfile" {
            return next.config(key, value);
        }
        self.path = Some(value.absolute_path()?);
        Ok(())
    }

    fn config_complete(&mut self, next: NextConfig<'_>) -> Result<()> {
        if let Some(path) = &self.path {
            let text = std::fs::read_to_string(path)
                .or_error(|| format!("{}: ddrescue: fopen", path.display()))?;
            self.rescued = read_map(&text).map_err(|error| error.context(path.display()))?.into();
        }
        next.config_complete()
    }

    fn needs(&self, below: Needs) -> Needs {
        below.read_only()
    }

    fn open(&self, below: &mut Slot<'_>, open: &Open<'_>) -> Result<Box<dyn OpenLayer>> {
        below.open(&open.readonly(true))?;
        Ok(Box::new(Handle(Arc::clone(&self.rescued))))
    }
}

/// Lines of comments, one of the state of ddrescue, and then lines `POSITION SIZE STATUS`. GNU
/// ddrescue manual, "Mapfile structure". Returns what has the status `+`.
///
/// # Errors
/// A line makes no sense.
fn read_map(text: &str) -> Result<Vec<Range<u64>>> {
    let lines = (1..).zip(text.lines().map(str::trim));
    let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    let mut parts = Vec::new();
    for (number, line) in lines.skip(1) {
        let bad = || Error::msg(format!("ddrescue: line {number}: cannot parse '{line}'"));
        let fields: Vec<_> = line.split_ascii_whitespace().collect();
        let [position, size, status] = fields[..] else { return Err(bad()) };
        let start = integer(position).ok_or_else(bad)?;
        let end = integer(size).and_then(|size| start.checked_add(size)).ok_or_else(bad)?;
        match status {
            "+" => parts.push(start..end),
            "?" | "*" | "/" | "-" => {}
            _ => return Err(bad()),
        }
    }
    parts.sort_by_key(|part| part.start);
    let mut joined: Vec<Range<u64>> = Vec::with_capacity(parts.len());
    for part in parts {
        match joined.last_mut() {
            Some(last) if last.end >= part.start => last.end = last.end.max(part.end),
            _ => joined.push(part),
        }
    }
    Ok(joined)
}

/// Decimal, or hexadecimal or octal as in C.
fn integer(text: &str) -> Option<u64> {
    if let Some(digits) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        u64::from_str_radix(digits, 16).ok()
    } else if text.len() > 1 && text.starts_with('0') {
        u64::from_str_radix(text, 8).ok()
    } else {
        text.parse().ok()
    }
}

struct Handle(Arc<[Range<u64>]>);

impl Handle {
    fn is_rescued(&self, count: u64, offset: u64) -> bool {
        let after = self.0.partition_point(|part| part.start <= offset);
        let end = offset + count;
        after.checked_sub(1).is_some_and(|at| self.0[at].end >= end && self.0[at].end > offset)
    }
}

impl OpenLayer for Handle {
    fn can_write(&self, _: &Next) -> Result<bool> {
        Ok(false)
    }

    fn can_cache(&self, _: &Next) -> Result<Cache> {
        Ok(Cache::None)
    }

    fn pread(&self, next: &Next, buf: &mut [u8], offset: u64) -> Result<()> {
        if !self.is_rescued(buf.len() as u64, offset) {
            let why = format!(
                "ddrescue: {} bytes at {offset} were not rescued, or not all of them",
                buf.len()
            );
            return Err(Error::new(Errno::EIO, why));
        }
        next.pread(buf, offset)
    }

    fn data_path(&self, direction: Direction) -> DataPath {
        match direction {
            Direction::Read => DataPath::PerRequest,
            Direction::Write => DataPath::Opaque,
        }
    }

    fn passes(&self, _: &Next, _: Direction, count: u64, offset: u64) -> bool {
        self.is_rescued(count, offset)
    }

    fn try_pread(&self, next: &Next, buf: &mut [u8], offset: u64) -> Option<Result<()>> {
        // What fails, `pread` fails.
        if self.is_rescued(buf.len() as u64, offset) { next.try_pread(buf, offset) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rescued_parts_are_joined() {
        let map =
            "# made by ddrescue\n0x100 + 1\n0x0 0x10 +\n16 020 +\n40 1 -\n41 9 +\n50 0 +\n60 5 ?";
        let handle = Handle(read_map(map).unwrap().into());
        assert_eq!(*handle.0, [0..32, 41..50]);
        for (count, offset, expected) in [
            (32, 0, true),
            (33, 0, false),
            (1, 31, true),
            (1, 32, false),
            (2, 40, false),
            (9, 41, true),
            (10, 41, false),
            (1, 50, false),
            (1, u64::MAX - 1, false),
        ] {
            assert_eq!(handle.is_rescued(count, offset), expected, "{count} {offset}");
        }
    }

    #[test]
    fn map_files_that_make_no_sense_are_refused() {
        for bad in [
            "0 10",
            "0 10 z",
            "x 10 +",
            "0 0xffffffffffffffff0 +",
            "5 18446744073709551615 +",
            "1 2 + 3",
        ] {
            let why = read_map(&format!("0 +\n{bad}\n")).unwrap_err();
            assert_eq!(why.message(), format!("ddrescue: line 2: cannot parse '{bad}'"));
        }
        assert!(read_map("").unwrap().is_empty());
    }
}
