//! Plugins that serve the disk in an image of some format, read-only: what vhd, vhdx and vmdk have
//! in common. Nbdkitd's own.
//!
//! Such an image has tables that say where each block of the disk is. A [`Format`] reads them as a
//! [`Map`], of which each client has one. The image is hostile: a map checks every number in it,
//! and keeps no more of it than a bounded number of pages.

#![forbid(unsafe_code)]

pub(crate) mod source;
pub(crate) mod table;

use std::fmt::Debug;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use nbdkit_api::page_cache;
use nbdkit_api::paths::{self, Declared};
use nbdkit_api::{
    Blocking, Cache, Connection, Error, ExtentKind, Extents, FileRange, Flags, Needs, Open, Plugin,
    Result, Value,
};

use crate::files::File;
use source::Part;

/// Pieces of the disk that one answer about extents looks at, at most.
const MOST_PIECES: usize = 1 << 16;

/// A format of images.
pub(crate) trait Format: Debug + Default + Send + Sync + 'static {
    /// Of the plugin.
    const NAME: &'static str;
    const LONGNAME: &'static str;
    const HELP: &'static str;
    /// Bytes of memory that a client's map takes.
    const MEMORY: u64;
    type Map: Map + 'static;

    /// The further files that the image, which is at `path`, says it is made of.
    ///
    /// # Errors
    /// EINVAL: it is no image, or one that cannot be served. The kernel's.
    fn parts(image: &Part, path: &Path) -> Result<Vec<Declared>> {
        let _ = (image, path);
        Ok(Vec::new())
    }

    /// The disk in an image, whose further files were `parts` when the server started.
    ///
    /// # Errors
    /// As [`parts`](Self::parts).
    fn open(image: Part, parts: &[Declared]) -> Result<Self::Map>;
}

/// The disk in an image, as one client has it open. Ranges of the disk are within it and not empty.
pub(crate) trait Map: Send + Sync {
    /// Where bytes of the disk are.
    type Place;

    /// Bytes of the disk.
    fn size(&self) -> u64;

    /// Looks at all files, when the server starts.
    ///
    /// # Errors
    /// What makes one of them unusable.
    fn check(&self) -> Result<()> {
        Ok(())
    }

    /// Where the byte `at` of the disk is, `None` if it is a zero that is nowhere, and how many
    /// bytes from there on are in one piece with it, at most `count`.
    ///
    /// # Errors
    /// EIO: the tables make no sense. The kernel's.
    fn find(&self, at: u64, count: u64) -> Result<(Option<Self::Place>, u64)>;

    /// Fills `buf` from a place, where [`find`](Self::find) has found as many bytes.
    ///
    /// # Errors
    /// EIO: what is there makes no sense. The kernel's.
    fn read(&self, buf: &mut [u8], place: Self::Place) -> Result<()>;

    /// The file that has this range of the disk as it is, and where, if that is known without
    /// reading a table and the file is open.
    fn file_at(&self, at: u64, count: u64) -> Option<(&File, u64)> {
        let _ = (at, count);
        None
    }
}

/// The plugin for a format: which image.
#[derive(Debug, Default)]
pub(crate) struct DiskImage<F> {
    file: Option<Declared>,
    /// Set when the server is ready.
    parts: Vec<Declared>,
    format: PhantomData<F>,
}

impl<F: Format> Plugin for DiskImage<F> {
    fn name(&self) -> &str {
        F::NAME
    }

    fn longname(&self) -> Option<&str> {
        Some(F::LONGNAME)
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
        Some(F::HELP)
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
        let image = self.declared()?;
        self.parts = with_name(F::parts(&self.part()?, &image.path), &image.path)?;
        let Image { map, .. } = self.image()?;
        with_name(map.check(), &self.declared()?.path)
    }

    fn needs(&self, _: bool) -> Needs {
        let declared = self.file.iter().chain(&self.parts).cloned();
        declared.fold(Needs::nothing().memory(F::MEMORY), Needs::declare)
    }

    fn open(&self, _: &Open<'_>) -> Result<Box<dyn Connection>> {
        Ok(Box::new(self.image()?))
    }
}

