use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use nbdkit_api::{Connection, ExtentKind};

use super::example::{self, BLOCK, Change, DISK, ITEMS, LOG, SIZE, TABLE_OF_BLOCKS, put, seal};
use super::header::{HEADER, HEADERS};
use super::layout::{BAT, REGIONS, TABLE};
use super::*;
use crate::disk_image::testing::{
    self, MIB, Random, as_qemu_reads, disk, kinds, open, plugin, plugin_on, read_all, read_damaged,
};
use crate::test_dir::TestDir;

fn why(dir: &TestDir, image: &[u8]) -> String {
    let why = testing::why::<Images>(dir, image);
    why.strip_prefix("bad VHDX image: ").map(str::to_owned).unwrap_or(why)
}

fn connection(dir: &TestDir, image: &[u8]) -> Box<dyn Connection> {
    open(&plugin_on::<Images>(dir, image).unwrap())
}

#[test]
fn images_of_qemu_are_read_and_what_is_in_no_block_is_a_hole() {
    let dir = TestDir::new();
    let (data, hole) = (ExtentKind::DATA, ExtentKind::SPARSE);
    let mib = |count: usize| (count * MIB) as u64;
    for (options, expected) in [
        ("subformat=fixed", vec![(0, data)]),
        (
            "subformat=dynamic,block_size=1M",
            vec![
                (0, data),
                (mib(1), hole),
                (mib(2), data),
                (mib(4), hole),
                (mib(6), data),
                (mib(7), hole),
                (mib(8), data),
            ],
        ),
        (
            "subformat=dynamic,block_size=2M,log_size=2M",
            vec![(0, data), (mib(4), hole), (mib(6), data)],
        ),
        ("subformat=dynamic,block_size=256M", vec![(0, data)]),
    ] {
        let Some(path) = testing::image(&dir, "vhdx", options, "image.vhdx") else { return };
        let connection = open(&plugin::<Images>(&path).unwrap());
        assert!(read_all(&*connection) == disk(), "{options}");
        assert_eq!(kinds(&*connection), expected, "{options}");
    }
}

#[test]
fn entries_for_bitmaps_are_left_out() {
    let dir = TestDir::new();
    let path = dir.join("image.vhdx");
    // One for 16 blocks of this size: blocks 15 and 16 are on its two sides.
    let create = ["create", "-q", "-f", "vhdx", "-o", "block_size=256M"];
    let Ok(made) = Command::new("qemu-img").args(create).arg(&path).arg("6G").status() else {
        eprintln!("skipped: no qemu-img to make an image");
        return;
    };
    assert!(made.success());
    let block = 256 * MIB as u64;
    let mut command = Command::new("qemu-io");
    command.args(["-f", "vhdx", "-c", "write -P 7 4194300k 8k", "-c", "write -P 8 5G 4k"]);
    assert!(command.arg(&path).output().unwrap().status.success());
    let connection = open(&plugin::<Images>(&path).unwrap());
    let mut found = [9; 8192];
    connection.pread(&mut found, 16 * block - 4096).unwrap();
    assert_eq!(found, [7; 8192]);
    connection.pread(&mut found, 20 * block).unwrap();
    assert_eq!(found[..], [[8; 4096], [0; 4096]].concat());
    let (data, hole) = (ExtentKind::DATA, ExtentKind::SPARSE);
    let expected = [(0, hole), (15, data), (17, hole), (20, data), (21, hole)];
    assert_eq!(kinds(&*connection), expected.map(|(number, kind)| (number * block, kind)));
}

#[test]
fn an_image_made_by_hand_is_what_qemu_takes_it_for() {
    let dir = TestDir::new();
    let found = read_all(&*connection(&dir, &example::image()));
    let mut expected = vec![0; DISK];
    put(&mut expected, MIB, b"data");
    assert!(found == expected);
    assert!(as_qemu_reads(&dir, "vhdx", &dir.join("image")) == expected);
}

/// As `image`, which a crash has left, after qemu-img has replayed its log.
fn as_qemu_repairs(dir: &TestDir, image: &[u8]) -> Vec<u8> {
    let path = dir.join("repaired.vhdx");
    std::fs::write(&path, image).unwrap();
    let mut command = Command::new("qemu-img");
    let output = command.args(["check", "-q", "-r", "all"]).arg(&path).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    as_qemu_reads(dir, "vhdx", &path)
}

