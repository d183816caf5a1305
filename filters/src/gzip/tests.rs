use nbdkit_api::{Cache, Errno, Next};

use crate::testing::{self, damage, decoded, disk_of, made_by, sample};

pub(crate) fn gzip(data: &[u8]) -> Option<Vec<u8>> {
    made_by("gzip", &["--stdout"], data)
}

#[test]
fn all_members_of_a_file_are_one_disk() {
    let data = sample(300_000);
    let Some(image) = gzip(&data) else { return };
    assert!(decoded("gzip", image, &[]).unwrap() == data);
    let members: Vec<Vec<u8>> =
        [&data[..100_000], &[], &data[100_000..]].iter().map(|part| gzip(part).unwrap()).collect();
    let image = members.concat();
    assert!(decoded("gzip", image.clone(), &[]).unwrap() == data);
    // What follows the last member is ignored.
    for end in [&[0; 1000][..], &[0], b"garbage", &[0x1f], &[0x1f, 0]] {
        assert!(decoded("gzip", [&image[..], end].concat(), &[]).unwrap() == data, "{end:?}");
    }
    assert!(decoded("gzip", gzip(&[]).unwrap(), &[]).unwrap().is_empty());
}

#[test]
fn a_disk_that_is_mostly_zeroes() {
    let mut data = sample(100_000);
    data.resize(8 << 20, 0);
    data.extend(sample(1000));
    data.resize(16 << 20, 0);
    let Some(image) = gzip(&data) else { return };
    assert!(decoded("gzip", image, &[]).unwrap() == data);
}

#[test]
fn the_disk_is_read_only_and_expanded_once_for_all_clients() {
    let Some(image) = gzip(&sample(100_000)) else { return };
    let disk = disk_of(image);
    let layer = testing::layer(&disk, &["gzip"], &[]);
    let next = testing::open(&layer);
    assert!(!next.can_write().unwrap() && !next.can_extents().unwrap());
    assert!(next.can_multi_conn().unwrap());
    assert_eq!(next.can_cache().unwrap(), Cache::Emulate);
    let description = "expansion of gzip-compressed image: about \"one\"";
    assert_eq!(next.export_description().as_deref(), Some(description));
    disk.take_calls();
    let second = testing::open(&layer);
    assert!(testing::read(&second, 5000, 90_000) == sample(100_000)[90_000..95_000]);
    assert_eq!(disk.take_calls(), ["open \"one\" readonly=true"]);
    assert_eq!(second.file_range(10, 20).unwrap().offset, 20);
    // Another export has another image.
    *disk.data.lock().unwrap() = gzip(&sample(500)).unwrap();
    assert_eq!(testing::try_open(&layer, "two", false).unwrap().size().unwrap(), 500);
    let error = testing::try_open(&layer, "", false).unwrap_err();
    assert_eq!(
        error.message(),
        "plugin size changed unexpectedly: you must restart nbdkit so the gzip filter can \
         uncompress the data again"
    );
    // There are no more than eight.
    let open = |number: u32| testing::try_open(&layer, &number.to_string(), false);
    (0..6).for_each(|number| assert_eq!(open(number).unwrap().size().unwrap(), 500));
    assert_eq!(open(6).unwrap_err().errno(), Errno::EMFILE);
}

#[test]
fn an_image_that_failed_is_tried_again() {
    let data = sample(200_000);
    let Some(image) = gzip(&data) else { return };
    let disk = disk_of(image[..image.len() / 2].to_vec());
    let layer = testing::layer(&disk, &["gzip"], &[]);
    let error = testing::try_open(&layer, "", false).unwrap_err();
    assert_eq!(error.message(), "gzip: the file is cut off");
    *disk.data.lock().unwrap() = image;
    assert!(testing::read(&testing::open(&layer), data.len(), 0) == data);
}

/// Nothing is expanded.
const INDEXED: &[(&str, &str)] = &[("gzip-max-expand", "0")];

fn check_parts(image: Vec<u8>, data: &[u8]) {
    let layer = testing::layer(&disk_of(image), &["gzip"], INDEXED);
    read_parts(&testing::open(&layer), data);
}

/// Reads parts of a disk that is not expanded, back and forth.
pub(crate) fn read_parts(next: &Next, data: &[u8]) {
    assert_eq!(next.size().unwrap(), data.len() as u64);
    assert!(next.file_range(0, 1).is_none());
    for step in 0..60 {
        let count = [1, 4096, 70_000, 3 << 20][step % 4].min(data.len());
        let offset = step * 7_919_317 % (data.len() - count + 1);
        let found = testing::read(next, count, offset as u64);
        assert!(found == data[offset..][..count], "{count} bytes at {offset}");
    }
}

/// Text that looks back far, with a part that cannot be compressed and a run of zeroes.
pub(crate) fn long(size: usize) -> Vec<u8> {
    let mut data = sample(3 << 20);
    data.resize(5 << 20, 0);
    let mut state = 7_u64;
    while data.len() < size {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let back = (state >> 40) as usize % 32_000 + 1;
        let count = (state >> 20) as usize % 200 + 3;
        let from = data.len() - back;
        data.extend((state >> 16).to_le_bytes());
        (0..count).for_each(|at| data.push(data[from + at % back]));
    }
    data.truncate(size);
    data
}

