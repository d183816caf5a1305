//! Finds a file in a tar archive: the formats v7, ustar, pax and GNU. POSIX.1-2017, pax, "ustar
//! Interchange Format", and GNU tar's manual, "Basic Tar Format". The archive is hostile: what is
//! kept of it is a block and a name, and each step goes forward.

#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::ops::Range;

use nbdkit_api::{Errno, Error, Result};

/// An archive, which is the whole disk.
pub(super) struct Archive<'a> {
    /// Fills a buffer from an offset, within the disk.
    pub(super) read: &'a dyn Fn(&mut [u8], u64) -> Result<()>,
    /// Bytes of the disk.
    pub(super) size: u64,
    /// How many bytes of the archive may be looked at.
    pub(super) limit: u64,
}

const BLOCK: usize = 512;

/// The longest name, and the longest set of pax records, that is read.
const LONGEST: u64 = 1 << 20;

/// What extended headers say about the entry that follows them.
#[derive(Debug, Default)]
struct Extended {
    name: Option<Vec<u8>>,
    size: Option<u64>,
    is_sparse: bool,
}

fn error(why: impl Into<String>) -> Error {
    Error::new(Errno::EINVAL, why)
}

fn damaged(offset: u64) -> Error {
    error(format!("tar: the header at offset {offset} makes no sense: is this a tar file?"))
}

impl Archive<'_> {
    /// The bytes of the first entry called `wanted`, as it is stored or as tar(1) lists it.
    ///
    /// # Errors
    /// ENOENT: there is none. EINVAL: it is no regular file, or sparse, or the archive is damaged.
    /// Those of reading.
    pub(super) fn find(&self, wanted: &[u8]) -> Result<Range<u64>> {
        let listed = unquote(wanted);
        let mut extended = Extended::default();
        let mut at = 0;
        while let Some(block) = self.header(at)? {
            let mut size = number(&block[124..136]).ok_or_else(|| damaged(at))?;
            let kind = block[156];
            let mut data = at + BLOCK as u64;
            match kind {
                b'L' => {
                    let name = self.contents(at, data, size)?;
                    extended.name = Some(text(&name).to_vec());
                }
                b'x' => parse_pax(&self.contents(at, data, size)?, &mut extended)
                    .ok_or_else(|| damaged(at))?,
                // The long name of a link's target, and pax records for all that follows.
                b'K' | b'g' => {}
                _ => {
                    let extended = std::mem::take(&mut extended);
                    size = extended.size.unwrap_or(size);
                    if kind == b'S' {
                        data = self.skip_sparse_map(&block, data)?;
                    }
                    if kind == b'1' {
                        size = 0; // A link's size is that of the file.
                    }
                    let name = extended.name.map_or_else(|| own_name(&block), Cow::from);
                    if *name == *wanted || *name == *listed {
                        return self.check(wanted, kind, extended.is_sparse, data, size);
                    }
                }
            }
            at = size
                .checked_next_multiple_of(BLOCK as u64)
                .and_then(|padded| data.checked_add(padded))
                .ok_or_else(|| damaged(at))?;
        }
        Err(Error::new(
            Errno::ENOENT,
            format!(
                "tar: no entry called {}: check that the file really exists in the tarball",
                String::from_utf8_lossy(wanted)
            ),
        ))
    }

    /// The header at `at`; `None` at the end of the archive.
    fn header(&self, at: u64) -> Result<Option<[u8; BLOCK]>> {
        let end = at.saturating_add(BLOCK as u64);
        if end > self.limit {
            let limit = self.limit;
            return Err(error(format!("tar: the entry was not found in tar-limit={limit} bytes")));
        }
        if end > self.size {
            return Ok(None);
        }
        let mut block = [0; BLOCK];
        (self.read)(&mut block, at)?;
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        // The sum of the bytes, with blanks for the sum itself. Some old programs sum up signed
        // bytes.
        let sum = |value: fn(u8) -> i64| -> i64 {
            let own = block[148..156].iter().map(|byte| value(*byte)).sum::<i64>();
            block.iter().map(|byte| value(*byte)).sum::<i64>() - own + 8 * i64::from(b' ')
        };
        let expected = number(&block[148..156]).and_then(|sum| i64::try_from(sum).ok());
        let sums = [sum(i64::from), sum(|byte| i64::from(byte.cast_signed()))];
        if expected.is_none_or(|expected| !sums.contains(&expected)) {
            return Err(damaged(at));
        }
        Ok(Some(block))
    }

    /// What an extended header at `at` has at `data`.
    fn contents(&self, at: u64, data: u64, size: u64) -> Result<Vec<u8>> {
        if size > LONGEST || size > self.size - data {
            return Err(damaged(at));
        }
        let mut contents = vec![0; size as usize];
        (self.read)(&mut contents, data)?;
        Ok(contents)
    }

    /// Where the data of a sparse file of the old GNU format begin: behind blocks with its map.
    fn skip_sparse_map(&self, block: &[u8; BLOCK], mut data: u64) -> Result<u64> {
        let mut more = block[482] != 0;
        while more {
            if data > self.size - BLOCK as u64 {
                return Err(damaged(data));
            }
            let mut map = [0; BLOCK];
            (self.read)(&mut map, data)?;
            more = map[504] != 0;
            data += BLOCK as u64;
        }
        Ok(data)
    }

    fn check(
        &self,
        wanted: &[u8],
        kind: u8,
        is_sparse: bool,
        data: u64,
        size: u64,
    ) -> Result<Range<u64>> {
        let wanted = String::from_utf8_lossy(wanted);
        if is_sparse || kind == b'S' {
            return Err(error(format!("tar: {wanted} is a sparse entry, which cannot be served")));
        }
        if !matches!(kind, b'0' | 0 | b'7') {
            return Err(error(format!("tar: {wanted} is not a regular file")));
        }
        match data.checked_add(size) {
            Some(end) if end <= self.size => Ok(data..end),
            _ => Err(error(format!("tar: {wanted} is truncated: the tar file ends within it"))),
        }
    }
}

