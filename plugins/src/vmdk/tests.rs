use std::process::Command;

use nbdkit_api::{ExtentKind, Open, Plugin};

use super::example::{self, Kind};
use super::*;
use crate::disk_image::testing::{
    self, MIB, Random, as_qemu_reads, disk, kinds, open, plugin, plugin_on, read_all, read_damaged,
};
use crate::test_dir::TestDir;

fn why(dir: &TestDir, image: &[u8]) -> String {
    let why = testing::why::<Images>(dir, image);
    why.replace("bad VMDK image: ", "")
}

/// One extent, as large as VMware's grains.
const KIND: Kind = Kind { grain: 128, is_whole: true, is_stream: false };

#[test]
fn images_of_qemu_are_read_and_what_is_in_no_grain_is_a_hole() {
    let dir = TestDir::new();
    let grain = 64 << 10;
    for (options, is_flat) in [
        ("subformat=monolithicSparse", false),
        ("subformat=monolithicSparse,zeroed_grain=on", false),
        ("subformat=streamOptimized", false),
        ("subformat=twoGbMaxExtentSparse", false),
        ("subformat=monolithicFlat", true),
        ("subformat=twoGbMaxExtentFlat", true),
    ] {
        let Some(path) = testing::image(&dir, "vmdk", options, "image.vmdk") else { return };
        let connection = open(&plugin::<Images>(&path).unwrap());
        assert!(read_all(&*connection) == disk(), "{options}");
        let kinds = kinds(&*connection);
        if is_flat {
            // Where the file has holes, the file system says.
            assert_eq!(kinds[0], (0, ExtentKind::DATA), "{options}");
            assert!(connection.file_range(1 << 16, 5).is_some(), "{options}");
            continue;
        }
        assert!(connection.file_range(512, 0).is_none());
        let (data, hole) = (ExtentKind::DATA, ExtentKind::SPARSE);
        let mib = |count: usize| (count * MIB) as u64;
        let expected = [
            (0, data),
            (grain, hole),
            (mib(3) - grain, data),
            (mib(3) + grain, hole),
            (mib(6), data),
            (mib(7), hole),
            (mib(9) - grain, data),
        ];
        assert_eq!(kinds, expected, "{options}");
    }
}

#[test]
fn a_disk_of_several_files_is_read_across_their_bounds() {
    let dir = TestDir::new();
    let size = 5_u64 << 30;
    for subformat in ["twoGbMaxExtentSparse", "twoGbMaxExtentFlat"] {
        let path = dir.join("split.vmdk");
        let mut command = Command::new("qemu-img");
        command.args(["create", "-q", "-f", "vmdk", "-o", &format!("subformat={subformat}")]);
        if command.arg(&path).arg("5G").status().is_err() {
            eprintln!("skipped: no qemu-img to make an image");
            return;
        }
        let mut command = Command::new("qemu-io");
        let writes = ["write -P 7 2097151k 2k", "write -P 8 4194300k 8k"];
        command.args(["-f", "vmdk"]).args(writes.map(|write| ["-c", write]).concat()).arg(&path);
        assert!(command.output().unwrap().status.success());
        let plugin = plugin::<Images>(&path).unwrap();
        // The image and three extents.
        assert_eq!(plugin.needs(true).declared.len(), 4);
        let connection = open(&plugin);
        assert_eq!(connection.size().unwrap(), size);
        let mut found = [9; 4096];
        let bound = 2_u64 << 30;
        connection.pread(&mut found, bound - 2048).unwrap();
        let expected = [[0; 1024], [7; 1024], [7; 1024], [0; 1024]].concat();
        assert!(found[..] == expected, "{subformat}");
        let mut found = [9; 8192];
        connection.pread(&mut found, 2 * bound - 4096).unwrap();
        assert_eq!(found, [8; 8192]);
        let kinds = kinds(&*connection);
        let is_hole =
            |(at, kind): &(u64, ExtentKind)| *kind == ExtentKind::SPARSE && *at < bound / 2;
        assert!(kinds.iter().any(is_hole), "{subformat}: {kinds:?}");
        std::fs::remove_file(&path).unwrap();
    }
}

#[test]
fn images_made_by_hand_are_what_qemu_takes_them_for() {
    let dir = TestDir::new();
    let part = Kind { is_whole: false, ..KIND };
    let sectors = KIND.capacity();
    let descriptor = |kind: &str| example::descriptor(&format!("RW {sectors} {kind} \"part\""));
    let path = dir.join("image");
    for (what, image, extent) in [
        ("sparse", example::sparse(KIND), None),
        ("stream", example::sparse(Kind { is_stream: true, ..KIND }), None),
        ("split", descriptor("SPARSE"), Some(example::sparse(part))),
        ("COWD", descriptor("VMFSSPARSE"), Some(example::cowd(part))),
    ] {
        if let Some(extent) = extent {
            std::fs::write(dir.join("part"), extent).unwrap();
        }
        let connection = open(&plugin_on::<Images>(&dir, &image).unwrap());
        assert!(read_all(&*connection) == KIND.disk(), "{what}");
        assert!(as_qemu_reads(&dir, "vmdk", &path) == KIND.disk(), "{what}");
        let (data, hole) = (ExtentKind::DATA, ExtentKind::SPARSE);
        assert_eq!(kinds(&*connection), [(0, hole), (65536, data), (131_072, hole)], "{what}");
    }
}