impl<F: Format> DiskImage<F> {
    fn declared(&self) -> Result<&Declared> {
        self.file
            .as_ref()
            .ok_or_else(|| Error::msg("you must supply the file=<FILENAME> parameter"))
    }

    /// The image, opened.
    fn part(&self) -> Result<Part> {
        paths::open(self.declared()?, None, true).map(Part::opened)
    }

    fn image(&self) -> Result<Image<F::Map>> {
        let path = &self.declared()?.path;
        let map = with_name(F::open(self.part()?, &self.parts), path)?;
        Ok(Image { name: path.display().to_string(), map })
    }
}

/// The number of `length` bytes, at most 8, that is at `at`.
pub(crate) fn little_endian(bytes: &[u8], at: usize, length: usize) -> u64 {
    bytes[at..at + length].iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// The result, with the image's name in front of what went wrong.
fn with_name<T>(result: Result<T>, path: &Path) -> Result<T> {
    result.map_err(|why| why.context(path.display()))
}

/// A client's image.
struct Image<M> {
    /// For messages.
    name: String,
    map: M,
}

impl<M: Map> Image<M> {
    fn find(&self, at: u64, count: u64) -> Result<(Option<M::Place>, u64)> {
        self.map.find(at, count).map_err(|why| why.context(&self.name))
    }
}

impl<M: Map + 'static> Connection for Image<M> {
    fn size(&self) -> Result<u64> {
        Ok(self.map.size())
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
                None => part.fill(0),
                Some(place) => self.map.read(part, place)?,
            }
            buf = rest;
            offset += count;
        }
        Ok(())
    }

    fn extents(&self, count: u64, offset: u64, flags: Flags, extents: &mut Extents) -> Result<()> {
        let one = flags.contains(Flags::REQ_ONE);
        let end = offset + count;
        let mut at = offset;
        for _ in 0..MOST_PIECES {
            if at >= end {
                break;
            }
            let (place, count) = self.find(at, end - at)?;
            match (place, self.map.file_at(at, count)) {
                (None, _) => extents.add(at, count, ExtentKind::SPARSE)?,
                (Some(_), Some((file, from))) => file.add_extents(count, from, one, at, extents)?,
                (Some(_), None) => extents.add(at, count, ExtentKind::DATA)?,
            }
            if one {
                break;
            }
            at += count;
        }
        Ok(())
    }

    fn blocking(&self) -> Blocking {
        Blocking::Short
    }

    fn file_range(&self, count: u32, offset: u64) -> Option<FileRange<'_>> {
        let count = u64::from(count);
        let is_within = offset.checked_add(count).is_some_and(|end| end <= self.map.size());
        if count == 0 || !is_within {
            return None;
        }
        let (file, offset) = self.map.file_at(offset, count)?;
        let in_memory = Some(page_cache::is_in_memory as fn(BorrowedFd<'_>, u64) -> bool);
        Some(FileRange { fd: file.opened.file.as_fd(), offset, in_memory })
    }
}

/// Goes through the beginning of a disk: what is found makes sense, and can be read, unless
/// `decoded`, where the bytes may be damaged. For the fuzz targets.
///
/// # Panics
/// If it does not.
#[cfg(any(test, feature = "fuzz"))]
pub(crate) fn walk(map: &impl Map, decoded: bool) {
    let mut at = 0;
    for _ in 0..1000 {
        if at >= map.size() {
            return;
        }
        let left = map.size() - at;
        let Ok((place, count)) = map.find(at, left) else { return };
        assert!(count > 0 && count <= left, "{count} bytes at {at} of {}", map.size());
        if let Some(place) = place {
            let mut buf = vec![0; count.min(1 << 16) as usize];
            let read = map.read(&mut buf, place);
            assert!(decoded || read.is_ok(), "{count} bytes at {at} are in the image: {read:?}");
            // The last byte too.
            let found = map.find(at + count - 1, 1).map(|(last, _)| last);
            let last = found.expect("found before").expect("data, as before");
            let read = map.read(&mut [0], last);
            assert!(decoded || read.is_ok(), "the byte before {} is too: {read:?}", at + count);
        }
        at += count;
    }
}

/// What the tests of the formats share.
#[cfg(test)]
pub(crate) mod testing;
