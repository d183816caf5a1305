//! nbdkit-extentlist-filter(1): a list of extents from a file, in place of the plugin's own.

use std::path::Path;
use std::sync::Arc;

use nbdkit_api::{
    DataPath, Direction, Error, Extent, ExtentKind, Extents, Filter, Flags, Next, NextConfig, Open,
    OpenLayer, Result, ResultExt, Slot, Value, parse,
};

/// Longest file, bytes: some millions of extents.
const MAX_FILE: u64 = 256 << 20;

/// The filter: the extents, in ascending order and without overlaps.
#[derive(Debug, Default)]
pub struct ExtentList {
    extents: Option<Arc<[Extent]>>,
}

impl Filter for ExtentList {
    fn name(&self) -> &str {
        "extentlist"
    }

    fn longname(&self) -> Option<&str> {
        Some("nbdkit extentlist filter")
    }

    fn config_help(&self) -> Option<&str> {
        Some("extentlist=<FILENAME>  (required) The file of extents.")
    }

    fn config(&mut self, next: NextConfig<'_>, key: &str, value: Value<'_>) -> Result<()> {
        if key != "extentlist" {
            return next.config(key, value);
        }
        if self.extents.is_some() {
            return Err(Error::msg("extentlist cannot appear twice"));
        }
        self.extents = Some(read(value.as_path())?.into());
        Ok(())
    }

    fn config_complete(&mut self, next: NextConfig<'_>) -> Result<()> {
        if self.extents.is_none() {
            return Err(Error::msg("you must supply the extentlist parameter on the command line"));
        }
        next.config_complete()
    }

    fn can_park(&self) -> bool {
        true
    }

    fn open(&self, below: &mut Slot<'_>, open: &Open<'_>) -> Result<Box<dyn OpenLayer>> {
        below.open(open)?;
        Ok(Box::new(Handle(self.extents.clone().unwrap_or_default())))
    }
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
        flags: Flags,
        extents: &mut Extents,
    ) -> Result<()> {
        let end = offset + count;
        let mut at = offset;
        let first = self.0.partition_point(|extent| extent.end() <= offset);
        for extent in &self.0[first..] {
            if at >= end || flags.contains(Flags::REQ_ONE) && at > offset {
                return Ok(());
            }
            if extent.offset > at {
                // Between extents nothing is allocated.
                let gap = extent.offset.min(end) - at;
                extents.add(at, gap, ExtentKind::SPARSE)?;
                at += gap;
                if at >= end || flags.contains(Flags::REQ_ONE) {
                    return Ok(());
                }
            }
            let length = extent.end().min(end) - at;
            extents.add(at, length, extent.kind)?;
            at += length;
        }
        if at < end { extents.add(at, end - at, ExtentKind::SPARSE) } else { Ok(()) }
    }

    fn data_path(&self, _: Direction) -> DataPath {
        DataPath::Transparent
    }
}

/// Reads the file.
///
/// # Errors
/// It cannot be read, which of its lines is no extent, or extents overlap.
fn read(path: &Path) -> Result<Vec<Extent>> {
    let file = std::fs::File::open(path).or_error(|| format!("open: {}", path.display()))?;
    let mut text = String::new();
    let read = std::io::Read::take(file, MAX_FILE + 1);
    std::io::Read::read_to_string(&mut { read }, &mut text)
        .or_error(|| format!("read: {}", path.display()))?;
    if text.len() as u64 > MAX_FILE {
        return Err(Error::msg(format!("{}: longer than {MAX_FILE} bytes", path.display())));
    }
    parse_list(&text).map_err(|(line, error)| match line {
        Some(line) => error.context(format!("{}:{line}", path.display())),
        None => error,
    })
}

/// The extents of a list. nbdkit-extentlist-filter(1), "File format".
///
/// # Errors
/// The number of a line that is no extent; none if extents overlap.
pub(crate) fn parse_list(text: &str) -> std::result::Result<Vec<Extent>, (Option<usize>, Error)> {
    let mut list = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        // Comments and empty lines as in nbdkit 1.46.
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        let extent = parse_line(line).map_err(|error| (Some(number), error))?;
        if extent.length > 0 {
            list.push(extent);
        }
    }
    list.sort_by_key(|extent: &Extent| extent.offset);
    if list.windows(2).any(|pair| pair[0].end() > pair[1].offset) {
        let why = "extents in the extent list are overlapping";
        return Err((None, Error::msg(why)));
    }
    Ok(list)
}

