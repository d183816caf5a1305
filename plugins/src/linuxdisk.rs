//! nbdkit-linuxdisk-plugin(1): a disk with an ext2, ext3 or ext4 file system that mke2fs(8) makes
//! from a directory when the server starts.
//!
//! The disk is an unnamed file that all clients read. mke2fs gets it as its standard input and
//! writes the file system where the partition is, so that nothing is copied.

#![forbid(unsafe_code)]

mod estimate;
mod gpt;

use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use nbdkit_api::parse;
use nbdkit_api::{BlockSize, Connection, Error, Open, Plugin, Result, ResultExt, Value};

use crate::image::{self, Ended, Image};
use estimate::Contents;

/// How often a file system that turns out too small is made anew.
const MAX_TRIES: u32 = 8;

/// The plugin: what is in the disk and how large it is, and the disk once it is ready.
#[derive(Debug, Default)]
pub struct LinuxDisk {
    dir: Option<PathBuf>,
    label: Option<String>,
    kind: Kind,
    size: Size,
    image: Option<Image>,
}

/// `type`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Kind {
    #[default]
    Ext2,
    Ext3,
    Ext4,
}

impl Kind {
    fn parse(text: &str) -> Result<Kind> {
        Ok(match text {
            "ext2" => Kind::Ext2,
            "ext3" => Kind::Ext3,
            "ext4" => Kind::Ext4,
            _ => {
                return Err(Error::msg(format!(
                    "type={text}: must be a file system type supported by e2fsprogs: \
                     ext2, ext3 or ext4"
                )));
            }
        })
    }

    fn name(self) -> &'static str {
        match self {
            Kind::Ext2 => "ext2",
            Kind::Ext3 => "ext3",
            Kind::Ext4 => "ext4",
        }
    }
}

/// `size`, bytes
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Size {
    /// As small as it gets.
    #[default]
    Fitting,
    /// Of the file system.
    Total(u64),
    /// Of what is free in it.
    Free(u64),
}

impl Size {
    fn parse(text: &str) -> Result<Size> {
        Ok(match text.strip_prefix('+') {
            Some(free) => Size::Free(parse::size(free)?),
            None => Size::Total(parse::size(text)?),
        })
    }
}

/// What is asked of mke2fs.
struct Plan {
    /// Bytes of the file system, a multiple of the sector.
    length: u64,
    /// Inodes, if not mke2fs's own number.
    inodes: Option<u64>,
}

/// Largest file system, bytes, so that the disk has a size that NBD can express.
const MAX_LENGTH: u64 = i64::MAX as u64 - gpt::START - gpt::END - gpt::SECTOR;

fn round_up(length: u64) -> Result<u64> {
    match length.checked_next_multiple_of(gpt::SECTOR) {
        Some(length) if length <= MAX_LENGTH => Ok(length),
        _ => Err(Error::msg("size is too large")),
    }
}

impl LinuxDisk {
    /// Makes the file system, once or, where the size may be chosen and was not enough, several
    /// times.
    fn make(&self, dir: &std::path::Path, image: &Image) -> Result<u64> {
        let contents = Contents::of(dir)?;
        let mut plan = match self.size {
            Size::Total(total) => Plan { length: round_up(total)?, inodes: None },
            Size::Fitting => Plan { length: round_up(contents.fitting(self.kind))?, inodes: None },
            Size::Free(free) => {
                let length = contents.fitting(self.kind).saturating_add(free);
                Plan { length: round_up(length)?, inodes: None }
            }
        };
        for _ in 0..MAX_TRIES {
            let ended = self.run(dir, image, &plan)?;
            let fixed = matches!(self.size, Size::Total(_));
            if ended.success() {
                if !ended.words.is_empty() {
                    nbdkit_api::log::warning(&format!("mke2fs: {}", ended.words));
                }
                let missing = match self.size {
                    Size::Free(free) => free.saturating_sub(free_bytes(image)?),
                    _ => 0,
                };
                if missing == 0 {
                    return Ok(plan.length);
                }
                // What is added has tables of its own, at most a thirteenth of it.
                let more = missing.saturating_add(missing / 8).max(64 << 10);
                plan.length = round_up(plan.length.saturating_add(more))?;
            } else if !fixed && ended.words.contains("allocate inode") && plan.inodes.is_none() {
                let inodes = contents.files.saturating_add(contents.files / 16 + 32);
                plan.inodes = Some(inodes);
                // An inode has 256 bytes.
                plan.length = round_up(plan.length.saturating_add(inodes * 256))?;
            } else if !fixed && ended.words.contains("allocate") {
                plan.length = round_up(plan.length.saturating_add(plan.length / 4))?;
            } else {
                return Err(ended.error("mke2fs"));
            }
            image.file().set_len(0).or_error(|| "ftruncate: linuxdisk")?;
        }
        Err(Error::msg(format!(
            "mke2fs: the file system of {} bytes is still too small; give size=SIZE",
            plan.length
        )))
    }