#[test]
fn what_is_only_in_the_log_is_read() {
    let dir = TestDir::new();
    let image = example::crashed();
    let connection = connection(&dir, &image);
    let mut expected = vec![0; DISK];
    put(&mut expected, MIB + 4096, b"from the log");
    put(&mut expected, MIB + 8188, b"end.");
    assert!(read_all(&*connection) == expected);
    let kinds = kinds(&*connection);
    assert_eq!(kinds, [(0, ExtentKind::SPARSE), (MIB as u64, ExtentKind::DATA)]);
    assert!(as_qemu_repairs(&dir, &image) == expected);
    // The log also says how long the image has to be.
    let short = self::connection(&dir, &image[..SIZE]);
    assert!(read_all(&*short) == expected);
}

#[test]
fn an_image_of_a_writer_that_has_crashed_is_read_as_it_is_repaired() {
    let dir = TestDir::new();
    let options = "subformat=dynamic,block_size=1M";
    let Some(path) = testing::image(&dir, "vhdx", options, "image.vhdx") else { return };
    let image = std::fs::read(&path).unwrap();
    let entry = |number: usize| &image[REGIONS[0] as usize + 16 + number * 32..][..32];
    let table = [0, 1].map(entry).into_iter().find(|entry| entry.starts_with(&BAT)).unwrap();
    let sector = little_endian(table, 16, 8) / 512;
    // The block allocation table cannot be written, so what is new in it stays in the log.
    let disk_image = format!(
        "driver=vhdx,file.driver=blkdebug,file.image.driver=file,file.image.filename={},\
         file.inject-error.0.event=none,file.inject-error.0.iotype=write,\
         file.inject-error.0.sector={sector}",
        path.display()
    );
    let mut command = Command::new("qemu-io");
    command.args(["--image-opts", "-c", "write -P 7 1M 128k", "-c", "sigraise 9", &disk_image]);
    let output = command.output().expect("qemu-io");
    assert_eq!(output.status.signal(), Some(9), "{}", String::from_utf8_lossy(&output.stderr));
    let image = std::fs::read(&path).unwrap();
    assert_ne!(image[HEADERS[0] as usize + 48..][..16], [0; 16], "the log is not empty");
    let mut expected = disk();
    expected[MIB..MIB + (128 << 10)].fill(7);
    assert!(read_all(&*open(&plugin::<Images>(&path).unwrap())) == expected);
    assert!(as_qemu_repairs(&dir, &image) == expected);
}

/// The image with these bytes in both headers.
fn with_header(image: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut image = image.to_vec();
    for header in HEADERS {
        put(&mut image, header as usize + at, bytes);
        seal(&mut image, header as usize, HEADER);
    }
    image
}

fn with_region(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut image = example::image();
    for table in REGIONS {
        put(&mut image, table as usize + at, bytes);
        seal(&mut image, table as usize, TABLE);
    }
    image
}

fn with(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut image = example::image();
    put(&mut image, at, bytes);
    image
}

#[test]
fn one_header_and_one_region_table_are_enough() {
    let dir = TestDir::new();
    for at in [HEADERS[0], HEADERS[1], REGIONS[0], REGIONS[1]] {
        let mut image = example::image();
        image[at as usize + 200] ^= 1;
        assert!(plugin_on::<Images>(&dir, &image).is_ok(), "{at}");
    }
    let mut image = example::image();
    HEADERS.iter().for_each(|at| image[*at as usize + 200] ^= 1);
    assert_eq!(why(&dir, &image), "neither header is whole");
    let mut image = example::image();
    REGIONS.iter().for_each(|at| image[*at as usize + TABLE - 1] ^= 1);
    assert_eq!(why(&dir, &image), "neither region table is whole");
    // The header with the larger number counts.
    let mut image = example::image();
    put(&mut image, HEADERS[1] as usize + 8, &[9]);
    put(&mut image, HEADERS[1] as usize + 66, &[2]);
    seal(&mut image, HEADERS[1] as usize, HEADER);
    assert_eq!(why(&dir, &image), "version 2 is not supported, only 1");
}

