//! nbdkit-split-plugin(1): concatenates files and block devices into one disk.
//!
//! For each client all of them are opened anew. They must not be resized while they are served.

use nbdkit_api::page_cache::{is_in_memory, read_now};
use nbdkit_api::paths::{self, Declared, Opened};
use nbdkit_api::shared::seek_extents;
use nbdkit_api::{
    Blocking, Cache, Connection, Errno, Error, ExtentKind, Extents, FileRange, Flags, Needs, Open,
    Plugin, Result, ResultExt, Value,
};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::unistd::{Whence, lseek64};

use crate::file::disk::file_size;

/// The plugin: the files in their order.
#[derive(Debug, Default)]
pub struct Split {
    files: Vec<Declared>,
}

impl Plugin for Split {
    fn name(&self) -> &str {
        "split"
    }

    fn callbacks(&self) -> &'static [&'static str] {
        &[
            "config",
            "config_complete",
            "config_help",
            "open",
            "get_size",
            "can_write",
            "can_flush",
            "can_extents",
            "can_cache",
            "pread",
            "pwrite",
            "flush",
            "extents",
            "cache",
        ]
    }

    fn magic_config_key(&self) -> Option<&str> {
        Some("file")
    }

    fn config_help(&self) -> Option<&str> {
        Some("file=<FILENAME>  (required) File(s) to serve.")
    }

    fn config(&mut self, key: &str, value: Value<'_>) -> Result<()> {
        match key {
            "file" => self.files.push(Declared::file(value.realpath()?)),
            _ => return Err(Error::unknown_parameter(key)),
        }
        Ok(())
    }

    fn config_complete(&mut self) -> Result<()> {
        if self.files.is_empty() {
            return Err(Error::msg(
                "you must supply at least one [file=]<FILENAME> parameter \
                 after the plugin name on the command line",
            ));
        }
        Ok(())
    }

    fn needs(&self, readonly: bool) -> Needs {
        let needs = Needs::nothing();
        let declared = self.files.iter().cloned();
        declared.fold(needs, |needs, file| needs.declare(file.read_only(readonly)))
    }

    fn open(&self, open: &Open<'_>) -> Result<Box<dyn Connection>> {
        let files = self.files.iter().map(|file| paths::open(file, None, open.readonly));
        Ok(Box::new(Handle::new(files.collect::<Result<_>>()?)?))
    }
}

/// One file at its place on the disk.
struct Part {
    opened: Opened,
    /// Offset of its first byte on the disk.
    start: u64,
    length: u64,
    knows_holes: bool,
}

struct Handle {
    /// In order, without gaps.
    parts: Vec<Part>,
    size: u64,
}

/// The share of one file in a request.
struct Piece<'a> {
    part: &'a Part,
    /// Byte offset in the file.
    offset: u64,
    length: u64,
}

impl Piece<'_> {
    fn what(&self, operation: &str) -> String {
        let Opened { name, .. } = &self.part.opened;
        format!("{operation}: {name} offset={} count={}", self.offset, self.length)
    }
}

impl Handle {
    fn new(files: Vec<Opened>) -> Result<Handle> {
        let mut parts = Vec::with_capacity(files.len());
        let mut start = 0_u64;
        for opened in files {
            let length = file_size(&opened.file, opened.is_block_device)
                .or_error(|| format!("size: {}", opened.name))?;
            let knows_holes = lseek64(&*opened.file, 0, Whence::SeekHole).is_ok();
            parts.push(Part { opened, start, length, knows_holes });
            start = start
                .checked_add(length)
                .ok_or_else(|| Error::new(Errno::EOVERFLOW, "the files are too large together"))?;
        }
        Ok(Handle { parts, size: start })
    }

    /// Divides a request among the files.
    fn pieces(&self, offset: u64, count: u64) -> impl Iterator<Item = Piece<'_>> {
        let end = offset.saturating_add(count);
        let first = self.parts.partition_point(|part| part.start + part.length <= offset);
        self.parts[first..].iter().take_while(move |part| part.start < end).filter_map(
            move |part| {
                let from = offset.max(part.start);
                let to = end.min(part.start + part.length);
                let length = to.checked_sub(from).filter(|length| *length > 0)?;
                Some(Piece { part, offset: from - part.start, length })
            },
        )
    }

    /// The only piece of a request that touches one file only.
    fn only_piece(&self, offset: u64, count: u64) -> Option<Piece<'_>> {
        self.pieces(offset, count).next().filter(|piece| piece.length == count)
    }
}

impl Connection for Handle {
    fn size(&self) -> Result<u64> {
        Ok(self.size)
    }

    fn can_write(&self) -> Result<bool> {
        Ok(self.parts.iter().all(|part| part.opened.writable))
    }

    fn can_flush(&self) -> Result<bool> {
        Ok(true)
    }

    fn can_extents(&self) -> Result<bool> {
        Ok(self.parts.iter().any(|part| part.knows_holes))
    }

    fn can_cache(&self) -> Result<Cache> {
        Ok(Cache::Native)
    }

    fn pread(&self, mut buf: &mut [u8], offset: u64) -> Result<()> {
        for piece in self.pieces(offset, buf.len() as u64) {
            // A piece is no longer than the buffer.
            let (now, rest) = buf.split_at_mut(piece.length as usize);
            piece.part.opened.file.read_exact_at(now, piece.offset).map_err(|error| {
                if error.kind() == std::io::ErrorKind::UnexpectedEof {
                    let what = piece.what("pread");
                    Error::new(Errno::EIO, format!("{what}: unexpected end of file"))
                } else {
                    Error::io(piece.what("pread"), &error)
                }
            })?;
            buf = rest;
        }
        Ok(())
    }

