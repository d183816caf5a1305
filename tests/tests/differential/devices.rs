//! The file plugin on block devices and on file systems of several kinds, made of files by loop
//! devices. Where this machine has none, or the user is not root, nothing is compared.

use std::cell::RefCell;
use std::path::Path;
use std::process::Command as Program;

use nbd_protocol::constants::{CommandFlags, TransmissionFlags};
use nbdkit_tests::differential::Row;
use nbdkit_tests::row_name;
use nbdkit_tests::transcript::Session;
use nbdkit_tests::workout::exercise;
use nbdkit_tests::{Ask, TempDir};

/// What has to be undone after a row, on both sides.
enum Made {
    Device(String),
    Mount(TempDir),
}

thread_local! {
    static MADE: RefCell<Vec<Made>> = const { RefCell::new(Vec::new()) };
}

/// Undoes it, also after a row that fails.
struct Undo;

impl Drop for Undo {
    fn drop(&mut self) {
        for made in MADE.take().into_iter().rev() {
            match made {
                Made::Device(device) => drop(run("losetup", &["--detach", &device])),
                Made::Mount(dir) => drop(run("umount", &["--lazy", text(dir.path())])),
            }
        }
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// What a program printed, if it succeeded.
fn run(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Program::new(program).args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn note(made: Made) {
    MADE.with_borrow_mut(|all| all.push(made));
}

/// A device of a file, which has 1 MiB of a pattern.
fn device(dir: &TempDir, options: &[&str]) -> Option<String> {
    let image = dir.join("image");
    let pattern: Vec<u8> = (0..1 << 20).map(|at: u32| (at / 512) as u8).collect();
    std::fs::write(&image, pattern).unwrap();
    let arguments = [&["--find", "--show"], options, &[text(&image)]].concat();
    let device = run("losetup", &arguments)?;
    note(Made::Device(device.clone()));
    Some(device)
}

/// Puts a link to a device where the server finds it.
fn link_device(dir: &TempDir, options: &[&str]) {
    let device = device(dir, options).unwrap();
    std::os::unix::fs::symlink(device, dir.join("disk")).unwrap();
}

/// Whether this machine has loop devices for us.
fn has_loop_devices() -> bool {
    let _undo = Undo;
    let has = device(&TempDir::new(), &[]).is_some();
    if !has {
        eprintln!("SKIPPED: losetup(8) makes no device here, nothing was compared");
    }
    has
}

fn compare(name: &str, variant: &str, setup: fn(&TempDir), script: impl Fn(&mut Session)) {
    let _undo = Undo;
    Row::new(name, &["file", "file={dir}/disk"])
        .variant(variant)
        .setup(setup)
        .normalise(without_limits)
        .compare(script);
}

/// Later versions of nbdkit tell clients the block sizes of devices, and whether they rotate.
fn without_limits(line: &str) -> Option<String> {
    let about = ["INFO ", "BLOCK_SIZE ", "GO "].iter().any(|step| line.starts_with(step));
    let known = line.split(" flags=").next().unwrap_or(line);
    Some(if about { known.to_owned() } else { line.to_owned() })
}

/// Everything, aligned to the largest sectors.
fn exercise_sectors(s: &mut Session) {
    s.connect();
    s.info("");
    s.block_sizes("");
    s.disconnect();
    s.open();
    s.read(0, 65536);
    s.write(4096, 8192, 0xaa);
    s.ask(&Ask::write_zeroes(8192, 4096));
    s.ask(&Ask::write_zeroes(16384, 4096).flags(CommandFlags::NO_HOLE));
    // Debian's server ends by an assertion where a device has no fast zeroes.
    let fast = Ask::write_zeroes(32768, 65536).flags(CommandFlags::FAST_ZERO);
    s.ask_if(TransmissionFlags::SEND_FAST_ZERO, &fast);
    s.ask(&Ask::trim(131_072, 65536));
    s.ask(&Ask::write(200_704, [1; 4096]).flags(CommandFlags::FUA));
    s.ask(&Ask::flush());
    s.ask(&Ask::cache(0, 65536));
    s.read(0, 262_144);
    s.block_status(0, 1 << 20);
    // Parts of a sector.
    s.write(511, 2, 3);
    s.ask(&Ask::write_zeroes(1000, 5000));
    s.ask(&Ask::trim(300_001, 9999));
    s.read(0, 8192);
    s.disconnect();
}

#[test]
fn a_device_of_sectors_of_512_bytes() {
    if has_loop_devices() {
        compare(row_name!(), "", |dir| link_device(dir, &[]), exercise_sectors);
    }
}

#[test]
fn a_device_of_sectors_of_4096_bytes() {
    if has_loop_devices() {
        let setup: fn(&TempDir) = |dir| link_device(dir, &["--sector-size=4096"]);
        compare(row_name!(), "", setup, exercise_sectors);
    }
}

#[test]
fn a_device_that_is_read_only() {
    if has_loop_devices() {
        compare(row_name!(), "", |dir| link_device(dir, &["--read-only"]), exercise_sectors);
    }
}

/// A disk of 1 MiB, of which 64 KiB in the middle are a hole, in a file system of this kind.
fn in_file_system(dir: &TempDir, kind: &str, size: u64) {
    let mounted = TempDir::new();
    let image = dir.join("image");
    std::fs::File::create(&image).unwrap().set_len(size).unwrap();
    let (made, mount) = match kind {
        "tmpfs" => (Some(String::new()), run("mount", &["-t", kind, kind, text(mounted.path())])),
        _ => (
            run(&format!("mkfs.{kind}"), &[text(&image)]),
            run("mount", &["-o", "loop", text(&image), text(mounted.path())]),
        ),
    };
    assert!(made.is_some(), "mkfs.{kind}");
    if mount.is_none() {
        eprintln!("SKIPPED: this kernel mounts no {kind}; the row compares /tmp");
        std::fs::write(dir.join("disk"), vec![7; 1 << 20]).unwrap();
        return;
    }
    let disk = mounted.join("disk");
    let mut data = vec![7_u8; 1 << 20];
    std::fs::write(&disk, &data[..524_288]).unwrap();
    let file = std::fs::File::options().write(true).open(&disk).unwrap();
    data.truncate(458_752);
    std::os::unix::fs::FileExt::write_all_at(&file, &data, 589_824).unwrap();
    file.sync_all().unwrap();
    std::os::unix::fs::symlink(disk, dir.join("disk")).unwrap();
    note(Made::Mount(mounted));
}

#[test]
fn files_of_several_file_systems() {
    if !has_loop_devices() {
        return;
    }
    type Setup = fn(&TempDir);
    let kinds: [(&str, Setup); 5] = [
        ("ext4", |dir| in_file_system(dir, "ext4", 32 << 20)),
        ("xfs", |dir| in_file_system(dir, "xfs", 320 << 20)),
        ("btrfs", |dir| in_file_system(dir, "btrfs", 256 << 20)),
        ("tmpfs", |dir| in_file_system(dir, "tmpfs", 0)),
        // Without holes.
        ("vfat", |dir| in_file_system(dir, "vfat", 32 << 20)),
    ];
    for (kind, setup) in kinds {
        compare(row_name!(), kind, setup, exercise);
    }
}

#[test]
fn a_disk_of_nearly_8_eib() {
    let setup: fn(&TempDir) = |dir| {
        // The largest of tmpfs and xfs; others have less.
        let mounted = TempDir::new();
        let is_mounted = run("mount", &["-t", "tmpfs", "tmpfs", text(mounted.path())]).is_some();
        let place = if is_mounted { mounted.join("disk") } else { dir.join("sparse") };
        let file = std::fs::File::create(&place).unwrap();
        file.set_len(if is_mounted { i64::MAX as u64 } else { 1 << 43 }).unwrap();
        std::os::unix::fs::symlink(place, dir.join("disk")).unwrap();
        if is_mounted {
            note(Made::Mount(mounted));
        }
    };
    compare(row_name!(), "", setup, |s| {
        s.connect();
        s.info("");
        s.disconnect();
        s.open();
        let size = std::fs::metadata(s.dir().join("disk")).unwrap().len();
        s.read(size - 512, 512);
        s.read(size - 511, 512);
        s.ask(&Ask::write_zeroes((size - 8192) / 4096 * 4096, 4096));
        s.block_status(size - (1 << 20), 1 << 20);
        s.block_status(0, 1 << 31);
        s.disconnect();
    });
}
