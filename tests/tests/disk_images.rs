//! The vhd, vhdx and vmdk plugins with images of qemu-img(1): two clients in two processes, and
//! with one process for all; libnbd's and qemu's clients; what cannot be served. Debian's nbdkit
//! has no such plugins.

use std::path::Path;

use nbdkit_tests::server::ours;
use nbdkit_tests::{Ask, TempDir, processes, tools};

const SIZE: usize = 5 << 20;

/// Plugin, what qemu-img calls the format, and its options.
const KINDS: &[(&str, &str, &str)] = &[
    ("vhd", "vpc", "subformat=fixed,force_size=on"),
    ("vhd", "vpc", "subformat=dynamic,force_size=on"),
    ("vhdx", "vhdx", "subformat=fixed"),
    ("vhdx", "vhdx", "subformat=dynamic,block_size=1M"),
    ("vhdx", "vhdx", "subformat=dynamic,block_size=8M"),
    ("vmdk", "vmdk", "subformat=monolithicSparse"),
    ("vmdk", "vmdk", "subformat=monolithicSparse,zeroed_grain=on"),
    ("vmdk", "vmdk", "subformat=streamOptimized"),
    ("vmdk", "vmdk", "subformat=monolithicFlat"),
    ("vmdk", "vmdk", "subformat=twoGbMaxExtentSparse"),
    ("vmdk", "vmdk", "subformat=twoGbMaxExtentFlat"),
];

fn disk() -> Vec<u8> {
    let data = |at: usize| !(100_000..SIZE - 4096).contains(&at);
    (0..SIZE).map(|at| if data(at) { (at % 253) as u8 + 1 } else { 0 }).collect()
}

/// Puts an image of the disk into `dir`; `None` where there is no qemu-img.
fn image(dir: &Path, format: &str, options: &str) -> Option<()> {
    std::fs::write(dir.join("raw"), disk()).expect("a disk");
    let arguments = ["convert", "-f", "raw", "-O", format, "-o", options, "raw", "image"];
    tools::run("qemu-img", &arguments, dir).map(drop)
}

#[test]
fn two_clients_read_the_disk_that_qemu_img_has_put_into_an_image() {
    for (number, (plugin, format, options)) in KINDS.iter().enumerate() {
        let isolation = ["--isolation=connection", "--isolation=shared"][number % 2];
        let builder = ours(&[isolation, plugin, "{dir}/image"]);
        if image(builder.dir().path(), format, options).is_none() {
            return;
        }
        let server = builder.start();
        let mut clients = [server.connected(""), server.connected("")];
        for client in &mut clients {
            let reply = client.call(&Ask::read(0, SIZE as u64)).expect("a reply");
            assert!(reply.data == disk(), "{plugin} {options}");
            let reply = client.call(&Ask::write(0, vec![1; 512])).expect("a reply");
            assert!(reply.error.is_some(), "the image is read only");
        }
    }
}

/// Where ranges of zeroes, and of other bytes, begin and end: `qemu-img map`.
fn map(dir: &Path, format: &str, image: &str) -> Option<Vec<(u64, u64, bool)>> {
    let json = tools::run("qemu-img", &["map", "--output=json", "-f", format, image], dir)?;
    let mut ranges: Vec<(u64, u64, bool)> = Vec::new();
    for object in json.split('{').skip(1) {
        let field = |name: &str| {
            let (_, value) = object.split_once(&format!("\"{name}\": ")).expect("a field");
            value.split([',', '}']).next().expect("a value").to_owned()
        };
        let [start, length] = ["start", "length"].map(|name| field(name).parse().expect("bytes"));
        let is_zero = field("zero") == "true";
        match ranges.last_mut() {
            Some((_, end, zero)) if *zero == is_zero => *end = start + length,
            _ => ranges.push((start, start + length, is_zero)),
        }
    }
    Some(ranges)
}

#[test]
fn nbdcopy_and_qemu_img_see_the_disk_and_its_holes() {
    for (plugin, format, options) in KINDS {
        let builder = ours(&[plugin, "{dir}/image"]);
        if image(builder.dir().path(), format, options).is_none() {
            return;
        }
        let server = builder.start();
        let dir = server.dir().path();
        let uri = format!("nbd+unix:///?socket={}", server.socket().display());
        if tools::run("nbdcopy", &[&uri, "copy"], dir).is_some() {
            assert!(std::fs::read(dir.join("copy")).expect("a copy") == disk(), "{options}");
        }
        tools::run("qemu-img", &["compare", "-f", "raw", "-F", format, &uri, "image"], dir);
        let ours = map(dir, "raw", &uri).expect("qemu-img");
        if *format == "vhdx" {
            // Of these qemu-img says that all is data.
            let (mib, size) = (1 << 20, SIZE as u64);
            let holes = [(0, mib, false), (mib, size - mib, true), (size - mib, size, false)];
            let all = [(0, size, false)];
            let expected = if options.contains("=1M") { &holes[..] } else { &all };
            assert_eq!(ours, expected, "{options}");
        } else {
            assert_eq!(Some(ours), map(dir, format, "image"), "{plugin} {options}");
        }
    }
}

