//! Attacks on what clients share: every word that the template has mapped for all of them.

#![forbid(unsafe_code)]

use nix::errno::Errno;

use crate::raw;

/// Writable memory that is shared with other processes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Region {
    start: usize,
    length: usize,
}

/// All of them, by /proc/self/maps. proc(5).
pub(crate) fn regions() -> Vec<Region> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let region = |line: &str| {
        let (addresses, rest) = line.split_once(' ')?;
        let (start, end) = addresses.split_once('-')?;
        let [start, end] = [start, end].map(|it| usize::from_str_radix(it, 16).ok());
        let start = start?;
        rest.starts_with("rw-s").then_some(Region { start, length: end? - start })
    };
    maps.lines().filter_map(region).collect()
}

/// Most bytes of a region that are worth it: the rest is more of the same.
const MOST: usize = 1 << 16;

/// Fills them: `ones`, `zeroes` or `noise`.
pub(crate) fn scribble(pattern: &str, regions: &[Region]) -> nix::Result<String> {
    let noise = |index: usize| (index.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 29) as u8;
    if regions.is_empty() {
        return Err(Errno::ENXIO);
    }
    for Region { start, length } in regions {
        let length = (*length).min(MOST);
        match pattern {
            "ones" => raw::fill(*start, length, |_| 0xff),
            "zeroes" => raw::fill(*start, length, |_| 0),
            "noise" => raw::fill(*start, length, noise),
            _ => return Err(Errno::EINVAL),
        }
    }
    Ok(format!("ok {}", regions.len()))
}