#[test]
fn flat_extents_begin_where_the_descriptor_says_and_zeroes_are_holes() {
    let dir = TestDir::new();
    std::fs::write(dir.join("part"), [[1; 512], [2; 512], [3; 512]].concat()).unwrap();
    let text = "RW 1 FLAT \"part\" 1\nRW 2 ZERO\nRDONLY 1 VMFS \"part\"\n";
    let plugin = plugin_on::<Images>(&dir, &example::descriptor(text)).unwrap();
    // The image and one file.
    assert_eq!(plugin.needs(true).declared.len(), 2);
    let connection = open(&plugin);
    let expected = [[2; 512], [0; 512], [0; 512], [1; 512]].concat();
    assert!(read_all(&*connection) == expected);
    let (data, hole) = (ExtentKind::DATA, ExtentKind::SPARSE);
    assert_eq!(kinds(&*connection), [(0, data), (512, hole), (1536, data)]);
    let range = |count, at| connection.file_range(count, at).map(|range| range.offset);
    assert_eq!([range(512, 0), range(513, 0), range(512, 1536)], [Some(512), None, Some(0)]);
    assert_eq!(range(0, 2048), None);
    // Clients that come when the descriptor has become another have no files but those declared.
    std::fs::write(dir.join("image"), example::descriptor("RW 1 FLAT \"other\"")).unwrap();
    std::fs::write(dir.join("other"), [4; 512]).unwrap();
    let open = Open { client: None, readonly: true, export: "", tls: false };
    let why = plugin.open(&open).err().unwrap();
    assert!(why.message().ends_with("files that it had not when the server started"));
}

#[test]
fn only_files_of_the_same_directory_are_served() {
    let dir = TestDir::new();
    let outside = TestDir::new();
    std::fs::write(outside.join("secret"), [7; 512]).unwrap();
    std::os::unix::fs::symlink(outside.join("secret"), dir.join("link")).unwrap();
    let refused = |name: &str| why(&dir, &example::descriptor(&format!("RW 1 FLAT \"{name}\"")));
    assert_eq!(refused("link"), "its extent link is a symbolic link");
    let path = outside.join("secret").display().to_string();
    let expected = format!("its extent \"{path}\" is not in the directory of the image");
    assert_eq!(refused(&path), expected);
    assert!(refused("none").contains("none: No such file or directory"));
}

/// The extent with these bytes in its header.
fn with(kind: Kind, at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut image = example::sparse(kind);
    image[at..at + bytes.len()].copy_from_slice(bytes);
    image
}

#[test]
fn images_that_make_no_sense_are_one_line() {
    let dir = TestDir::new();
    let none = "there is no descriptor";
    for image in [&b""[..], &[0; 512], b"# Disk Descripto", &vec![b'#'; 2 * MIB]] {
        assert_eq!(why(&dir, image), none);
    }
    let mut large = example::descriptor("RW 1 ZERO");
    large.resize(MIB + 1, b'\n');
    assert_eq!(why(&dir, &large), "a descriptor of more than 1048576 bytes");
    let part = Kind { is_whole: false, ..KIND };
    let one = "it is one extent of a disk: serve the descriptor of that";
    assert_eq!(why(&dir, &example::sparse(part)), one);
    assert_eq!(why(&dir, &example::cowd(part)), one);
    assert_eq!(why(&dir, &with(KIND, 4, &[4])), "version 4 is not supported, only 1 to 3");
    assert_eq!(why(&dir, &with(KIND, 73, b"\r")), "it was damaged by a transfer as text");
    for (grain, expected) in [
        (0_u64, "grains of 0 bytes"),
        (3, "grains of 1536 bytes"),
        (4096, "grains of 2097152 bytes"),
        (u64::MAX, "18446744073709551615 sectors are too many"),
    ] {
        assert_eq!(why(&dir, &with(KIND, 20, &grain.to_le_bytes())), expected);
    }
    for count in [0_u32, 4097, u32::MAX] {
        let expected = format!("tables of {count} grains");
        assert_eq!(why(&dir, &with(KIND, 44, &count.to_le_bytes())), expected);
    }
    let outside = "the directory of its grains lies outside of it";
    assert_eq!(why(&dir, &with(KIND, 56, &[0, 1])), outside);
    assert_eq!(why(&dir, &with(KIND, 12, &(1_u64 << 40).to_le_bytes())), outside);
    let many = (1_u64 << 55).to_le_bytes();
    assert_eq!(why(&dir, &with(KIND, 12, &many)), "36028797018963968 sectors are too many");
    // The descriptor in it.
    assert!(why(&dir, &with(KIND, 28, &[0xff])).contains("unexpected end of file"));
    assert_eq!(why(&dir, &with(KIND, 36, &[0, 16])), "a descriptor of more than 1048576 bytes");
    let mut delta = example::sparse(KIND);
    let text = delta.windows(8).position(|bytes| bytes == b"ffffffff").unwrap();
    delta[text] = b'0';
    let expected = "a delta disk, which needs another image, is not supported";
    assert_eq!(why(&dir, &delta), expected);
    let stream = Kind { is_stream: true, ..KIND };
    let without_footer = example::sparse(stream);
    let without_footer = &without_footer[..without_footer.len() - 512];
    assert_eq!(why(&dir, without_footer), "there is no footer");
    let mut other = example::sparse(stream);
    let footer = other.len() - 1024;
    other[footer + 77] = 2;
    assert_eq!(why(&dir, &other), "compression 2 is not supported, only deflate");
    other[footer + 10] = 1;
    assert_eq!(why(&dir, &other), "compressed grains without markers are not supported");
}

