use nbdkit_api::{Errno, ExtentKind, Plugin, Value};

use super::*;
use crate::disk_image::testing::{self, MIB, Random, disk, kinds, open, plugin_on, read_all};
use crate::test_dir::TestDir;

const FIXED: &str = "subformat=fixed,force_size=on";
const DYNAMIC: &str = "subformat=dynamic,force_size=on";

/// An image of the disk.
fn image(dir: &TestDir, options: &str) -> Option<Vec<u8>> {
    testing::image(dir, "vpc", options, "vhd").map(|path| std::fs::read(path).unwrap())
}

#[test]
fn images_of_both_kinds_are_read_and_what_is_in_no_block_is_a_hole() {
    let dir = TestDir::new();
    let (data, hole) = (ExtentKind::DATA, ExtentKind::SPARSE);
    for options in [FIXED, DYNAMIC] {
        let Some(image) = image(&dir, options) else { return };
        let connection = open(&plugin_on::<Images>(&dir, &image).unwrap());
        assert!(read_all(&*connection) == disk(), "{options}");
        let kinds = kinds(&*connection);
        let mib = |count: usize| (count * MIB) as u64;
        match options {
            // What is a hole of the file is one of the disk.
            FIXED => assert_eq!(kinds[0], (0, data)),
            _ => assert_eq!(kinds, [(0, data), (mib(4), hole), (mib(6), data)]),
        }
        assert_eq!(connection.file_range(512, 5).is_some(), options == FIXED);
        assert!(connection.file_range(512, mib(9) - 511).is_none());
        assert!(connection.file_range(0, mib(9)).is_none());
    }
}

#[test]
fn holes_of_a_fixed_image_are_holes_of_the_disk() {
    let dir = TestDir::new();
    // As large as the blocks of any file system; only the first is written.
    let mut footer = fuzz::example(false).split_off(3 * fuzz::BLOCK);
    let size = 64 * MIB as u64;
    footer[48..56].copy_from_slice(&size.to_be_bytes());
    format::seal(&mut footer, 64);
    let path = dir.join("image");
    std::fs::write(&path, [7; 512]).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &footer, size).unwrap();
    let connection = open(&testing::plugin::<Images>(&path).unwrap());
    let kinds = kinds(&*connection);
    assert_eq!(kinds[0], (0, ExtentKind::DATA));
    assert!(kinds[1].0 < size / 2 && kinds[1].1 == ExtentKind::SPARSE, "{kinds:?}");
}

#[test]
fn an_image_whose_footer_at_the_end_is_damaged_has_a_copy() {
    let dir = TestDir::new();
    for (options, works) in [(FIXED, false), (DYNAMIC, true)] {
        let Some(mut image) = image(&dir, options) else { return };
        let end = image.len() - 1;
        image[end] ^= 1;
        assert_eq!(plugin_on::<Images>(&dir, &image).is_ok(), works, "{options}");
    }
}

#[test]
fn images_that_make_no_sense_are_one_line() {
    let dir = TestDir::new();
    let Some(image) = image(&dir, DYNAMIC) else { return };
    let why = |image: &[u8]| {
        let why = testing::why::<Images>(&dir, image);
        why.strip_prefix("bad VHD image: ").map(str::to_owned).unwrap_or(why)
    };
    assert_eq!(why(b""), "it is too small");
    assert_eq!(why(&[0; 1024]), "there is no footer");
    // Both copies of the footer, with the sum as it is to be.
    let with = |at: usize, bytes: &[u8]| {
        let mut changed = image.clone();
        for begin in [0, changed.len() - 512] {
            let footer = &mut changed[begin..begin + 512];
            footer[at..at + bytes.len()].copy_from_slice(bytes);
            format::seal(footer, 64);
        }
        changed
    };
    let differencing = "a differencing disk, which needs another image, is not supported";
    assert_eq!(why(&with(60, &4_u32.to_be_bytes())), differencing);
    assert_eq!(why(&with(60, &7_u32.to_be_bytes())), "a disk of type 7");
    assert_eq!(why(&with(60, &2_u32.to_be_bytes())), "the disk is larger than the image");
    assert_eq!(why(&with(48, &u64::MAX.to_be_bytes())), format!("a disk of {} bytes", u64::MAX));
    let larger = (1_u64 << 40).to_be_bytes();
    assert_eq!(why(&with(48, &larger)), "the table has fewer blocks than the disk");
    for at in [u64::MAX, u64::MAX - 1023, image.len() as u64] {
        assert_eq!(why(&with(16, &at.to_be_bytes())), "the header lies outside of the image");
    }
    assert_eq!(why(&with(16, &0_u64.to_be_bytes())), "there is no header");
    let mut changed = image.clone();
    changed[512 + 100] ^= 1;
    assert_eq!(why(&changed), "the header's checksum differs");
    let mut parameters = Vhd::default();
    assert!(parameters.config_complete().unwrap_err().message().contains("file=<FILENAME>"));
    assert!(parameters.config("size", Value::new("1")).is_err());
}

#[test]
fn a_block_outside_of_the_image_is_eio_for_who_reads_it() {
    let dir = TestDir::new();
    let Some(mut image) = image(&dir, DYNAMIC) else { return };
    // The table is behind the copy of the footer and the header; its third block is a hole.
    image[1536 + 8..1536 + 12].copy_from_slice(&0xffff_fffe_u32.to_be_bytes());
    let connection = open(&plugin_on::<Images>(&dir, &image).unwrap());
    let why = connection.pread(&mut [0; 512], 4 << 20).unwrap_err();
    assert_eq!(why.errno(), Errno::EIO);
    assert!(why.message().ends_with("/image: a block lies outside of the image"));
    connection.pread(&mut [0; 512], 0).unwrap();
}

#[test]
fn the_examples_of_the_fuzz_target_are_images() {
    let dir = TestDir::new();
    for dynamic in [false, true] {
        let image = fuzz::example(dynamic);
        assert!(image.len() <= 4096);
        let found = read_all(&*open(&plugin_on::<Images>(&dir, &image).unwrap()));
        let hole = if dynamic { 0 } else { 7 };
        assert_eq!(found, [[hole; fuzz::BLOCK], [7; fuzz::BLOCK], [hole; fuzz::BLOCK]].concat());
        fuzz::run(&image);
    }
}

#[test]
fn damaged_and_truncated_images_are_errors_and_no_panics() {
    let dir = TestDir::new();
    for options in [FIXED, DYNAMIC] {
        let Some(image) = image(&dir, options) else { return };
        fuzz::run(&image);
        let mut random = Random::new();
        for _ in 0..2000 {
            let mut damaged = image.clone();
            // In what is not data.
            damaged[random.below(3072)] = random.below(256) as u8;
            fuzz::run(&damaged[..damaged.len() - random.below(3)]);
        }
        for length in [0, 1, 511, 512, 1024, 1536, 2048, image.len() / 2] {
            fuzz::run(&image[..length]);
        }
    }
}