/// Up to the first NUL byte.
fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// The name in the header itself; in the ustar format, a part of it is a prefix.
fn own_name(block: &[u8; BLOCK]) -> Cow<'_, [u8]> {
    let (name, prefix) = (text(&block[..100]), text(&block[345..500]));
    if &block[257..263] == b"ustar\0" && !prefix.is_empty() {
        Cow::from([prefix, b"/", name].concat())
    } else {
        Cow::from(name)
    }
}

/// A number: octal digits, or with the highest bit set, big-endian.
fn number(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        let first = u64::from(field[0] & 0x7f);
        return field[1..]
            .iter()
            .try_fold(first, |n, byte| n.checked_mul(256).map(|n| n | u64::from(*byte)));
    }
    let digits = text(field).trim_ascii();
    digits.iter().try_fold(0, |n: u64, byte| match byte {
        b'0'..=b'7' => n.checked_mul(8).map(|n| n | u64::from(byte - b'0')),
        _ => None,
    })
}

/// Records `LENGTH KEY=VALUE\n`, where the length is that of the record. `None` if they are not so.
fn parse_pax(mut records: &[u8], extended: &mut Extended) -> Option<()> {
    while !records.is_empty() {
        let space = records.iter().position(|byte| *byte == b' ')?;
        let length: usize = std::str::from_utf8(&records[..space]).ok()?.parse().ok()?;
        let record = records.get(space + 1..length)?.strip_suffix(b"\n")?;
        records = &records[length..];
        let equals = record.iter().position(|byte| *byte == b'=')?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        match key {
            // The name of a sparse file, whose path is another one.
            b"GNU.sparse.name" => {
                extended.name = Some(value.to_vec());
                extended.is_sparse = true;
            }
            b"path" if !extended.is_sparse => extended.name = Some(value.to_vec()),
            b"size" => extended.size = Some(std::str::from_utf8(value).ok()?.parse().ok()?),
            _ => extended.is_sparse |= key.starts_with(b"GNU.sparse."),
        }
    }
    Some(())
}

/// The name of which `tar tf` lists `name`: with escapes for control characters and backslashes.
fn unquote(name: &[u8]) -> Cow<'_, [u8]> {
    if !name.contains(&b'\\') {
        return Cow::from(name);
    }
    let mut plain = Vec::with_capacity(name.len());
    let mut left = name;
    while let [byte, following @ ..] = left {
        left = following;
        if *byte != b'\\' {
            plain.push(*byte);
            continue;
        }
        let digits = left.iter().take(3).take_while(|byte| (b'0'..=b'7').contains(byte)).count();
        let known = left.first().and_then(|byte| match byte {
            b'\\' => Some(b'\\'),
            b'a' => Some(7),
            b'b' => Some(8),
            b't' => Some(b'\t'),
            b'n' => Some(b'\n'),
            b'v' => Some(11),
            b'f' => Some(12),
            b'r' => Some(b'\r'),
            _ => None,
        });
        if let Some(known) = known {
            plain.push(known);
            left = &left[1..];
        } else if digits == 3 {
            let value = left[..3].iter().fold(0, |n: u8, byte| n.wrapping_mul(8) | (byte - b'0'));
            plain.push(value);
            left = &left[3..];
        } else {
            plain.push(b'\\');
        }
    }
    Cow::from(plain)
}