#[test]
fn images_that_make_no_sense_are_one_line() {
    let dir = TestDir::new();
    assert_eq!(why(&dir, b""), "it is too small");
    assert_eq!(why(&dir, &vec![0; MIB]), "there is no file type identifier");
    let far = u64::MAX - (MIB as u64 - 1);
    for offset in [0, 1, 5 * MIB as u64, far] {
        assert_eq!(
            why(&dir, &with_region(32, &offset.to_le_bytes())),
            format!("a region of 1048576 bytes cannot be at {offset}")
        );
    }
    assert_eq!(why(&dir, &with_region(16, &[1])), "it needs a region of an unknown kind");
    assert_eq!(why(&dir, &with_region(8, &[1])), "there is no metadata");
    assert_eq!(why(&dir, &with_region(8, &[0])), "there is no block allocation table");
    let many = u32::MAX.to_le_bytes();
    assert_eq!(why(&dir, &with_region(8, &many)), "neither region table is whole");
    let unclear = "the table of the metadata makes no sense";
    assert_eq!(why(&dir, &with(ITEMS, b"M")), unclear);
    assert_eq!(why(&dir, &with(ITEMS + 10, &[0xff, 0xff])), unclear);
    assert_eq!(why(&dir, &with(ITEMS + 10, &[1])), "there is no disk size");
    assert_eq!(why(&dir, &with(ITEMS + 32, &[1])), "it needs metadata of an unknown kind");
    assert_eq!(why(&dir, &with(ITEMS + 32 + 20, &[4])), "there is no file parameters");
    for offset in [0_u32, 65535, MIB as u32 - 7, u32::MAX] {
        let expected = format!("metadata of 8 bytes cannot be at {offset} of its region");
        assert_eq!(why(&dir, &with(ITEMS + 32 + 16, &offset.to_le_bytes())), expected);
    }
    let item = |number: usize| ITEMS + TABLE + number * 16;
    let differencing = "a differencing disk, which needs another image, is not supported";
    assert_eq!(why(&dir, &with(item(0) + 4, &[2])), differencing);
    for block in [0, 1, 512 << 10, 3 << 20, 512 << 20, u32::MAX] {
        let expected = format!("blocks of {block} bytes");
        assert_eq!(why(&dir, &with(item(0), &block.to_le_bytes())), expected);
    }
    for size in [513, (64 << 40) + 512, u64::MAX] {
        let expected = format!("a disk of {size} bytes");
        assert_eq!(why(&dir, &with(item(1), &size.to_le_bytes())), expected);
    }
    let expected = "the block allocation table has fewer blocks than the disk";
    assert_eq!(why(&dir, &with(item(1), &(1_u64 << 40).to_le_bytes())), expected);
    assert_eq!(why(&dir, &with(item(2), &[0, 3])), "sectors of 768 bytes");
}

#[test]
fn logs_that_make_no_sense_are_one_line() {
    let dir = TestDir::new();
    let image = example::crashed();
    let log = "a log of 1048576 bytes cannot be at ";
    for offset in [0, 1, 6 * MIB as u64, u64::MAX - (MIB as u64 - 1)] {
        let why = why(&dir, &with_header(&image, 72, &offset.to_le_bytes()));
        assert_eq!(why, format!("{log}{offset}"));
    }
    let no_length = with_header(&image, 68, &[0; 4]);
    assert_eq!(why(&dir, &no_length), "a log of 0 bytes cannot be at 1048576");
    let version = "version 1 of the log is not supported, only 0";
    assert_eq!(why(&dir, &with_header(&image, 64, &[1])), version);
    let mut large = image.clone();
    large.resize(18 * MIB, 0);
    let large = with_header(&large, 68, &(17 * MIB as u32).to_le_bytes());
    assert!(why(&dir, &large).ends_with("have it replayed by qemu-img check -r all"));
    // Not whole, or of another log.
    let nothing = "the log has no whole entries";
    assert_eq!(why(&dir, &with_header(&image, 48, b"another")), nothing);
    let damaged = |at: usize| {
        let mut image = image.clone();
        image[LOG + at] ^= 1;
        image
    };
    // The first entry is the tail of the second.
    assert_eq!(why(&dir, &damaged(100)), nothing);
    // Without the second, the first is all there is.
    let found = read_all(&*connection(&dir, &damaged(4096 + 5000)));
    assert!(found.iter().all(|byte| *byte == 0));
    assert_eq!(
        why(&dir, &image[..SIZE - 512]),
        format!("it is cut off: it had {SIZE} bytes when its log was written")
    );
    // Each sector says that an entry of the whole log begins there.
    let mut overlapping = image.clone();
    for at in (LOG..LOG + MIB).step_by(4096) {
        let header = &image[LOG..LOG + 64];
        put(&mut overlapping, at, header);
        put(&mut overlapping, at + 8, &(MIB as u32).to_le_bytes());
    }
    assert_eq!(why(&dir, &overlapping), "entries of the log are one over the other");
}

