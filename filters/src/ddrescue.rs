//! nbdkit-ddrescue-filter(1): the parts of an image that GNU ddrescue could not read fail with EIO.
//! GNU ddrescue manual, "Mapfile structure".

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use nbdkit_api::{
    Cache, DataPath, Direction, Errno, Error, Filter, Needs, Next, NextConfig, Open, OpenLayer,
    Result, ResultExt, Slot, Value, parse,
};

/// Longest map file, bytes.
const MAX_FILE: u64 = 256 << 20;

/// The filter: what was rescued.
#[derive(Debug, Default)]
pub struct Ddrescue {
    rescued: Arc<[Range<u64>]>,
}

impl Filter for Ddrescue {
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
        self.rescued = read(value.as_path())?.into();
        Ok(())
    }

    fn needs(&self, below: Needs) -> Needs {
        below.read_only()
    }

    fn open(&self, below: &mut Slot<'_>, open: &Open<'_>) -> Result<Box<dyn OpenLayer>> {
        below.open(&open.readonly(true))?;
        Ok(Box::new(Handle(Arc::clone(&self.rescued))))
    }
}

struct Handle(Arc<[Range<u64>]>);

impl Handle {
    /// Whether all of a range was rescued.
    fn is_rescued(&self, count: u64, offset: u64) -> bool {
        let index = self.0.partition_point(|range| range.end <= offset);
        self.0.get(index).is_some_and(|it| it.start <= offset && offset + count <= it.end)
    }

    /// # Errors
    /// EIO: a part was not rescued.
    fn check(&self, count: u64, offset: u64) -> Result<()> {
        if self.is_rescued(count, offset) {
            return Ok(());
        }
        let why = format!("ddrescue: bytes from {offset} on were not rescued");
        Err(Error::new(Errno::EIO, why))
    }
}

impl OpenLayer for Handle {
    fn can_write(&self, _: &Next) -> Result<bool> {
        Ok(false)
    }

    fn can_extents(&self, _: &Next) -> Result<bool> {
        Ok(false)
    }

    fn can_cache(&self, _: &Next) -> Result<Cache> {
        Ok(Cache::None)
    }

    fn pread(&self, next: &Next, buf: &mut [u8], offset: u64) -> Result<()> {
        self.check(buf.len() as u64, offset)?;
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

    /// What was not rescued fails at once.
    fn try_pread(&self, next: &Next, buf: &mut [u8], offset: u64) -> Option<Result<()>> {
        match self.check(buf.len() as u64, offset) {
            Ok(()) => next.try_pread(buf, offset),
            Err(error) => Some(Err(error)),
        }
    }
}

/// Reads the map file.
///
/// # Errors
/// It cannot be read, or one of its lines cannot.
fn read(path: &Path) -> Result<Vec<Range<u64>>> {
    let file =
        std::fs::File::open(path).or_error(|| format!("{}: ddrescue: fopen", path.display()))?;
    let mut text = String::new();
    std::io::Read::read_to_string(&mut std::io::Read::take(file, MAX_FILE + 1), &mut text)
        .or_error(|| format!("{}: ddrescue: read", path.display()))?;
    if text.len() as u64 > MAX_FILE {
        return Err(Error::msg(format!("{}: longer than {MAX_FILE} bytes", path.display())));
    }
    parse_map(&text).map_err(|(line, error)| error.context(format!("{}:{line}", path.display())))
}

/// The ranges of a map that were rescued, in ascending order; those that touch or overlap are one.
///
/// # Errors
/// The number of a line that is no block, and why.
pub(crate) fn parse_map(text: &str) -> std::result::Result<Vec<Range<u64>>, (usize, Error)> {
    let lines = (1..).zip(text.lines());
    let mut lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    // The position and status of ddrescue itself.
    let _ = lines.next();
    let mut rescued: Vec<Range<u64>> = Vec::new();
    for (number, line) in lines {
        if let Some(range) = parse_line(line).map_err(|error| (number, error))? {
            rescued.push(range);
        }
    }
    rescued.sort_by_key(|range| range.start);
    let mut merged: Vec<Range<u64>> = Vec::new();
    for range in rescued {
        match merged.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    Ok(merged)
}

/// The range of a line, if it was rescued.
fn parse_line(line: &str) -> Result<Option<Range<u64>>> {
    let mut fields = line.split_whitespace();
    let [Some(position), Some(size), Some(status)] = [fields.next(), fields.next(), fields.next()]
    else {
        return Err(Error::msg(format!("cannot parse {line}")));
    };
    let number = |what, text| parse::integer::<i64>(what, text);
    let (position, size) = (number("block offset", position)?, number("block size", size)?);
    let (Ok(start), Ok(size)) = (u64::try_from(position), u64::try_from(size)) else {
        return Err(Error::msg("block offset must not be negative"));
    };
    match status {
        "+" => Ok(Some(start..start.saturating_add(size))),
        // Not tried, not trimmed, not scraped, bad.
        "?" | "*" | "/" | "-" => Ok(None),
        _ => Err(Error::msg(format!("there is no block status {status}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_that_were_rescued_are_merged() {
        let map = "# Mapfile. Created by GNU ddrescue version 1.27\n\
                   # current_pos  current_status  current_pass\n\
                   0x00001000     ?               1\n\
                   #      pos        size  status\n\
                   0x00002000  0x00001000  +\n\
                   0x00000000  0x00001000  +\n\
                   0x00001000  0x00000800  -\n\
                   0x00001800  0x00000800  +\n\
                   4096        100         *\n\
                   0x00004000  010         /\n";
        assert_eq!(parse_map(map).unwrap(), [0..0x1000, 0x1800..0x3000]);
        assert!(parse_map("").unwrap().is_empty());
        let largest = format!("0 +\n1 {} +\n", i64::MAX);
        assert_eq!(parse_map(&largest).unwrap(), vec![Range { start: 1, end: 1 << 63 }]);
    }

    #[test]
    fn a_line_that_is_no_block_is_named() {
        for text in ["0 +\n0 4096", "0 +\n0 x +", "0 +\n-1 4096 +", "0 +\n0 -1 +", "0 +\n0 1 x"] {
            assert_eq!(parse_map(text).unwrap_err().0, 2, "{text}");
        }
    }
}
