//! The descriptor: "The Descriptor File". Lines of text, of which those that list extents matter,
//! and whether there is a parent.

use nbdkit_api::Result;

use super::{SECTOR, bad};
use crate::disk_image::source::Source;

/// The largest that is read, bytes.
const MOST: u64 = 1 << 20;
/// Most extents: those of a disk of 8 TiB in files of 2 GiB.
const MOST_EXTENTS: usize = 4096;
/// How it begins.
const SIGNATURE: &[u8] = b"# disk descriptorfile";

/// An extent.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Described {
    /// Bytes.
    pub(super) length: u64,
    pub(super) content: Content,
}

/// What is in an extent.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Content {
    Zeroes,
    /// The bytes of a file from `offset` on.
    Flat {
        name: Vec<u8>,
        offset: u64,
    },
    Sparse {
        name: Vec<u8>,
    },
}

impl Content {
    /// Of the file, which is in the image's directory.
    pub(super) fn name(&self) -> Option<&[u8]> {
        match self {
            Content::Zeroes => None,
            Content::Flat { name, .. } | Content::Sparse { name } => Some(name),
        }
    }
}

/// Reads the text that has `length` bytes at `offset` of an image. What follows a zero is padding.
///
/// # Errors
/// EINVAL: it is too large, or there is none. Those of the source.
pub(super) fn read(image: &impl Source, offset: u64, length: u64) -> Result<Vec<u8>> {
    if length > MOST {
        let mut begin = [0; SIGNATURE.len()];
        image.read(&mut begin, offset)?;
        check(&begin)?;
        return Err(bad(format_args!("a descriptor of more than {MOST} bytes")));
    }
    let mut text = vec![0; length as usize];
    image.read(&mut text, offset)?;
    if let Some(end) = text.iter().position(|byte| *byte == 0) {
        text.truncate(end);
    }
    check(&text)?;
    Ok(text)
}

fn check(text: &[u8]) -> Result<()> {
    let text = text.trim_ascii_start();
    let begin = text.get(..SIGNATURE.len());
    if begin.is_none_or(|begin| !begin.eq_ignore_ascii_case(SIGNATURE)) {
        return Err(bad("there is no descriptor"));
    }
    Ok(())
}

/// The extents that a descriptor lists.
///
/// # Errors
/// EINVAL: it makes no sense, or needs what is not supported.
pub(super) fn parse(text: &[u8]) -> Result<Vec<Described>> {
    let mut extents = Vec::new();
    let lines = text.split(|byte| matches!(byte, b'\n' | b'\r')).map(<[u8]>::trim_ascii);
    for line in lines.filter(|line| !line.is_empty() && !line.starts_with(b"#")) {
        let (first, rest) = word(line);
        if matches!(first, b"RW" | b"RDONLY" | b"NOACCESS") {
            if extents.len() >= MOST_EXTENTS {
                return Err(bad(format_args!("more than {MOST_EXTENTS} extents")));
            }
            let described = extent(first, rest);
            let refused = || bad(format_args!("an extent that is {}", line.escape_ascii()));
            extents.push(described.ok_or_else(refused)??);
            continue;
        }
        let mut parts = line.splitn(2, |byte| *byte == b'=').map(<[u8]>::trim_ascii);
        let (key, value) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let has_parent = key.eq_ignore_ascii_case(b"parentCID")
            && !value.trim_ascii().eq_ignore_ascii_case(b"ffffffff");
        if has_parent {
            return Err(bad("a delta disk, which needs another image, is not supported"));
        }
    }
    if extents.is_empty() {
        return Err(bad("its descriptor has no extents"));
    }
    Ok(extents)
}

/// The first word of a line, and what follows it.
fn word(line: &[u8]) -> (&[u8], &[u8]) {
    let end = line.iter().position(u8::is_ascii_whitespace).unwrap_or(line.len());
    (&line[..end], line[end..].trim_ascii_start())
}

fn number(word: &[u8]) -> Option<u64> {
    std::str::from_utf8(word).ok()?.parse().ok()
}

