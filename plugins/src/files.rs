//! The files that one client's disk is made of, and how they are read.

#![forbid(unsafe_code)]

use std::ops::Deref;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use nbdkit_api::paths::Opened;
use nbdkit_api::shared::seek_extents;
use nbdkit_api::{Errno, Error, ExtentKind, Extents, Result};
use nix::unistd::{Whence, lseek64};

/// Most files that a client keeps open which were opened when they were first read.
const MOST_OPEN: usize = 256;

/// Opens the file of a number.
type Find = Box<dyn Fn(usize) -> Result<Opened> + Send + Sync>;

/// A file that is open.
pub(crate) struct File {
    pub(crate) opened: Opened,
    knows_holes: bool,
}

impl File {
    pub(crate) fn new(opened: Opened) -> File {
        let knows_holes = lseek64(&*opened.file, 0, Whence::SeekHole).is_ok();
        File { opened, knows_holes }
    }

    /// Whether the kernel says where its holes are.
    pub(crate) fn knows_holes(&self) -> bool {
        self.knows_holes
    }

    /// What was done to which part of the file, for messages.
    pub(crate) fn what(&self, operation: &str, offset: u64, count: u64) -> String {
        format!("{operation}: {} offset={offset} count={count}", self.opened.name)
    }

    /// Fills `buf` from `offset`.
    ///
    /// # Errors
    /// The kernel's. EIO: the file has ended.
    pub(crate) fn read(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let count = buf.len() as u64;
        self.opened.file.read_exact_at(buf, offset).map_err(|error| {
            let what = self.what("pread", offset, count);
            if error.kind() == std::io::ErrorKind::UnexpectedEof {
                Error::new(Errno::EIO, format!("{what}: unexpected end of file"))
            } else {
                Error::io(what, &error)
            }
        })
    }

    /// Adds what `offset .. offset + length` of the file is, or the first piece of it if `one`, to
    /// the extents of a disk, where these bytes begin at `at`.
    ///
    /// # Errors
    /// The kernel's; those of [`Extents::add`].
    pub(crate) fn add_extents(
        &self,
        length: u64,
        offset: u64,
        one: bool,
        at: u64,
        extents: &mut Extents,
    ) -> Result<()> {
        if !self.knows_holes {
            return extents.add(at, length, ExtentKind::DATA);
        }
        // Without the bound, what follows in the file would be added before what follows on the
        // disk.
        let mut found = Extents::new(offset, offset + length);
        seek_extents(self.opened.file.as_fd(), length, offset, one, &mut found)
            .map_err(|why| why.context(self.what("extents", offset, length)))?;
        for extent in found.iter() {
            extents.add(at + (extent.offset - offset), extent.length, extent.kind)?;
        }
        Ok(())
    }
}

/// A client's files.
pub(crate) struct Files {
    open: Vec<OnceLock<File>>,
    /// How many were opened when they were read.
    found: AtomicUsize,
    find: Option<Find>,
}

/// A file for one request, which is closed behind it if too many are open.
pub(crate) enum Use<'a> {
    Kept(&'a File),
    Once(File),
}

impl Deref for Use<'_> {
    type Target = File;

    fn deref(&self) -> &File {
        match self {
            Use::Kept(file) => file,
            Use::Once(file) => file,
        }
    }
}

impl Files {
    /// Files that are open.
    pub(crate) fn open(files: Vec<Opened>) -> Files {
        let open = files.into_iter().map(|opened| OnceLock::from(File::new(opened))).collect();
        Files { open, found: AtomicUsize::new(0), find: None }
    }

    /// As many files, each of which is opened when it is first read.
    pub(crate) fn on_demand(
        count: usize,
        find: impl Fn(usize) -> Result<Opened> + Send + Sync + 'static,
    ) -> Files {
        let open = (0..count).map(|_| OnceLock::new()).collect();
        Files { open, found: AtomicUsize::new(0), find: Some(Box::new(find)) }
    }

    /// Whether files are opened when they are first read.
    pub(crate) fn are_on_demand(&self) -> bool {
        self.find.is_some()
    }

    /// The file of this number, which is opened if it is not.
    ///
    /// # Errors
    /// Those of opening it.
    pub(crate) fn get(&self, number: usize) -> Result<Use<'_>> {
        if let Some(file) = self.open_one(number) {
            return Ok(Use::Kept(file));
        }
        let (Some(slot), Some(find)) = (self.open.get(number), &self.find) else {
            return Err(Error::new(Errno::EIO, format!("there is no file {number}")));
        };
        let file = File::new(find(number)?);
        if self.found.fetch_add(1, Ordering::Relaxed) < MOST_OPEN {
            // Another thread may have been first.
            return Ok(Use::Kept(slot.get_or_init(|| file)));
        }
        self.found.fetch_sub(1, Ordering::Relaxed);
        Ok(Use::Once(file))
    }

    /// The file of this number if it is open, and stays so.
    pub(crate) fn open_one(&self, number: usize) -> Option<&File> {
        self.open.get(number)?.get()
    }

    /// Those that are open, and stay so.
    pub(crate) fn kept(&self) -> impl Iterator<Item = &File> {
        self.open.iter().filter_map(OnceLock::get)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_dir::TestDir;
    use nbdkit_api::paths::{self, Declared};

    #[test]
    fn files_on_demand_are_opened_once_unless_they_are_many() {
        let dir = TestDir::new();
        std::fs::write(dir.join("a"), [7; 4]).unwrap();
        let count = MOST_OPEN + 2;
        let path = dir.join("a");
        let files = Files::on_demand(count, move |_| {
            paths::open(&Declared::file(path.clone()), None, true)
        });
        assert!(files.open_one(0).is_none());
        for _ in 0..2 {
            for number in 0..count {
                let mut buf = [0; 4];
                files.get(number).unwrap().read(&mut buf, 0).unwrap();
                assert_eq!(buf, [7; 4]);
            }
            assert_eq!(files.kept().count(), MOST_OPEN);
        }
        assert!(files.open_one(0).is_some() && files.open_one(count - 1).is_none());
        // Those that are open need not be found any more, the others do.
        std::fs::remove_file(dir.join("a")).unwrap();
        assert!(files.get(0).is_ok() && files.get(count - 1).is_err());
    }
}