fn parse_line(line: &str) -> Result<Extent> {
    let mut fields = line.splitn(3, [' ', '\t']).map(str::trim).filter(|field| !field.is_empty());
    let mut rest = String::new();
    let offset = fields.next().unwrap_or_default();
    let mut length = fields.next().unwrap_or_default();
    // Several blanks between the fields leave the later ones in one piece.
    let mut kind = fields.next().unwrap_or_default();
    if kind.is_empty()
        && let Some((first, second)) = length.split_once([' ', '\t'])
    {
        rest.push_str(second.trim());
        length = first;
        kind = &rest;
    }
    if length.is_empty() {
        return Err(Error::msg(format!("cannot parse {line}")));
    }
    let (offset, length) = (parse::size(offset)?, parse::size(length)?);
    if offset.checked_add(length).is_none_or(|end| end > i64::MAX as u64) {
        return Err(Error::msg("an extent ends beyond the largest disk"));
    }
    Ok(Extent { offset, length, kind: parse_kind(kind)? })
}

/// A number, or words with commas between them.
fn parse_kind(text: &str) -> Result<ExtentKind> {
    if let Ok(bits) = text.parse::<u32>() {
        return ExtentKind::from_bits(bits)
            .ok_or_else(|| Error::msg(format!("the type of an extent is 0 to 3, not {bits}")));
    }
    let mut kind = ExtentKind::DATA;
    for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
        kind |= match word {
            "hole" => ExtentKind::HOLE,
            "zero" => ExtentKind::ZERO,
            _ => {
                return Err(Error::msg(format!("the type of an extent is hole, zero, not {word}")));
            }
        };
    }
    Ok(kind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, Disk};

    fn list(text: &str) -> Vec<(u64, u64, u32)> {
        let extents = parse_list(text).map_err(|(line, error)| format!("{line:?}: {error}"));
        extents.unwrap().iter().map(|it| (it.offset, it.length, it.kind.bits())).collect()
    }

    #[test]
    fn lines_have_an_offset_a_length_and_perhaps_a_type() {
        let text = "1M 9M hole,zero\n# a comment\n\n0  1M\n10M 512 zero # why\n11M\t4096\thole\n\
                    12M 1 3\n13M   1    hole, zero\n14M 0 hole\n";
        const M: u64 = 1 << 20;
        let expected = [
            (0, M, 0),
            (M, 9 * M, 3),
            (10 * M, 512, 2),
            (11 * M, 4096, 1),
            (12 * M, 1, 3),
            (13 * M, 1, 3),
        ];
        assert_eq!(list(text), expected);
    }

    #[test]
    fn a_line_that_is_no_extent_is_named() {
        for (text, line) in [
            ("0", 1),
            ("0 1M\nx 1", 2),
            ("\n0 1M 4", 2),
            ("0 1M data", 1),
            ("0 1M -1", 1),
            ("0 9223372036854775808", 1),
            ("9223372036854775807 1", 1),
        ] {
            assert_eq!(parse_list(text).unwrap_err().0, Some(line), "{text}");
        }
        let (line, why) = parse_list("0 2M\n1M 2M\n").unwrap_err();
        assert_eq!((line, why.message()), (None, "extents in the extent list are overlapping"));
    }

    #[test]
    fn gaps_are_holes_and_one_extent_is_enough_if_that_is_asked() {
        let disk = Arc::new(Disk::new(1 << 20));
        let dir = std::env::temp_dir().join(format!("nbdkit-extentlist-{}", std::process::id()));
        std::fs::write(&dir, "4096 4096\n16K 1M zero\n").unwrap();
        let path = dir.to_str().unwrap();
        let backend = testing::backend(&disk, &["extentlist"], &[("extentlist", path)]);
        std::fs::remove_file(&dir).unwrap();
        let all = [(0, 4096, 3), (4096, 4096, 0), (8192, 8192, 3), (16384, 1032192, 2)];
        assert_eq!(testing::extents_of(&backend, 1 << 20, 0), all);
        assert_eq!(testing::extents_of(&backend, 100, 5000), [(5000, 100, 0)]);
        let mut one = Extents::new(0, 1 << 20);
        backend.extents(1 << 20, 0, Flags::REQ_ONE, &mut one).unwrap();
        assert_eq!(one.as_slice().len(), 1);
    }
}
