//! A disk, images of it that qemu-img(1) makes, and the plugins on them.

use std::path::{Path, PathBuf};
use std::process::Command;

use nbdkit_api::{
    Client, Connection, Errno, ExtentKind, Extents, Flags, Open, Plugin, Result, Value,
};

use super::{DiskImage, Format};
use crate::test_dir::TestDir;

pub(crate) const MIB: usize = 1 << 20;

/// A disk with data here and there: 9 MiB, so that its last block is rarely whole.
pub(crate) fn disk() -> Vec<u8> {
    let mut disk = vec![0; 9 * MIB];
    for (at, count) in [(0, 1000), (3 * MIB - 7, 100), (6 * MIB, MIB), (9 * MIB - 512, 512)] {
        disk[at..at + count]
            .iter_mut()
            .enumerate()
            .for_each(|(n, byte)| *byte = (n % 251) as u8 + 1);
    }
    disk
}

/// What qemu-img makes of the disk, in a file of this name; `None` where there is no qemu-img.
pub(crate) fn image(dir: &TestDir, format: &str, options: &str, name: &str) -> Option<PathBuf> {
    let [raw, image] = ["raw", name].map(|name| dir.join(name));
    std::fs::write(&raw, disk()).unwrap();
    let made = Command::new("qemu-img")
        .args(["convert", "-f", "raw", "-O", format, "-o", options])
        .args([&raw, &image])
        .status();
    let Ok(made) = made else {
        eprintln!("skipped: no qemu-img to make an image");
        return None;
    };
    assert!(made.success(), "qemu-img: {format} {options}");
    Some(image)
}

/// What qemu-img reads from an image.
pub(crate) fn as_qemu_reads(dir: &TestDir, format: &str, image: &Path) -> Vec<u8> {
    let raw = dir.join("read-by-qemu");
    let mut command = Command::new("qemu-img");
    command.args(["convert", "-f", format, "-O", "raw"]).args([image, &raw]);
    assert!(command.status().unwrap().success(), "{}", image.display());
    std::fs::read(raw).unwrap()
}

/// The plugin on an image.
pub(crate) fn plugin<F: Format>(image: &Path) -> Result<DiskImage<F>> {
    let mut plugin = DiskImage::<F>::default();
    plugin.config("file", Value::new(image))?;
    plugin.config_complete()?;
    plugin.get_ready()?;
    Ok(plugin)
}

/// The plugin on an image of these bytes.
pub(crate) fn plugin_on<F: Format>(dir: &TestDir, image: &[u8]) -> Result<DiskImage<F>> {
    let path = dir.join("image");
    std::fs::write(&path, image).unwrap();
    plugin(&path)
}

pub(crate) fn open<F: Format>(plugin: &DiskImage<F>) -> Box<dyn Connection> {
    let client: Option<&std::sync::Arc<Client>> = None;
    plugin.open(&Open { client, readonly: true, export: "", tls: false }).unwrap()
}

/// Why an image is refused, one line, without its name.
pub(crate) fn why<F: Format>(dir: &TestDir, image: &[u8]) -> String {
    let why = plugin_on::<F>(dir, image).unwrap_err();
    assert!(!why.message().contains('\n'), "{}", why.message());
    let (name, why) = why.message().split_once(": ").unwrap();
    assert!(name.ends_with("/image"), "{name}");
    why.to_owned()
}

/// Everything that a client reads, in one request and in small ones that cross blocks.
pub(crate) fn read_all(connection: &dyn Connection) -> Vec<u8> {
    let size = usize::try_from(connection.size().unwrap()).unwrap();
    let mut whole = vec![9; size];
    connection.pread(&mut whole, 0).unwrap();
    let mut part = vec![9; 2 * MIB + 10];
    for (at, count) in [(1, 1), (2 * MIB - 1, 2), (4 * MIB - 5, part.len()), (size - 1, 1)] {
        if at + count > size {
            continue;
        }
        let part = &mut part[..count];
        connection.pread(part, at as u64).unwrap();
        assert!(part == &whole[at..at + count], "{count} at {at}");
    }
    whole
}

/// Where pieces of one kind begin.
pub(crate) fn kinds(connection: &dyn Connection) -> Vec<(u64, ExtentKind)> {
    let size = connection.size().unwrap();
    let mut extents = Extents::new(0, size);
    connection.extents(size, 0, Flags::empty(), &mut extents).unwrap();
    assert_eq!(extents.covered_to(), size);
    // One at a time, they are the same.
    let mut at = 0;
    while at < size {
        let mut one = Extents::new(at, size);
        connection.extents(size - at, at, Flags::REQ_ONE, &mut one).unwrap();
        let first = one.iter().next().unwrap();
        let whole = extents.iter().find(|it| it.offset <= at && at < it.end()).unwrap();
        assert!(first.kind == whole.kind && first.end() <= whole.end(), "{first:?} {whole:?}");
        at = first.end();
    }
    extents.iter().map(|it| (it.offset, it.kind)).collect()
}

/// Reads all of a damaged image: each request succeeds or fails with EIO and one line.
pub(crate) fn read_damaged<F: Format>(dir: &TestDir, image: &[u8]) {
    let Ok(plugin) = plugin_on::<F>(dir, image) else { return };
    let connection = open(&plugin);
    let size = connection.size().unwrap();
    let mut buf = vec![0; MIB];
    for at in (0..size).step_by(MIB).take(64) {
        let count = (size - at).min(MIB as u64);
        if let Err(why) = connection.pread(&mut buf[..count as usize], at) {
            assert_eq!(why.errno(), Errno::EIO, "{}", why.message());
            assert!(!why.message().contains('\n'), "{}", why.message());
        }
        let _ = connection.extents(count, at, Flags::empty(), &mut Extents::new(at, at + count));
    }
}

/// Numbers that look random, the same each time.
pub(crate) struct Random(u32);

impl Random {
    pub(crate) fn new() -> Random {
        Random(1)
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (self.0 >> 8) as usize % limit
    }
}
