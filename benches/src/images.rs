//! Images for the filters, made by the programs that users make them with.
#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::failure::Failure;
use crate::stack::Image;

/// Where the partition begins, and what is behind it, bytes.
const AROUND: u64 = 1 << 20;

const SECRET: &str = "secret,id=passphrase,data=bench";
const KEY: &str = "key-secret=passphrase,iter-time=100";

/// The image of `disk`, in a file beside it. Kept for the next run: clients check what they read.
pub(crate) fn image_of(disk: &Path, image: Image) -> Result<PathBuf, Failure> {
    let (name, arguments): (_, &[&str]) = match image {
        Image::Raw => return Ok(disk.to_owned()),
        Image::Partitioned => ("partitioned", &[]),
        Image::Luks => {
            ("luks", &["qemu-img", "convert", "-O", "luks", "--object", SECRET, "-o", KEY])
        }
        Image::Xz => ("xz", &["xz", "-0", "--block-size=1MiB"]),
        Image::Gzip => ("gz", &["gzip", "-1"]),
        Image::Qcow2 => ("qcow2", &["qemu-img", "convert", "-O", "qcow2"]),
        Image::CompressedQcow2 => ("c.qcow2", &["qemu-img", "convert", "-O", "qcow2", "-c"]),
    };
    let path = disk.with_extension(name);
    if path.exists() {
        return Ok(path);
    }
    let unfinished = disk.with_extension("tmp");
    match arguments {
        [] => partitioned(disk, &unfinished)?,
        [program @ "qemu-img", arguments @ ..] => {
            let mut command = Command::new(program);
            run(command.args(arguments).args(["-f", "raw"]).arg(disk).arg(&unfinished))?;
        }
        [program, arguments @ ..] => {
            let mut command = Command::new(program);
            command.args(arguments).stdin(File::open(disk)?).stdout(File::create(&unfinished)?);
            run(&mut command)?;
        }
    }
    fs::rename(&unfinished, &path)?;
    Ok(path)
}

fn run(command: &mut Command) -> Result<(), Failure> {
    let program = command.get_program().to_string_lossy().into_owned();
    let status = command
        .stderr(Stdio::null())
        .status()
        .map_err(|error| Failure::io("run", &program, &error))?;
    if !status.success() {
        return Err(Failure::Unavailable(format!("{program}: {status}")));
    }
    Ok(())
}

/// A disk with an MBR, whose only partition has the bytes of `disk`.
fn partitioned(disk: &Path, path: &Path) -> Result<(), Failure> {
    let (mut from, mut to) = (File::open(disk)?, File::create(path)?);
    let size = from.metadata()?.len();
    std::io::Seek::seek(&mut to, std::io::SeekFrom::Start(AROUND))?;
    std::io::copy(&mut from, &mut to)?;
    to.set_len(size + 2 * AROUND)?;
    let mut record = [0; 512];
    let sectors = |bytes: u64| u32::try_from(bytes / 512).unwrap_or(u32::MAX).to_le_bytes();
    record[446 + 4] = 0x83;
    record[446 + 8..446 + 12].copy_from_slice(&sectors(AROUND));
    record[446 + 12..446 + 16].copy_from_slice(&sectors(size));
    record[510..].copy_from_slice(&[0x55, 0xaa]);
    to.write_all_at(&record, 0)?;
    to.sync_all()?;
    Ok(())
}
