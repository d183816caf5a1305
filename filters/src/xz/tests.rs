use nbdkit_api::{Cache, Errno};

use crate::testing::{self, damage, decoded, disk_of, made_by, sample};

fn xz(arguments: &[&str], data: &[u8]) -> Option<Vec<u8>> {
    made_by("xz", &[&["--format=xz", "--stdout", "--threads=1"], arguments].concat(), data)
}

#[test]
fn what_xz_compresses_is_decompressed() {
    let data = sample(300_000);
    for arguments in [
        &["-1"][..],
        &["--block-size=10000"],
        &["--block-size=65537", "--check=sha256", "-0"],
        &["--check=crc32", "-9e"],
        &["--check=none", "--block-size=4096"],
        &["--x86", "--lzma2=preset=1", "--block-size=50000"],
        &["--delta=dist=4", "--lzma2=preset=1,dict=4KiB"],
    ] {
        let Some(image) = xz(arguments, &data) else { return };
        assert!(decoded("xz", image, &[]).unwrap() == data, "{arguments:?}");
    }
}

#[test]
fn streams_one_after_the_other_and_padding_are_one_disk() {
    let data = sample(50_000);
    let (first, second) = data.split_at(20_000);
    let Some(mut image) = xz(&["--check=crc32", "--block-size=3000"], first) else { return };
    image.extend([0; 8]);
    image.extend(xz(&[], &[]).unwrap());
    image.extend(xz(&["--check=sha256"], second).unwrap());
    image.resize(image.len() + (1 << 20), 0);
    assert!(decoded("xz", image.clone(), &[]).unwrap() == data);
    image.push(0);
    let error = decoded("xz", image, &[]).unwrap_err();
    assert_eq!(error.message(), "xz: invalid stream padding");
}

#[test]
fn any_part_is_read_through_a_cache_of_one_block() {
    let data = sample(100_000);
    let Some(image) = xz(&["--block-size=1000"], &data) else { return };
    let params = &[("xz-max-depth", "1"), ("xz-max-block", "1000")];
    let next = testing::backend(&disk_of(image), &["xz"], params);
    for (count, offset) in [(1, 0), (1000, 0), (2, 999), (5000, 12345), (100_000, 0), (1, 99_999)] {
        assert!(testing::read(&next, count, offset as u64) == data[offset..][..count]);
    }
    assert!(next.pread(&mut [0; 2], 99_999).is_err());
}

#[test]
fn a_block_that_was_read_is_not_read_again() {
    let data = sample(20_000);
    let Some(image) = xz(&["--block-size=10000"], &data) else { return };
    let disk = disk_of(image);
    let next = testing::backend(&disk, &["xz"], &[]);
    let read_by = |offset| {
        disk.take_calls();
        testing::read(&next, 100, offset);
        disk.take_calls().len()
    };
    assert_eq!(
        [0, 5000, 10_000, 100, 11_000].map(|at| read_by(at) > 0),
        [true, false, true, false, false]
    );
}

#[test]
fn the_disk_is_read_only_and_one_for_all_clients() {
    let Some(image) = xz(&[], &sample(1000)) else { return };
    let disk = disk_of(image);
    let layer = testing::layer(&disk, &["xz"], &[]);
    let next = testing::open(&layer);
    assert!(!next.can_write().unwrap() && !next.can_extents().unwrap());
    assert!(next.can_multi_conn().unwrap());
    assert_eq!(next.can_cache().unwrap(), Cache::Emulate);
    let description = "expansion of xz-compressed image: about \"one\"";
    assert_eq!(next.export_description().as_deref(), Some(description));
    assert_eq!(disk.take_calls()[0], "open \"one\" readonly=true");
    // The second client finds the index, a client of another export makes its own.
    testing::open(&layer);
    assert_eq!(disk.take_calls(), ["open \"one\" readonly=true"]);
    testing::try_open(&layer, "two", false).unwrap();
    assert!(disk.take_calls().len() > 1);
    // The file has become another one.
    let longer = xz(&[], &sample(3000)).unwrap();
    *disk.data.lock().unwrap() = longer;
    assert_eq!(testing::open(&layer).size().unwrap(), 3000);
}

#[test]
fn damage_is_noticed() {
    let data = sample(2500);
    let Some(image) = xz(&["--block-size=1000"], &data) else { return };
    // Reserved bits and padding are checked, too: nothing goes unnoticed.
    assert_eq!(damage("xz", &image, &data), 0);
    let Some(image) = xz(&["--check=sha256"], &data[..500]) else { return };
    assert_eq!(damage("xz", &image, &data[..500]), 0);
}

#[test]
fn blocks_that_are_too_large_are_refused_before_they_are_read() {
    let Some(image) = xz(&[], &[0; 3 << 20]) else { return };
    let error = decoded("xz", image.clone(), &[("xz-max-block", "1M")]).unwrap_err();
    assert_eq!(
        error.message(),
        "xz: the largest block has 3145728 bytes, which is more than xz-max-block=1048576: \
         recompress the file with smaller blocks, or allow larger ones"
    );
    assert_eq!(decoded("xz", image, &[("xz-max-block", "3M")]).unwrap().len(), 3 << 20);
}

/// A stream whose index has these records, over `blocks`.
fn with_index(blocks: &[u8], records: &[(u64, u64)]) -> Vec<u8> {
    super::with_index(blocks, records)
}

#[test]
fn an_index_that_lies_is_an_error() {
    let Some(image) = xz(&["--check=none"], &[7; 1 << 20]) else { return };
    let block = &image[12..image.len() - 12 - 12];
    let unpadded = block.len() as u64;
    let lie = |records: &[(u64, u64)]| {
        let error = decoded("xz", with_index(block, records), &[]).unwrap_err();
        assert_ne!(error.errno(), Errno::UnknownErrno);
        error.message().to_owned()
    };
    let size = "xz: a block has another size than in the index";
    // The block is larger than the index says: no more than that is decompressed.
    assert_eq!(lie(&[(unpadded, 1000)]), size);
    assert!(lie(&[(unpadded, 2 << 20)]).starts_with("xz: "));
    assert!(
        lie(&[(unpadded, 1 << 62)]).contains("the largest block has 4611686018427387904 bytes")
    );
    assert_eq!(lie(&[(1 << 62, 1)]), "xz: invalid index: the blocks are too large");
    assert_eq!(
        lie(&[((1 << 63) - 1, 1), ((1 << 63) - 1, 1)]),
        "xz: invalid index: the blocks are too large"
    );
    assert_eq!(lie(&[(4, 1)]), "xz: invalid index: a block is too short");
    assert!(lie(&[(8, 100), (unpadded - 8, 100)]).starts_with("xz: "));
    let sizes = [(unpadded, (1 << 62) + 1), (unpadded, 1 << 62)];
    let twice = with_index(&[block, block].concat(), &sizes);
    let error = decoded("xz", twice, &[]).unwrap_err();
    assert_eq!(error.message(), "xz: the decompressed size is too large");
}

#[test]
fn bad_parameters_are_refused() {
    let error = |key, value| testing::config_error("xz", &[(key, value)]);
    assert_eq!(error("xz-max-depth", "0"), "'xz-max-depth' parameter must be >= 1");
    assert!(error("xz-max-depth", "x").starts_with("xz-max-depth: "));
    assert!(!error("xz-max-block", "x").is_empty());
    assert!(!error("xz-max", "1").is_empty());
}
