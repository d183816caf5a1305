//! nbdkit-vhd-plugin(1): the disk in a VHD image, which is only read. Nbdkitd's own.
//!
//! "Virtual Hard Disk Image Format Specification", version 1.0. A dynamic image has a table of
//! blocks, of which each client reads the entries that it needs. The image is hostile: every number
//! in it is checked against the file.

#![forbid(unsafe_code)]

pub(crate) mod format;

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;

use nbdkit_api::page_cache;
use nbdkit_api::paths::{self, Declared, Opened};
use nbdkit_api::{
    Blocking, Cache, Connection, Errno, Error, ExtentKind, Extents, FileRange, Flags, Needs, Open,
    Plugin, Result, ResultExt, Value,
};

use crate::file::disk::file_size;
use format::{Layout, Place};

/// The plugin: which image.
#[derive(Debug, Default)]
pub struct Vhd {
    file: Option<Declared>,
}

impl Plugin for Vhd {
    fn name(&self) -> &str {
        "vhd"
    }

    fn longname(&self) -> Option<&str> {
        Some("nbdkit VHD plugin")
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
            "can_extents",
            "can_multi_conn",
            "can_cache",
            "pread",
            "extents",
        ]
    }

    fn magic_config_key(&self) -> Option<&str> {
        Some("file")
    }

    fn config_help(&self) -> Option<&str> {
        Some("[file=]<FILENAME>     (required) The VHD image to serve.")
    }

    fn config(&mut self, key: &str, value: Value<'_>) -> Result<()> {
        match key {
            "file" if self.file.is_some() => {
                return Err(Error::msg("file parameter can only be given once"));
            }
            "file" => self.file = Some(Declared::file(value.realpath()?).read_only(true)),
            _ => return Err(Error::unknown_parameter(key)),
        }
        Ok(())
    }

    fn config_complete(&mut self) -> Result<()> {
        self.declared().map(drop)
    }

    /// What cannot be served stops the start.
    fn get_ready(&mut self) -> Result<()> {
        self.image().map(drop)
    }

    fn needs(&self, _: bool) -> Needs {
        self.file.iter().cloned().fold(Needs::nothing(), Needs::declare)
    }

    fn open(&self, _: &Open<'_>) -> Result<Box<dyn Connection>> {
        Ok(Box::new(self.image()?))
    }
}

impl Vhd {
    fn declared(&self) -> Result<&Declared> {
        self.file
            .as_ref()
            .ok_or_else(|| Error::msg("you must supply the file=<FILENAME> parameter"))
    }

    fn image(&self) -> Result<Image> {
        let opened = paths::open(self.declared()?, None, true)?;
        let size = file_size(&opened.file, opened.is_block_device)
            .or_error(|| format!("size: {}", opened.name))?;
        let layout = Layout::read(size, |buf, at| read(&opened, buf, at));
        let layout = layout.map_err(|why| why.context(&opened.name))?;
        Ok(Image { opened, layout })
    }
}

/// Reads from the image.
fn read(opened: &Opened, buf: &mut [u8], offset: u64) -> Result<()> {
    let count = buf.len();
    let what = || format!("pread: {} offset={offset} count={count}", opened.name);
    opened.file.read_exact_at(buf, offset).map_err(|error| match error.kind() {
        std::io::ErrorKind::UnexpectedEof => {
            Error::new(Errno::EIO, format!("{}: unexpected end of file", what()))
        }
        _ => Error::io(what(), &error),
    })
}

/// A client's image.
struct Image {
    opened: Opened,
    layout: Layout,
}

impl Image {
    /// Where the byte `at` of the disk is, and how many behind it are in one piece with it, at most
    /// `count`.
    fn find(&self, at: u64, count: u64) -> Result<(Place, u64)> {
        let found = self.layout.find(at, count, |buf, at| read(&self.opened, buf, at));
        found.map_err(|why| why.context(&self.opened.name))
    }
}

impl Connection for Image {
    fn size(&self) -> Result<u64> {
        Ok(self.layout.size)
    }

    fn can_extents(&self) -> Result<bool> {
        Ok(true)
    }

    fn can_multi_conn(&self) -> Result<bool> {
        Ok(true)
    }

    fn can_cache(&self) -> Result<Cache> {
        Ok(Cache::Emulate)
    }

    fn pread(&self, mut buf: &mut [u8], mut offset: u64) -> Result<()> {
        while !buf.is_empty() {
            let (place, count) = self.find(offset, buf.len() as u64)?;
            let (part, rest) = buf.split_at_mut(count as usize);
            match place {
                Place::Zeroes => part.fill(0),
                Place::At(at) => read(&self.opened, part, at)?,
            }
            buf = rest;
            offset += count;
        }
        Ok(())
    }

    fn extents(&self, count: u64, offset: u64, flags: Flags, extents: &mut Extents) -> Result<()> {
        let end = offset + count;
        let mut at = offset;
        while at < end {
            let (place, count) = self.find(at, end - at)?;
            let kind = match place {
                Place::Zeroes => ExtentKind::SPARSE,
                Place::At(_) => ExtentKind::DATA,
            };
            extents.add(at, count, kind)?;
            at += count;
            if flags.contains(Flags::REQ_ONE) {
                break;
            }
        }
        Ok(())
    }

    fn blocking(&self) -> Blocking {
        Blocking::Short
    }

    /// Of an image whose table need not be asked.
    fn file_range(&self, count: u32, offset: u64) -> Option<FileRange<'_>> {
        if self.layout.is_dynamic() || offset + u64::from(count) > self.layout.size {
            return None;
        }
        let in_memory = Some(page_cache::is_in_memory as fn(BorrowedFd<'_>, u64) -> bool);
        Some(FileRange { fd: self.opened.file.as_fd(), offset, in_memory })
    }
}

#[cfg(test)]
mod tests;