    fn run(&self, dir: &std::path::Path, image: &Image, plan: &Plan) -> Result<Ended> {
        let end = gpt::START + plan.length;
        image.file().set_len(end).or_error(|| "ftruncate: linuxdisk")?;
        let mut command = Command::new("mke2fs");
        command.arg("-q").arg("-F").args(["-t", self.kind.name()]);
        command.args(["-E", &format!("offset={}", gpt::START)]);
        if let Some(label) = &self.label {
            command.args(["-L", label]);
        }
        if let Some(inodes) = plan.inodes {
            command.args(["-N", &inodes.to_string()]);
        }
        command.arg("-d").arg(dir).arg("/proc/self/fd/0");
        // In units of 512 bytes, mke2fs(8).
        command.arg(format!("{}s", plan.length / gpt::SECTOR));
        command.stdin(image.stdio()?).stdout(Stdio::piped());
        image::run(&mut command, "e2fsprogs", None)
    }
}

/// Bytes that are free in the file system, by its superblock.
fn free_bytes(image: &Image) -> Result<u64> {
    let mut superblock = [0; 1024];
    let at = gpt::START + 1024;
    image.file().read_exact_at(&mut superblock, at).or_error(|| "pread: linuxdisk")?;
    let number = |from: usize| u32::from_le_bytes([0, 1, 2, 3].map(|byte| superblock[from + byte]));
    if superblock[0x38..0x3a] != [0x53, 0xef] {
        return Err(Error::msg("mke2fs: made no ext2 file system"));
    }
    let shift = number(0x18).min(6);
    Ok(u64::from(number(0x0c)) << (10 + shift))
}

impl Plugin for LinuxDisk {
    fn name(&self) -> &str {
        "linuxdisk"
    }

    fn callbacks(&self) -> &'static [&'static str] {
        &[
            "longname",
            "config",
            "config_complete",
            "config_help",
            "get_ready",
            "open",
            "get_size",
            "block_size",
            "can_extents",
            "can_multi_conn",
            "can_cache",
            "pread",
            "extents",
            "cache",
        ]
    }

    fn longname(&self) -> Option<&str> {
        Some("nbdkit Linux virtual disk plugin")
    }

    fn magic_config_key(&self) -> Option<&str> {
        Some("dir")
    }

    fn config_help(&self) -> Option<&str> {
        Some(
            "dir=<DIRECTORY>  (required) The directory to serve.\n\
             label=<LABEL>               The filesystem label.\n\
             type=ext2|ext3|ext4         The filesystem type.\n\
             size=[+]<SIZE>              The virtual filesystem size.",
        )
    }

    fn config(&mut self, key: &str, value: Value<'_>) -> Result<()> {
        match key {
            "dir" if self.dir.is_some() => {
                return Err(Error::msg("dir=<DIRECTORY> must only be set once"));
            }
            "dir" => self.dir = Some(value.realpath()?),
            "label" => self.label = Some(value.str()?.to_owned()),
            "type" => self.kind = Kind::parse(value.str()?)?,
            "size" => self.size = Size::parse(value.str()?)?,
            _ => return Err(Error::unknown_parameter(key)),
        }
        Ok(())
    }

    fn config_complete(&mut self) -> Result<()> {
        match &self.dir {
            Some(_) => Ok(()),
            None => Err(Error::msg(
                "you must supply the dir=<DIRECTORY> parameter \
                 after the plugin name on the command line",
            )),
        }
    }

    fn get_ready(&mut self) -> Result<()> {
        let dir = self.dir.as_ref().ok_or_else(|| Error::msg("linuxdisk: not configured"))?;
        let image = Image::new("linuxdisk", BlockSize::default())?;
        let length = self.make(dir, &image)?;
        let guids = gpt::Guids::random().or_error(|| "/dev/urandom")?;
        gpt::write(image.file(), length, &guids).or_error(|| "linuxdisk: partition table")?;
        self.image = Some(image);
        Ok(())
    }

    /// One that is made again is not the same to the last byte.
    fn keeps_state(&self) -> bool {
        true
    }

    fn open(&self, _open: &Open<'_>) -> Result<Box<dyn Connection>> {
        self.image.as_ref().ok_or_else(|| Error::msg("linuxdisk: not ready"))?.open()
    }
}

#[cfg(test)]
mod tests;