#[test]
fn entries_wrap_around_the_end_of_the_log_and_stale_ones_do_not_count() {
    let dir = TestDir::new();
    let size = SIZE as u64;
    let table = (BLOCK as u64 | 6).to_le_bytes();
    let change = |begin| Change::Sector(BLOCK as u64, begin);
    let begin = |image: &[u8]| {
        let mut found = [9; 5];
        connection(&dir, image).pread(&mut found, 0).unwrap();
        found
    };
    // Where the second entry is in one piece, and where it wraps.
    for tail in [16 * 4096, MIB - 4 * 4096] {
        let changes = [change(b"older"), change(b"newer"), change(b"new")];
        let entries = [
            example::log_entry(10, tail, size, &[Change::Sector(TABLE_OF_BLOCKS as u64, &table)]),
            example::log_entry(11, tail, size, &changes),
            example::log_entry(12, tail, size, &[Change::Zeroes(BLOCK as u64 + 4096, 4096)]),
        ];
        let mut image = example::image();
        put(&mut image, TABLE_OF_BLOCKS, &[0; 24]);
        for (number, byte) in entries.concat().into_iter().enumerate() {
            image[LOG + (tail + number) % MIB] = byte;
        }
        put(&mut image, LOG + MIB / 2, &example::log_entry(5, 0, size, &[change(b"stale")]));
        example::use_log(&mut image);
        assert_eq!(&begin(&image), b"new\0\0");
        // qemu-img 10 finds nothing in a log that wraps.
        if tail < MIB / 2 {
            assert_eq!(as_qemu_repairs(&dir, &image)[..5], begin(&image));
        }
        // This one is newer, but what it needs is not there: 2.3.2.
        let lost = example::log_entry(99, 4096 * 9, size, &[change(b"lost")]);
        put(&mut image, LOG + MIB / 4, &lost);
        assert_eq!(&begin(&image), b"new\0\0");
    }
}

#[test]
fn a_block_that_makes_no_sense_is_eio_for_who_reads_it() {
    let dir = TestDir::new();
    for entry in [4, 5, 6, 7, SIZE as u64 | 6, u64::MAX - 1, BLOCK as u64 | 7] {
        let image = with(TABLE_OF_BLOCKS, &entry.to_le_bytes());
        let connection = connection(&dir, &image);
        let why = connection.pread(&mut [0; 512], 0).unwrap_err();
        assert_eq!(why.errno(), Errno::EIO, "{entry:#x}: {}", why.message());
        connection.pread(&mut [0; 512], MIB as u64).unwrap();
    }
}

#[test]
fn damaged_and_truncated_images_are_errors_and_no_panics() {
    let dir = TestDir::new();
    let mut random = Random::new();
    for image in [example::image(), example::crashed()] {
        let places = [0, HEADERS[0] as usize, REGIONS[0] as usize, LOG, TABLE_OF_BLOCKS, ITEMS];
        for round in 0..60 {
            let mut damaged = image.clone();
            let at = places[round % places.len()];
            for _ in 0..=random.below(3) {
                damaged[at + random.below(256)] = random.below(256) as u8;
            }
            // So that more than the sums are looked at.
            seal(&mut damaged, HEADERS[0] as usize, HEADER);
            seal(&mut damaged, REGIONS[0] as usize, TABLE);
            read_damaged::<Images>(&dir, &damaged);
        }
        for length in [0, 1, MIB - 1, MIB, 2 * MIB, ITEMS + TABLE, BLOCK, SIZE - 1] {
            read_damaged::<Images>(&dir, &image[..length]);
        }
    }
}
