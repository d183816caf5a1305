//! nbdkit-extentlist-filter(1): the extents of the disk are those of a file, which is read once, at
//! the start.

use std::path::PathBuf;
use std::sync::Arc;

use nbdkit_api::{
    DataPath, Direction, Error, Extent, ExtentKind, Extents, Filter, Flags, Next, NextConfig, Open,
    OpenLayer, Result, ResultExt, Slot, Value, parse,
};

/// The filter: the file and, once that was read, its extents in order, without gaps.
#[derive(Debug, Default)]
pub struct ExtentList {
    path: Option<PathBuf>,
    extents: Arc<[Extent]>,
}

impl Filter for ExtentList {
    fn name(&self) -> &str {
        "extentlist"
    }

    fn longname(&self) -> Option<&str> {
        Some("nbdkit extentlist filter")
    }

    fn config_help(&self) -> Option<&str> {
        Some("extentlist=<FILENAME>      (required) The file with the extents.")
    }

    fn config(&mut self, next: NextConfig<'_>, key: &str, value: Value<'_>) -> Result<()> {
        if key != "extentlist" {
            return next.config(key, value);
        }
        if self.path.is_some() {
            return Err(Error::msg("extentlist cannot appear twice"));
        }
        self.path = Some(value.absolute_path()?);
        Ok(())
    }

    fn config_complete(&mut self, next: NextConfig<'_>) -> Result<()> {
        let Some(path) = &self.path else {
            return Err(Error::msg("you must supply the extentlist parameter on the command line"));
        };
        let text =
            std::fs::read_to_string(path).or_error(|| format!("open: {}", path.display()))?;
        self.extents = read_list(&text).map_err(|error| error.context(path.display()))?.into();
        next.config_complete()
    }

    fn open(&self, below: &mut Slot<'_>, open: &Open<'_>) -> Result<Box<dyn OpenLayer>> {
        below.open(open)?;
        Ok(Box::new(Handle(Arc::clone(&self.extents))))
    }
}

/// Lines `OFFSET LENGTH [TYPE]`; empty ones and those that begin with `#` do not count. The result
/// goes from 0 to the largest number, and what no line has is a hole.
///
/// # Errors
/// A line makes no sense; two overlap.
fn read_list(text: &str) -> Result<Vec<Extent>> {
    let mut listed = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let extent = read_line(line).map_err(|error| error.context(format!("line {number}")))?;
        if extent.length > 0 {
            listed.push(extent);
        }
    }
    listed.sort_by_key(|extent| extent.offset);
    let mut extents: Vec<Extent> = Vec::with_capacity(listed.len());
    let mut covered = 0;
    let hole = |from, to| Extent { offset: from, length: to - from, kind: ExtentKind::SPARSE };
    for extent in listed {
        if extent.offset < covered {
            return Err(Error::msg("extents in the extent list are overlapping"));
        }
        if extent.offset > covered {
            extents.push(hole(covered, extent.offset));
        }
        covered = extent.end();
        extents.push(extent);
    }
    extents.push(hole(covered, u64::MAX));
    Ok(extents)
}

fn read_line(line: &str) -> Result<Extent> {
    let mut fields = line.split_ascii_whitespace();
    let (Some(offset), Some(length)) = (fields.next(), fields.next()) else {
        return Err(Error::msg(format!("cannot parse {line}")));
    };
    // Both are less than 2^63, so their sum does not overflow.
    let (offset, length) = (parse::size(offset)?, parse::size(length)?);
    let kind = match fields.next().map(|kind| (kind, kind.parse())) {
        None => ExtentKind::DATA,
        Some((text, Ok(bits))) => ExtentKind::from_bits(bits).ok_or_else(|| unknown(text))?,
        Some((text, Err(_))) => {
            text.split(',').try_fold(ExtentKind::DATA, |kind, word| match word {
                "hole" => Ok(kind | ExtentKind::HOLE),
                "zero" => Ok(kind | ExtentKind::ZERO),
                _ => Err(unknown(word)),
            })?
        }
    };
    match fields.next() {
        None => Ok(Extent { offset, length, kind }),
        Some(more) => Err(Error::msg(format!("cannot parse {line}: {more} is too much"))),
    }
}

fn unknown(kind: &str) -> Error {
    Error::msg(format!("unknown type of extent: {kind}"))
}

struct Handle(Arc<[Extent]>);

impl OpenLayer for Handle {
    fn can_extents(&self, _: &Next) -> Result<bool> {
        Ok(true)
    }

    fn extents(
        &self,
        _: &Next,
        count: u64,
        offset: u64,
        _: Flags,
        extents: &mut Extents,
    ) -> Result<()> {
        let end = offset + count;
        let first = self.0.partition_point(|extent| extent.end() <= offset);
        for extent in self.0[first..].iter().take_while(|extent| extent.offset < end) {
            let (from, to) = (extent.offset.max(offset), extent.end().min(end));
            extents.add(from, to - from, extent.kind)?;
        }
        Ok(())
    }

    fn data_path(&self, _: Direction) -> DataPath {
        DataPath::Transparent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(text: &str) -> Vec<(u64, u64, u32)> {
        let handle = Handle(read_list(text).unwrap().into());
        let mut extents = Extents::new(100, 10_000);
        handle.extents(&Next::default(), 9900, 100, Flags::empty(), &mut extents).unwrap();
        extents.iter().map(|extent| (extent.offset, extent.length, extent.kind.bits())).collect()
    }

    #[test]
    fn lists_in_any_order_and_with_gaps_cover_the_disk() {
        assert_eq!(listed(""), [(100, 9900, 3)]);
        assert_eq!(listed("# all\n\n  0 1M 0\n"), [(100, 9900, 0)]);
        assert_eq!(
            listed("5K 1K zero\n0 1K\n7K 1E 2\n2000 48 hole,zero\n 2048 10 hole\n0 0 1"),
            [
                (100, 924, 0),
                (1024, 1024, 3),
                (2048, 10, 1),
                (2058, 3062, 3),
                (5120, 1024, 2),
                (6144, 1024, 3),
                (7168, 2832, 2)
            ]
        );
    }

    #[test]
    fn lists_that_make_no_sense_are_refused() {
        for (text, why) in [
            ("0 10\n\n9 2", "extents in the extent list are overlapping"),
            ("0 10\n5", "line 2: cannot parse 5"),
            ("0 1 4", "line 1: unknown type of extent: 4"),
            ("0 1 zero,x", "line 1: unknown type of extent: x"),
            ("0 1 zero hole", "line 1: cannot parse 0 1 zero hole: hole is too much"),
            ("0 -1", "line 1: size cannot be negative: -1"),
        ] {
            assert_eq!(read_list(text).unwrap_err().message(), why, "{text}");
        }
    }
}
