//! What is in the directory, as far as a FAT file system can hold it.

#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::fs::{DirEntry, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nbdkit_api::{Error, Result, ResultExt, debug};
use nix::unistd::{AccessFlags, access};

use super::names::{ShortNames, check_long};

/// Most files and directories. Each takes some hundred bytes of the template's memory.
const MOST_ENTRIES: usize = 100_000;
/// Most 32-byte entries of a directory, of which a long name takes up to 20. Microsoft's
/// specification, section 6.
const MOST_SLOTS: usize = 65_536;

/// Seconds since 1970.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Times {
    pub(super) changed: i64,
    pub(super) accessed: i64,
    pub(super) written: i64,
}

impl From<&Metadata> for Times {
    fn from(metadata: &Metadata) -> Times {
        Times { changed: metadata.ctime(), accessed: metadata.atime(), written: metadata.mtime() }
    }
}

/// What an entry of a directory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    /// By its number.
    Directory(usize),
    /// By its number.
    File(usize),
}

/// An entry of a directory.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) short: [u8; 11],
    pub(super) what: What,
    pub(super) times: Times,
}

impl Entry {
    /// Whether the short name says it all.
    pub(super) fn is_short(&self) -> bool {
        super::names::shown(&self.short) == self.name
    }

    /// Entries of 32 bytes that it takes.
    pub(super) fn slots(&self) -> usize {
        if self.is_short() { 1 } else { 1 + self.name.encode_utf16().count().div_ceil(13) }
    }
}

/// A directory.
#[derive(Debug)]
pub(super) struct Directory {
    pub(super) path: PathBuf,
    /// The number of the directory that it is in; the root is in itself.
    pub(super) parent: usize,
    pub(super) times: Times,
    pub(super) entries: Vec<Entry>,
}

impl Directory {
    pub(super) fn has_files(&self) -> bool {
        self.entries.iter().any(|entry| matches!(entry.what, What::File(_)))
    }

    /// Entries of 32 bytes that it has besides `.`, `..` and the label.
    pub(super) fn slots(&self) -> usize {
        self.entries.iter().map(Entry::slots).sum()
    }
}

/// A regular file.
#[derive(Debug)]
pub(super) struct File {
    /// The number of the directory that it is in.
    pub(super) directory: usize,
    pub(super) name: String,
    pub(super) size: u32,
}

/// Everything; the root is the first directory.
#[derive(Debug, Default)]
pub(super) struct Tree {
    pub(super) directories: Vec<Directory>,
    pub(super) files: Vec<File>,
}

impl Tree {
    /// Looks through a directory, without following links.
    ///
    /// # Errors
    /// Something cannot be read, or FAT cannot hold it.
    pub(super) fn scan(root: &Path) -> Result<Tree> {
        let metadata = std::fs::metadata(root).or_error(|| root.display().to_string())?;
        let times = Times::from(&metadata);
        let mut tree = Tree::default();
        tree.directories.push(Directory {
            path: root.to_owned(),
            parent: 0,
            times,
            entries: Vec::new(),
        });
        let mut number = 0;
        while number < tree.directories.len() {
            let entries = tree.list(number)?;
            tree.directories[number].entries = entries;
            let Directory { path, .. } = &tree.directories[number];
            if tree.directories[number].slots() + 2 > MOST_SLOTS {
                return Err(refused(path, "there are too many files in the directory"));
            }
            number += 1;
        }
        Ok(tree)
    }

    /// The entries of a directory in the order of their names, which it adds to the tree.
    fn list(&mut self, number: usize) -> Result<Vec<Entry>> {
        let path = self.directories[number].path.clone();
        let failed = || format!("opendir: {}", path.display());
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&path).or_error(failed)? {
            found.push(entry.or_error(failed)?);
            if found.len() + self.directories.len() + self.files.len() > MOST_ENTRIES {
                let why = format!("there are more than {MOST_ENTRIES} files and directories");
                return Err(refused(&path, &why));
            }
        }
        found.sort_by_key(DirEntry::file_name);
        let mut short_names = ShortNames::default();
        let mut folded = HashSet::new();
        let mut entries = Vec::new();
        for entry in found {
            let path = entry.path();
            let metadata = entry.metadata().or_error(|| path.display().to_string())?;
            if !metadata.is_file() && !metadata.is_dir() {
                debug!("{}: neither a file nor a directory, and left out", path.display());
                continue;
            }
            let Ok(name) = entry.file_name().into_string() else {
                return Err(refused(&path, "the name is not UTF-8"));
            };
            check_long(&name).map_err(|why| refused(&path, why))?;
            if !folded.insert(name.to_uppercase()) {
                return Err(refused(&path, "another name differs in upper and lower case only"));
            }
            let what = self.add(number, &path, &name, &metadata)?;
            let times = Times::from(&metadata);
            // Those that need no other name come first, so that nobody takes it.
            entries.push(Entry { short: [0; 11], name, what, times });
        }
        for exact in [true, false] {
            for entry in entries.iter_mut().filter(|entry| entry.short == [0; 11]) {
                if let Some(short) = short_names.take(&entry.name, exact) {
                    entry.short = short;
                }
            }
        }
        match entries.iter().find(|entry| entry.short == [0; 11]) {
            Some(entry) => Err(refused(&path.join(&entry.name), "there is no short name left")),
            None => Ok(entries),
        }
    }

    fn add(
        &mut self,
        directory: usize,
        path: &Path,
        name: &str,
        metadata: &Metadata,
    ) -> Result<What> {
        if metadata.is_dir() {
            let times = Times::from(metadata);
            let path = path.to_owned();
            self.directories.push(Directory {
                path,
                parent: directory,
                times,
                entries: Vec::new(),
            });
            return Ok(What::Directory(self.directories.len() - 1));
        }
        access(path, AccessFlags::R_OK).or_error(|| format!("open: {}", path.display()))?;
        let size = u32::try_from(metadata.len())
            .map_err(|_| refused(path, "a file on a FAT file system is smaller than 4 GiB"))?;
        self.files.push(File { directory, name: name.to_owned(), size });
        Ok(What::File(self.files.len() - 1))
    }
}

fn refused(path: &Path, why: &str) -> Error {
    Error::msg(format!("{}: {why}", path.display()))
}
