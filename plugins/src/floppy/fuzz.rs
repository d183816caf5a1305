//! For the fuzz target `fat_names`: the names of the files in a directory, which anybody may have
//! made.

#![forbid(unsafe_code)]

use std::collections::HashSet;

use super::names::{ShortNames, check_long, checksum, long_entries};

/// Any names between zero bytes are refused, or have a short name that no other has, and entries
/// that a reader puts together again.
///
/// # Panics
/// If not.
pub(crate) fn run(names: &[u8]) {
    let names: HashSet<String> = names
        .split(|byte| *byte == 0)
        .filter_map(|name| std::str::from_utf8(name).ok())
        .filter(|name| !name.is_empty() && !name.contains('/') && check_long(name).is_ok())
        .map(str::to_owned)
        .collect();
    let (mut short_names, mut taken) = (ShortNames::default(), HashSet::new());
    for exact in [true, false] {
        for name in &names {
            let Some(short) = short_names.take(name, exact) else { continue };
            assert!(taken.insert(short), "{short:?} twice");
            let base = &short[..8];
            assert!(base[0] != b' ' && short.iter().all(|byte| (b' '..=b'~').contains(byte)));
            assert!(!short.iter().any(u8::is_ascii_lowercase), "{short:?}");
            assert_eq!(read(&long_entries(name, &short), &short).as_deref(), Some(&**name));
        }
    }
}

/// The long name of these entries, as a reader of the file system puts it together.
fn read(entries: &[[u8; 32]], short: &[u8; 11]) -> Option<String> {
    let mut units = Vec::new();
    for (number, entry) in (1..).zip(entries.iter().rev()) {
        let is_last = number == entries.len();
        let order = u8::try_from(number).ok()? | if is_last { 0x40 } else { 0 };
        if entry[0] != order || entry[11] != 0x0f || entry[13] != checksum(short) {
            return None;
        }
        let pairs = [&entry[1..11], &entry[14..26], &entry[28..32]].concat();
        units.extend(pairs.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])));
    }
    let end = units.iter().position(|unit| *unit == 0).unwrap_or(units.len());
    assert!(units[end..].iter().skip(1).all(|unit| *unit == 0xffff));
    String::from_utf16(&units[..end]).ok()
}