#[test]
fn a_disk_that_is_not_expanded_is_read_from_points_in_the_middle() {
    let data = long(12 << 20);
    for level in ["-1", "-6", "-9"] {
        let Some(image) = made_by("gzip", &["--stdout", level], &data) else { return };
        check_parts(image, &data);
    }
    // Members that are shorter and longer than what is between two points, and empty ones.
    let ends = [1 << 20, (1 << 20) + 5, 2 << 20, 2 << 20, 9 << 20, 12 << 20];
    let starts = std::iter::once(0).chain(ends);
    let mut image: Vec<u8> =
        starts.zip(ends).flat_map(|(start, end)| gzip(&data[start..end]).unwrap()).collect();
    image.extend([0; 600]);
    check_parts(image, &data);
    let image: Vec<u8> = data.chunks(20_000).flat_map(|part| gzip(part).unwrap()).collect();
    check_parts(image, &data);
}

#[test]
fn stored_blocks_and_all_fields_of_a_header() {
    use flate2::{Compression, GzBuilder};
    use std::io::Write;
    let data = long(6 << 20);
    let header = GzBuilder::new().extra(vec![1, 0, 2]).filename("name").comment("comment");
    let mut encoder = header.write(Vec::new(), Compression::none());
    encoder.write_all(&data).unwrap();
    check_parts(encoder.finish().unwrap(), &data);
}

#[test]
fn a_larger_disk_than_may_be_expanded_is_indexed_and_a_smaller_one_is_not() {
    let data = sample(300_000);
    let Some(image) = gzip(&data) else { return };
    for (most, is_expanded) in [("300000", true), ("299999", false)] {
        let parameters = [("gzip-max-expand", most)];
        let layer = testing::layer(&disk_of(image.clone()), &["gzip"], &parameters);
        let next = testing::open(&layer);
        assert_eq!(next.file_range(0, 1).is_some(), is_expanded);
        assert!(testing::read(&next, data.len(), 0) == data);
    }
    let error = testing::config_error("gzip", &[("gzip-max-expand", "much")]);
    assert!(error.contains("much"), "{error}");
}

#[test]
fn an_index_is_made_once_and_a_file_that_has_changed_since_is_noticed() {
    let data = long(8 << 20);
    let Some(image) = gzip(&data) else { return };
    let disk = disk_of(image);
    let layer = testing::layer(&disk, &["gzip"], INDEXED);
    let first = testing::open(&layer);
    disk.take_calls();
    let second = testing::open(&layer);
    assert_eq!(disk.take_calls(), ["open \"one\" readonly=true"]);
    assert!(testing::read(&second, 5000, 7 << 20) == data[7 << 20..][..5000]);
    // In the last quarter, behind a point.
    let at = disk.data.lock().unwrap().len() * 3 / 4;
    disk.data.lock().unwrap()[at] ^= 0x10;
    let mut buf = vec![0; 8 << 20];
    assert_eq!(first.pread(&mut buf, 0).unwrap_err().errno(), Errno::EIO);
    assert!(testing::read(&first, 5000, 0) == data[..5000]);
}

/// A member with one block of so many bytes, all zeroes (RFC 1951, 3.2.6): after a literal, matches
/// of 258 bytes at distance 1.
fn one_block(matches: usize) -> Vec<u8> {
    let (mut bits, mut sum) = (Vec::new(), flate2::Crc::new());
    let mut push = |value: u32, count: u32| {
        (0..count).rev().for_each(|bit| bits.push(value >> bit & 1 == 1));
    };
    // The last block, with the fixed codes; their bits come highest first.
    push(0b110, 3);
    push(0b0011_0000, 8);
    for _ in 0..matches {
        push(0b1100_0101, 8);
        push(0, 5);
    }
    push(0, 7);
    let size = 1 + 258 * matches;
    sum.update(&vec![0; size]);
    let byte = |bits: &[bool]| bits.iter().rev().fold(0, |byte, bit| byte << 1 | u8::from(*bit));
    let mut image = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    image.extend(bits.chunks(8).map(byte));
    image.extend(sum.sum().to_le_bytes());
    image.extend((size as u32).to_le_bytes());
    image
}

#[test]
fn a_disk_without_points_is_expanded_or_refused() {
    let (small, large) = (one_block(1000), one_block(100_000));
    assert!(decoded("gzip", small, INDEXED).unwrap() == vec![0; 258_001]);
    assert!(decoded("gzip", large.clone(), &[]).unwrap() == vec![0; 25_800_001]);
    let error = decoded("gzip", large, INDEXED).unwrap_err();
    assert!(error.message().contains("there is no point to begin from"), "{error}");
    assert!(!error.message().contains('\n'));
}

#[test]
fn damage_is_noticed() {
    let data = sample(1500);
    let Some(image) = gzip(&data) else { return };
    // Time stamp, extra flags and system in the header: RFC 1952, 2.3.1. And the flag of text.
    let unharmed = damage("gzip", &image, &data);
    assert!(unharmed <= 7, "{unharmed}");
}