/// An extent from what follows its access; `None` if that makes no sense.
fn extent(access: &[u8], rest: &[u8]) -> Option<Result<Described>> {
    let (sectors, rest) = word(rest);
    let (kind, rest) = word(rest);
    let length = number(sectors)?.checked_mul(SECTOR)?;
    if access == b"NOACCESS" {
        return Some(Err(bad("an extent without access is not supported")));
    }
    if kind == b"ZERO" {
        return Some(Ok(Described { length, content: Content::Zeroes }));
    }
    let is_flat = match kind {
        b"FLAT" | b"VMFS" => true,
        b"SPARSE" | b"VMFSSPARSE" => false,
        _ => {
            let kind = kind.escape_ascii();
            return Some(Err(bad(format_args!("an extent of type {kind} is not supported"))));
        }
    };
    let quoted = rest.strip_prefix(b"\"")?;
    let end = quoted.iter().position(|byte| *byte == b'"')?;
    let name = quoted[..end].to_vec();
    if name.contains(&b'/') || matches!(&name[..], b"" | b"." | b"..") {
        let name = name.escape_ascii();
        let why = format_args!("its extent \"{name}\" is not in the directory of the image");
        return Some(Err(bad(why)));
    }
    let content = if is_flat {
        let (offset, _) = word(quoted[end + 1..].trim_ascii_start());
        let offset = if offset.is_empty() { 0 } else { number(offset)?.checked_mul(SECTOR)? };
        // Files end before that.
        offset.checked_add(length).filter(|end| i64::try_from(*end).is_ok())?;
        Content::Flat { name, offset }
    } else {
        Content::Sparse { name }
    };
    Some(Ok(Described { length, content }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(line: &str) -> String {
        let why = parse(line.as_bytes()).unwrap_err();
        why.message().strip_prefix("bad VMDK image: ").unwrap().to_owned()
    }

    #[test]
    fn extents_of_all_kinds_are_listed() {
        let text = "# Disk DescriptorFile\r\nversion=1\n parentCID = FFFFFFFF\n\
                    # RW 1 FLAT \"comment\"\ncreateType=\"custom\"\n\
                    RW 2 SPARSE \"a b.vmdk\"\r\n  RDONLY 3 FLAT \"c\" 4\nRW 5 VMFS \"d\"\n\
                    RW 6 ZERO\nRW 7 VMFSSPARSE \"\u{e9}\"\nddb.geometry.heads = \"16\"\n";
        let flat = |name: &str, offset| Content::Flat { name: name.into(), offset };
        let sparse = |name: &str| Content::Sparse { name: name.into() };
        let expected = [
            (2, sparse("a b.vmdk")),
            (3, flat("c", 2048)),
            (5, flat("d", 0)),
            (6, Content::Zeroes),
            (7, sparse("\u{e9}")),
        ];
        let expected = expected.map(|(n, content)| Described { length: n * SECTOR, content });
        assert_eq!(parse(text.as_bytes()).unwrap(), expected);
    }

    #[test]
    fn what_cannot_be_served_is_named() {
        let delta = "a delta disk, which needs another image, is not supported";
        assert_eq!(refused("parentCID=12345678\nRW 1 ZERO"), delta);
        assert_eq!(refused("RW 1 ZERO\nparentCID="), delta);
        assert_eq!(refused("version=1"), "its descriptor has no extents");
        assert_eq!(refused("NOACCESS 1 ZERO"), "an extent without access is not supported");
        assert_eq!(refused("RW 1 VMFSRDM \"a\""), "an extent of type VMFSRDM is not supported");
        assert_eq!(refused("RW 1 \x1b[1m \"a\""), "an extent of type \\x1b[1m is not supported");
        for name in ["", ".", "..", "/etc/passwd", "../a", "a/b"] {
            let line = format!("RW 1 FLAT \"{name}\" 0");
            let expected = format!("its extent \"{name}\" is not in the directory of the image");
            assert_eq!(refused(&line), expected);
        }
        for line in [
            "RW",
            "RW x ZERO",
            "RW -1 ZERO",
            "RW 18446744073709551615 ZERO",
            "RW 1 FLAT a",
            "RW 1 FLAT \\\"a",
            "RW 1 FLAT \"a\" x",
            "RW 1 FLAT \"a\" 18446744073709551615",
            "RW 1 FLAT \"a\" 36028797018963967",
            "RW 2 FLAT \"a\" 18014398509481982",
        ] {
            assert!(refused(line).starts_with("an extent that is RW"), "{line}");
        }
        let many = "RW 1 ZERO\n".repeat(MOST_EXTENTS + 1);
        assert_eq!(refused(&many), "more than 4096 extents");
    }
}