#[test]
fn a_disk_of_many_files_is_read_through_the_broker() {
    // More than a client keeps open.
    let count = 300_usize;
    let builder = ours(&["vmdk", "{dir}/disk.vmdk"]);
    let dir = builder.dir();
    let mut text = "# Disk DescriptorFile\nversion=1\nparentCID=ffffffff\n".to_owned();
    for number in 0..count {
        text += &format!("RW 1 FLAT \"disk-f{number:03}.vmdk\" 0\nRW 1 ZERO\n");
        let sector = [(number % 255) as u8 + 1; 512];
        std::fs::write(dir.join(&format!("disk-f{number:03}.vmdk")), sector).expect("an extent");
    }
    std::fs::write(dir.join("disk.vmdk"), text).expect("a descriptor");
    let server = builder.start();
    let expected: Vec<u8> = (0..count)
        .flat_map(|number| [[(number % 255) as u8 + 1; 512], [0; 512]].concat())
        .collect();
    for _ in 0..2 {
        assert!(tools::disk(&server) == expected);
    }
}

#[test]
fn what_is_no_image_stops_the_start() {
    let dir = TempDir::new();
    let path = dir.join("none");
    std::fs::write(&path, vec![0; 2 << 20]).expect("a file");
    let path = path.display().to_string();
    for (plugin, why) in [
        ("vhd", "bad VHD image: there is no footer"),
        ("vhdx", "bad VHDX image: there is no file type identifier"),
        ("vmdk", "bad VMDK image: there is no descriptor"),
    ] {
        for (arguments, expected) in [
            (&[plugin, &*path][..], &*format!("none: {why}")),
            (&[plugin], "you must supply the file=<FILENAME> parameter"),
            (&[plugin, "/nonexistent"], "/nonexistent: No such file or directory"),
        ] {
            let finished = ours(arguments).try_start().expect_err("refused");
            assert!(finished.stderr.contains(expected), "{}", finished.stderr);
            assert_eq!((finished.stderr.lines().count(), finished.status.code()), (1, Some(1)));
        }
    }
}

#[test]
fn an_extent_that_is_not_there_or_elsewhere_stops_the_start() {
    let dir = TempDir::new();
    let path = dir.join("disk.vmdk").display().to_string();
    for (name, expected) in [
        ("none.vmdk", "none.vmdk: No such file or directory"),
        ("/etc/passwd", "its extent \"/etc/passwd\" is not in the directory of the image"),
    ] {
        let text = format!("# Disk DescriptorFile\nparentCID=ffffffff\nRW 1 FLAT \"{name}\"\n");
        std::fs::write(&path, text).expect("a descriptor");
        let finished = ours(&["vmdk", &path]).try_start().expect_err("refused");
        assert!(finished.stderr.contains(expected), "{}", finished.stderr);
        assert_eq!((finished.stderr.lines().count(), finished.status.code()), (1, Some(1)));
    }
}

#[test]
fn a_table_of_tebibytes_takes_no_memory() {
    for (plugin, options, gib) in
        [("vhdx", "subformat=dynamic,block_size=1M", 2000), ("vmdk", "hwversion=6", 200)]
    {
        let builder = ours(&[plugin, "{dir}/image"]);
        let dir = builder.dir().path();
        let size = format!("{gib}G");
        let create = ["create", "-q", "-f", plugin, "-o", options, "image", &size];
        if tools::run("qemu-img", &create, dir).is_none() {
            return;
        }
        let server = builder.start();
        let mut client = server.connected("");
        // All over the disk, so that more pages of the table are read than are kept.
        let size = gib << 30;
        for at in (0..size).step_by(100 << 20) {
            let reply = client.call(&Ask::read(at, 512)).expect("a reply");
            assert!(reply.error.is_none() && reply.data.iter().all(|byte| *byte == 0));
        }
        let peak = processes::status(server.workers()[0], "VmHWM:") << 10;
        assert!(peak < 64 << 20, "{plugin}: {peak} bytes");
        let uri = format!("nbd+unix:///?socket={}", server.socket().display());
        assert_eq!(map(server.dir().path(), "raw", &uri).expect("qemu-img"), [(0, size, true)]);
    }
}
