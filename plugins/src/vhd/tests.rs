use std::process::Command;

use nbdkit_api::Client;

use super::*;
use crate::test_dir::TestDir;

const MIB: usize = 1 << 20;

/// A disk with data here and there: 9 MiB, so that its last block is not whole.
fn disk() -> Vec<u8> {
    let mut disk = vec![0; 9 * MIB];
    for (at, count) in [(0, 1000), (3 * MIB - 7, 100), (6 * MIB, MIB), (9 * MIB - 512, 512)] {
        disk[at..at + count]
            .iter_mut()
            .enumerate()
            .for_each(|(n, byte)| *byte = (n % 251) as u8 + 1);
    }
    disk
}

/// What qemu-img(1) makes of it; `None` where there is none.
fn image(dir: &TestDir, options: &str) -> Option<Vec<u8>> {
    let [raw, vhd] = ["raw", "vhd"].map(|name| dir.join(name));
    std::fs::write(&raw, disk()).unwrap();
    let made = Command::new("qemu-img")
        .args(["convert", "-f", "raw", "-O", "vpc", "-o", options])
        .args([&raw, &vhd])
        .status();
    let Ok(made) = made else {
        eprintln!("skipped: no qemu-img to make an image");
        return None;
    };
    assert!(made.success());
    Some(std::fs::read(vhd).unwrap())
}

fn plugin(dir: &TestDir, image: &[u8]) -> Result<Vhd> {
    let path = dir.join("image");
    std::fs::write(&path, image).unwrap();
    let mut plugin = Vhd::default();
    plugin.config("file", Value::new(&path))?;
    plugin.config_complete()?;
    plugin.get_ready()?;
    Ok(plugin)
}

fn open(plugin: &Vhd) -> Box<dyn Connection> {
    let client: Option<&std::sync::Arc<Client>> = None;
    plugin.open(&Open { client, readonly: true, export: "", tls: false }).unwrap()
}

const FIXED: &str = "subformat=fixed,force_size=on";
const DYNAMIC: &str = "subformat=dynamic,force_size=on";

#[test]
fn images_of_both_kinds_are_read_and_what_is_in_no_block_is_a_hole() {
    let dir = TestDir::new();
    for options in [FIXED, DYNAMIC] {
        let Some(image) = image(&dir, options) else { return };
        let connection = open(&plugin(&dir, &image).unwrap());
        let disk = disk();
        assert_eq!(connection.size().unwrap(), disk.len() as u64, "{options}");
        let mut found = vec![9; disk.len()];
        connection.pread(&mut found, 0).unwrap();
        assert!(found == disk, "{options}");
        for (at, count) in [(1, 1), (2 * MIB - 1, 2), (4 * MIB - 5, 2 * MIB + 10)] {
            connection.pread(&mut found[..count], at as u64).unwrap();
            assert!(found[..count] == disk[at..at + count], "{options}: {count} at {at}");
        }
        let mut extents = Extents::new(0, disk.len() as u64);
        connection.extents(disk.len() as u64, 0, Flags::empty(), &mut extents).unwrap();
        let kinds: Vec<_> = extents.iter().map(|it| (it.offset, it.kind)).collect();
        let (data, hole) = (ExtentKind::DATA, ExtentKind::SPARSE);
        let mib = |count: u64| count << 20;
        let expected = match options {
            FIXED => vec![(0, data)],
            _ => vec![(0, data), (mib(4), hole), (mib(6), data)],
        };
        assert_eq!(kinds, expected, "{options}");
        assert_eq!(connection.file_range(512, 5).is_some(), options == FIXED);
    }
}

#[test]
fn an_image_whose_footer_at_the_end_is_damaged_has_a_copy() {
    let dir = TestDir::new();
    for (options, works) in [(FIXED, false), (DYNAMIC, true)] {
        let Some(mut image) = image(&dir, options) else { return };
        let end = image.len() - 1;
        image[end] ^= 1;
        assert_eq!(plugin(&dir, &image).is_ok(), works, "{options}");
    }
}

#[test]
fn images_that_make_no_sense_are_one_line() {
    let dir = TestDir::new();
    let Some(image) = image(&dir, DYNAMIC) else { return };
    let why = |image: &[u8]| {
        let why = plugin(&dir, image).unwrap_err().message().to_owned();
        assert_eq!(why.lines().count(), 1);
        why.split_once("bad VHD image: ").map(|(_, why)| why.to_owned()).unwrap_or(why)
    };
    assert_eq!(why(b""), "it is too small");
    assert_eq!(why(&[0; 1024]), "there is no footer");
    // Both copies of the footer, with the sum as it is to be.
    let with = |at: usize, bytes: &[u8]| {
        let mut changed = image.clone();
        for begin in [0, changed.len() - 512] {
            let footer = &mut changed[begin..begin + 512];
            footer[at..at + bytes.len()].copy_from_slice(bytes);
            footer[64..68].fill(0);
            let sum = !footer.iter().fold(0_u32, |sum, byte| sum + u32::from(*byte));
            footer[64..68].copy_from_slice(&sum.to_be_bytes());
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
    let connection = open(&plugin(&dir, &image).unwrap());
    let why = connection.pread(&mut [0; 512], 4 << 20).unwrap_err();
    assert_eq!(why.errno(), Errno::EIO);
    connection.pread(&mut [0; 512], 0).unwrap();
}

#[test]
fn the_examples_of_the_fuzz_target_are_images() {
    let dir = TestDir::new();
    for dynamic in [false, true] {
        let connection = open(&plugin(&dir, &format::example(dynamic)).unwrap());
        let mut found = [9; 3 << 12];
        connection.pread(&mut found, 0).unwrap();
        let hole = if dynamic { 0 } else { 7 };
        assert!(found[..4096] == [hole; 4096] && found[4096..8192] == [7; 4096]);
        format::walk(&format::example(dynamic));
    }
}

#[test]
fn damaged_and_truncated_images_are_errors_and_no_panics() {
    let dir = TestDir::new();
    for options in [FIXED, DYNAMIC] {
        let Some(image) = image(&dir, options) else { return };
        format::walk(&image);
        let mut state = 1_u32;
        for _ in 0..2000 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let mut damaged = image.clone();
            // In what is not data.
            let at = state as usize % 3072;
            damaged[at] = (state >> 24) as u8;
            format::walk(&damaged[..damaged.len() - state as usize % 3]);
        }
        for length in [0, 1, 511, 512, 1024, 1536, 2048, image.len() / 2] {
            format::walk(&image[..length]);
        }
    }
}