#[test]
fn extents_that_do_not_fit_stop_the_start() {
    let dir = TestDir::new();
    let part = Kind { is_whole: false, ..KIND };
    let sectors = KIND.capacity();
    let refused = |line: &str| why(&dir, &example::descriptor(line));
    std::fs::write(dir.join("part"), example::sparse(part)).unwrap();
    let expected =
        format!("part: it has less than the {} bytes of the extent", (sectors + 1) * 512);
    assert_eq!(refused(&format!("RW {} SPARSE \"part\"", sectors + 1)), expected);
    std::fs::write(dir.join("part"), [1; 1024]).unwrap();
    assert_eq!(refused("RW 1 SPARSE \"part\""), "part: it is no sparse extent");
    let expected = "part: it has less than 512 bytes at 1024";
    assert_eq!(refused("RW 1 FLAT \"part\" 2"), expected);
    let lines = "RW 18014398509481983 ZERO\n".repeat(2);
    assert_eq!(refused(&lines), "a disk of more than 2^63 - 1 bytes");
}

#[test]
fn a_grain_that_makes_no_sense_is_eio_for_who_reads_it() {
    let dir = TestDir::new();
    let stream = Kind { is_stream: true, ..KIND };
    let grain = 2 * 512;
    let lengths = [0, 131_073, u32::MAX].map(u32::to_le_bytes);
    let mut damaged: Vec<(Kind, usize, Vec<u8>)> =
        lengths.map(|length| (stream, grain + 8, length.to_vec())).into();
    // Its bytes, and the entry of the table.
    damaged.push((stream, grain + 20, vec![0xff; 20]));
    damaged.push((stream, grain + 512 + 4, vec![0xff; 4]));
    damaged.push((KIND, grain + 65536 + 4, vec![0xff; 4]));
    for (kind, at, bytes) in damaged {
        let connection = open(&plugin_on::<Images>(&dir, &with(kind, at, &bytes)).unwrap());
        let why = connection.pread(&mut [0; 512], 65536).unwrap_err();
        assert_eq!(why.errno(), Errno::EIO, "{kind:?} {at}: {}", why.message());
        connection.pread(&mut [0; 512], 0).unwrap();
    }
}

#[test]
fn what_a_grain_expands_to_is_bounded() {
    let dir = TestDir::new();
    let stream = Kind { is_stream: true, ..KIND };
    // Of zeroes, a thousand times as many as there are bytes.
    let bomb = |size: usize| {
        let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
        std::io::Write::write_all(&mut zlib, &vec![0; size]).unwrap();
        let zlib = zlib.finish().unwrap();
        [&(zlib.len() as u32).to_le_bytes()[..], &zlib].concat()
    };
    for (size, is_good) in [(65535, false), (65536, true), (65537, false), (400_000, false)] {
        let bytes = bomb(size);
        assert!(bytes.len() < 500, "it fits where the grain was");
        let image = with(stream, 2 * 512 + 8, &bytes);
        let connection = open(&plugin_on::<Images>(&dir, &image).unwrap());
        let read = connection.pread(&mut [0; 512], 65536);
        assert_eq!(read.is_ok(), is_good, "{size}: {read:?}");
    }
}

#[test]
fn damaged_and_truncated_images_are_errors_and_no_panics() {
    let dir = TestDir::new();
    let mut random = Random::new();
    for image in [example::sparse(KIND), example::sparse(Kind { is_stream: true, ..KIND })] {
        let end = image.len();
        for _ in 0..300 {
            let mut damaged = image.clone();
            for _ in 0..=random.below(3) {
                // In the header, and in what is behind the grain.
                let at = if random.below(2) == 0 {
                    random.below(100)
                } else {
                    end - 1 - random.below(2600)
                };
                damaged[at] = random.below(256) as u8;
            }
            read_damaged::<Images>(&dir, &damaged);
        }
        for length in (0..end).step_by(500) {
            read_damaged::<Images>(&dir, &image[..length]);
        }
    }
}
