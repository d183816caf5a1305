//! Names on a FAT file system. "Microsoft FAT Specification", 2005, sections 6 and 7.

#![forbid(unsafe_code)]

use std::collections::{HashMap, HashSet};

/// Most units of UTF-16 in a long name.
const MOST_UNITS: usize = 255;
/// Most digits of the tail of a short name.
const MOST_TAIL: u32 = 999_999;
/// What a long name cannot have, besides control characters.
const FORBIDDEN: &str = "\"*/:<>?\\|";
/// What a short name can have besides letters and digits.
const PERMITTED: &str = "$%'-_@~`!(){}^#&";

/// Looks whether this can be a long name.
///
/// # Errors
/// Why not.
pub(super) fn check_long(name: &str) -> Result<(), &'static str> {
    if name.encode_utf16().count() > MOST_UNITS {
        return Err("the name is too long for a FAT file system");
    }
    if name.chars().any(|c| c < ' ' || FORBIDDEN.contains(c)) {
        return Err("the name has a character that a FAT file system cannot hold");
    }
    if name.ends_with(['.', ' ']) || name.starts_with(' ') {
        return Err("on a FAT file system no name begins with a space or ends with one or a dot");
    }
    Ok(())
}

/// The part of a long name that a short one begins with: at most `most` characters.
fn part(text: &str, most: usize) -> String {
    let usable = text.chars().filter(|c| !matches!(c, '.' | ' ')).map(|c| {
        let upper = c.to_ascii_uppercase();
        let kept = upper.is_ascii_alphanumeric() || PERMITTED.contains(upper);
        if kept { upper } else { '_' }
    });
    usable.take(most).collect()
}

fn joined(base: &str, extension: &str) -> [u8; 11] {
    let mut short = [b' '; 11];
    short[..base.len()].copy_from_slice(base.as_bytes());
    short[8..8 + extension.len()].copy_from_slice(extension.as_bytes());
    short
}

/// A short name as a user sees it.
pub(super) fn shown(short: &[u8; 11]) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
    let (base, extension) = (text(&short[..8]), text(&short[8..]));
    if extension.is_empty() { base } else { format!("{base}.{extension}") }
}

/// The short names of a directory.
#[derive(Debug, Default)]
pub(super) struct ShortNames {
    taken: HashSet<[u8; 11]>,
    /// The last number behind what a short name begins with.
    tails: HashMap<(String, String), u32>,
}

impl ShortNames {
    /// A name for `name` that no other has. With `exact` only if it is the same but for upper and
    /// lower case.
    pub(super) fn take(&mut self, name: &str, exact: bool) -> Option<[u8; 11]> {
        let bare = name.trim_start_matches('.');
        let (base, extension) = bare.rsplit_once('.').unwrap_or((bare, ""));
        let (base, extension) = (part(base, 8), part(extension, 3));
        if exact {
            let short = joined(&base, &extension);
            let is_same = shown(&short) == name.to_ascii_uppercase() && !base.is_empty();
            return (is_same && self.taken.insert(short)).then_some(short);
        }
        let key = (part(&base, 6), extension);
        loop {
            let number = self.tails.entry(key.clone()).or_default();
            *number += 1;
            if *number > MOST_TAIL {
                return None;
            }
            let tail = format!("~{number}");
            let short = joined(&(part(&base, 8 - tail.len()) + &tail), &key.1);
            if self.taken.insert(short) {
                return Some(short);
            }
        }
    }
}

/// The sum of a short name that the entries of its long name hold.
pub(super) fn checksum(short: &[u8; 11]) -> u8 {
    short.iter().fold(0_u8, |sum, byte| sum.rotate_right(1).wrapping_add(*byte))
}

/// The 32-byte entries of a long name, in the order in which they stand before that of the short
/// one: the last part first.
pub(super) fn long_entries(name: &str, short: &[u8; 11]) -> Vec<[u8; 32]> {
    /// Where the 13 units of a part are.
    const UNITS: [usize; 13] = [1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30];
    const LONG_NAME: u8 = 0x0f;
    const LAST: u8 = 0x40;
    let units: Vec<u16> = name.encode_utf16().collect();
    let count = units.len().div_ceil(UNITS.len());
    let parts = units.chunks(UNITS.len()).enumerate().map(|(i, part)| {
        let mut entry = [0; 32];
        // At most 20.
        entry[0] = (i as u8 + 1) | if i + 1 == count { LAST } else { 0 };
        entry[11] = LONG_NAME;
        entry[13] = checksum(short);
        // Behind the end are a zero and ones.
        let filled = part.iter().copied().chain([0]).chain(std::iter::repeat(0xffff));
        for (at, unit) in UNITS.into_iter().zip(filled) {
            entry[at..at + 2].copy_from_slice(&unit.to_le_bytes());
        }
        entry
    });
    let mut entries: Vec<_> = parts.collect();
    entries.reverse();
    entries
}