    fn pwrite(&self, mut buf: &[u8], offset: u64, _flags: Flags) -> Result<()> {
        for piece in self.pieces(offset, buf.len() as u64) {
            let (now, rest) = buf.split_at(piece.length as usize);
            let file = &piece.part.opened.file;
            file.write_all_at(now, piece.offset).or_error(|| piece.what("pwrite"))?;
            buf = rest;
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        for Part { opened, .. } in &self.parts {
            opened.file.sync_data().or_error(|| format!("fdatasync: {}", opened.name))?;
        }
        Ok(())
    }

    fn extents(&self, count: u64, offset: u64, flags: Flags, extents: &mut Extents) -> Result<()> {
        let one = flags.contains(Flags::REQ_ONE);
        for piece in self.pieces(offset, count) {
            let Piece { part, offset, length } = piece;
            if part.knows_holes {
                // Without the bound, what follows the piece in its file would be added before the
                // next.
                let mut found = Extents::new(offset, offset + length);
                seek_extents(part.opened.file.as_fd(), length, offset, one, &mut found)
                    .map_err(|why| why.context(piece.what("extents")))?;
                for extent in found.iter() {
                    extents.add(part.start + extent.offset, extent.length, extent.kind)?;
                }
            } else {
                extents.add(part.start + offset, length, ExtentKind::DATA)?;
            }
            if one {
                break;
            }
        }
        Ok(())
    }

    fn cache(&self, count: u64, offset: u64) -> Result<()> {
        for piece in self.pieces(offset, count) {
            let (Ok(at), Ok(length)) = (i64::try_from(piece.offset), i64::try_from(piece.length))
            else {
                return Err(Error::os(piece.what("posix_fadvise"), Errno::EINVAL));
            };
            let advice = PosixFadviseAdvice::POSIX_FADV_WILLNEED;
            posix_fadvise(&*piece.part.opened.file, at, length, advice)
                .or_error(|| piece.what("posix_fadvise"))?;
        }
        Ok(())
    }

    fn blocking(&self) -> Blocking {
        Blocking::Short
    }

    fn try_pread(&self, buf: &mut [u8], offset: u64) -> Option<Result<()>> {
        let piece = self.only_piece(offset, buf.len() as u64)?;
        let read = read_now(piece.part.opened.file.as_fd(), buf, piece.offset).ok()?;
        (read == buf.len()).then_some(Ok(()))
    }

    fn file_range(&self, count: u32, offset: u64) -> Option<FileRange<'_>> {
        let piece = self.only_piece(offset, count.into())?;
        let fd = piece.part.opened.file.as_fd();
        Some(FileRange { fd, offset: piece.offset, in_memory: Some(is_in_memory) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_dir::TestDir;

    fn open(dir: &TestDir, readonly: bool) -> Box<dyn Connection> {
        let mut plugin = Split::default();
        std::fs::write(dir.join("a"), [1; 10_000]).unwrap();
        std::fs::write(dir.join("b"), "").unwrap();
        std::fs::File::create(dir.join("c")).unwrap().set_len(8192).unwrap();
        std::fs::write(dir.join("d"), [3; 5]).unwrap();
        for name in ["a", "b", "c", "d"] {
            plugin.config("file", Value::new(&dir.join(name))).unwrap();
        }
        plugin.config_complete().unwrap();
        plugin.open(&Open { client: None, readonly, export: "", tls: false }).unwrap()
    }

    #[test]
    fn requests_cross_the_bounds_of_files() {
        let dir = TestDir::new();
        let disk = open(&dir, false);
        assert_eq!(disk.size().unwrap(), 18_197);
        disk.pwrite(&[9; 8196], 9_998, Flags::empty()).unwrap();
        let mut buf = vec![0; 18_197];
        disk.pread(&mut buf, 0).unwrap();
        let mut expected = vec![1; 18_197];
        expected[9_998..18_194].fill(9);
        expected[18_194..].fill(3);
        assert!(buf == expected);
        assert_eq!(std::fs::metadata(dir.join("a")).unwrap().len(), 10_000);
        assert_eq!(std::fs::read(dir.join("d")).unwrap(), [9, 9, 3, 3, 3]);
        disk.flush().unwrap();
        disk.cache(18_197, 0).unwrap();
    }

    #[test]
    fn extents_are_those_of_the_files_at_their_places() {
        let dir = TestDir::new();
        let disk = open(&dir, true);
        let mut extents = Extents::new(100, 18_197);
        disk.extents(18_097, 100, Flags::empty(), &mut extents).unwrap();
        let found: Vec<_> = extents.iter().map(|e| (e.offset, e.length, e.kind)).collect();
        assert_eq!(
            found,
            [
                (100, 9_900, ExtentKind::DATA),
                (10_000, 8_192, ExtentKind::SPARSE),
                (18_192, 5, ExtentKind::DATA)
            ]
        );
    }

    #[test]
    fn only_ranges_within_one_file_can_be_moved_without_copying() {
        let dir = TestDir::new();
        let disk = open(&dir, true);
        assert_eq!(disk.file_range(100, 10_000).unwrap().offset, 0);
        assert_eq!(disk.file_range(100, 9_900).unwrap().offset, 9_900);
        assert!(disk.file_range(101, 9_900).is_none());
        assert!(!disk.can_write().unwrap());
    }

    #[test]
    fn a_file_is_required() {
        assert!(Split::default().config_complete().is_err());
    }
}
