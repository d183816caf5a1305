use nbdkit_api::{Errno, Next};

use crate::gzip::tests::{long, read_parts};
use crate::testing::{self, damage_with, decoded, disk_of, made_by, sample};

fn bzip2(arguments: &[&str], data: &[u8]) -> Option<Vec<u8>> {
    made_by("bzip2", &[&["--stdout"], arguments].concat(), data)
}

/// Nothing is expanded.
const INDEXED: &[(&str, &str)] = &[("bzip2-max-expand", "0")];

fn indexed(image: Vec<u8>) -> Next {
    testing::backend(&disk_of(image), &["bzip2"], INDEXED)
}

#[test]
fn all_streams_of_a_file_are_one_disk() {
    let data = sample(400_000);
    for arguments in [&["-1"], &["-9"]] {
        let Some(image) = bzip2(arguments, &data) else { return };
        assert!(decoded("bzip2", image, &[]).unwrap() == data, "{arguments:?}");
    }
    let streams: Vec<Vec<u8>> = [&data[..100_000], &[], &data[100_000..]]
        .iter()
        .map(|part| bzip2(&[], part).unwrap())
        .collect();
    let image = streams.concat();
    assert!(decoded("bzip2", image.clone(), &[]).unwrap() == data);
    for end in [&[0; 1000][..], b"B", b"garbage"] {
        let image = [&image[..], end].concat();
        assert!(decoded("bzip2", image.clone(), &[]).unwrap() == data, "{end:?}");
        assert!(decoded("bzip2", image, INDEXED).unwrap() == data, "{end:?}");
    }
    assert!(decoded("bzip2", bzip2(&[], &[]).unwrap(), INDEXED).unwrap().is_empty());
}

#[test]
fn a_disk_that_is_not_expanded_is_read_from_blocks_in_the_middle() {
    let data = long(6 << 20);
    for level in ["-1", "-6", "-9"] {
        let Some(image) = bzip2(&[level], &data) else { return };
        let next = indexed(image);
        assert!(next.file_range(0, 1).is_none());
        read_parts(&next, &data);
    }
    // Streams of many sizes, and empty ones between them.
    let ends = [10, 10, 300_000, 1_500_000, 1_500_001, 5 << 20, 6 << 20];
    let starts = std::iter::once(0).chain(ends);
    let streams = starts.zip(ends).flat_map(|(start, end)| bzip2(&[], &data[start..end]).unwrap());
    let mut image: Vec<u8> = streams.collect();
    image.extend([0; 600]);
    read_parts(&indexed(image), &data);
    let streams = data[..1 << 20].chunks(20_000).flat_map(|part| bzip2(&[], part).unwrap());
    read_parts(&indexed(streams.collect()), &data[..1 << 20]);
}

/// A read decompresses the block that it is in, and no more.
#[test]
fn a_read_decompresses_little() {
    let data = long(12 << 20);
    let Some(image) = bzip2(&[], &data) else { return };
    let length = image.len();
    let disk = disk_of(image);
    let next = testing::backend(&disk, &["bzip2"], INDEXED);
    disk.take_calls();
    assert!(testing::read(&next, 10, 11 << 20) == data[11 << 20..][..10]);
    let read = disk.bytes_read();
    assert!(read < length / 3, "{read} of {length}");
}

/// 46 MB in a block of a few bytes: runs are of 259.
#[test]
fn blocks_of_zeroes_are_large() {
    let data = vec![0; 50_000_000];
    let Some(image) = bzip2(&[], &data) else { return };
    let next = indexed([&image[..], &bzip2(&[], b"end").unwrap()].concat());
    assert_eq!(next.size().unwrap(), 50_000_003);
    for (offset, expected) in [(0, b"\0\0\0"), (46_000_000, b"\0\0\0"), (50_000_000, b"end")] {
        assert_eq!(testing::read(&next, 3, offset), expected);
    }
    assert_eq!(testing::read(&next, 4, 49_999_999), b"\0end");
}

#[test]
fn a_larger_disk_than_may_be_expanded_is_indexed_and_a_smaller_one_is_not() {
    let data = sample(300_000);
    let Some(image) = bzip2(&[], &data) else { return };
    for (most, is_expanded) in [("300000", true), ("299999", false)] {
        let parameters = [("bzip2-max-expand", most)];
        let layer = testing::layer(&disk_of(image.clone()), &["bzip2"], &parameters);
        let next = testing::open(&layer);
        assert_eq!(next.file_range(0, 1).is_some(), is_expanded);
        assert!(testing::read(&next, data.len(), 0) == data);
    }
    let error = testing::config_error("bzip2", &[("bzip2-max-expand", "much")]);
    assert!(error.contains("much"), "{error}");
}

#[test]
fn a_file_that_has_changed_since_its_index_was_made_is_noticed() {
    let data = long(3 << 20);
    let Some(image) = bzip2(&[], &data) else { return };
    let disk = disk_of(image);
    let layer = testing::layer(&disk, &["bzip2"], INDEXED);
    let first = testing::open(&layer);
    disk.take_calls();
    let second = testing::open(&layer);
    assert_eq!(disk.take_calls(), ["open \"one\" readonly=true"]);
    assert!(testing::read(&second, 5000, 2 << 20) == data[2 << 20..][..5000]);
    let at = disk.data.lock().unwrap().len() * 3 / 4;
    disk.data.lock().unwrap()[at] ^= 0x10;
    let mut buf = vec![0; 3 << 20];
    assert_eq!(first.pread(&mut buf, 0).unwrap_err().errno(), Errno::EIO);
    assert!(testing::read(&first, 5000, 0) == data[..5000]);
}

#[test]
fn sums_of_blocks_and_streams_are_checked() {
    let data = sample(250_000);
    let Some(image) = bzip2(&["-1"], &data) else { return };
    // Of the first block; and the stream's own, which ends in the last byte but at most one.
    for at in [10, image.len() - 3] {
        let mut image = image.clone();
        image[at] ^= 1;
        for parameters in [&[][..], INDEXED] {
            let error = decoded("bzip2", image.clone(), parameters).unwrap_err();
            assert_eq!(error.errno(), Errno::EIO);
        }
    }
    let mut image = image;
    let at = image.len() - 3;
    image[at] ^= 1;
    let error = decoded("bzip2", image, &[]).unwrap_err();
    assert_eq!(error.message(), "bzip2: a stream has another sum than it should have");
}

#[test]
fn damage_is_noticed() {
    for (size, parameters) in [(1500, &[][..]), (300, INDEXED)] {
        let data = sample(size);
        let Some(image) = bzip2(&[], &data) else { return };
        // The size of a block, and the bits behind the last one.
        let unharmed = damage_with("bzip2", &image, &data, parameters);
        assert!(unharmed <= 3, "{unharmed}");
    }
    let data = sample(1500);
    let error = decoded("bzip2", data, &[]).unwrap_err();
    assert_eq!(error.message(), "bzip2: not a bzip2 file");
}
