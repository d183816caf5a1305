//! How large a file system has to be for what is in a directory.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nbdkit_api::{Error, Result, ResultExt};

use super::Kind;

/// Least size of a file system, bytes.
const LEAST: u64 = 1 << 20;
/// What a journal takes, bytes.
const JOURNAL: u64 = 32 << 20;
/// What is charged for a file that takes no block where it is, a link for example, bytes: it may
/// take one in the file system, and does take an inode.
const SMALL: u64 = 256;

/// What is in a directory and its subdirectories.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Contents {
    /// Bytes on disk, as du(1) counts: holes take nothing, and a file with several names counts
    /// once.
    pub(super) bytes: u64,
    /// Files of any type.
    pub(super) files: u64,
}

impl Contents {
    /// Counts. Links are not followed.
    ///
    /// # Errors
    /// Something cannot be read, or `dir` is no directory.
    pub(super) fn of(dir: &Path) -> Result<Contents> {
        let failed = |path: &Path| format!("linuxdisk: {}", path.display());
        let mut contents = Contents::default();
        let mut linked = HashSet::new();
        let mut directories: Vec<PathBuf> = vec![dir.to_owned()];
        let top = std::fs::metadata(dir).or_error(|| failed(dir))?;
        if !top.is_dir() {
            return Err(Error::msg(format!("expecting a directory: {}", dir.display())));
        }
        contents.add(&top);
        while let Some(directory) = directories.pop() {
            for entry in std::fs::read_dir(&directory).or_error(|| failed(&directory))? {
                let entry = entry.or_error(|| failed(&directory))?;
                let found = entry.metadata().or_error(|| failed(&entry.path()))?;
                if found.is_dir() {
                    directories.push(entry.path());
                } else if found.nlink() > 1 && !linked.insert((found.dev(), found.ino())) {
                    continue;
                }
                contents.add(&found);
            }
        }
        Ok(contents)
    }

    fn add(&mut self, found: &std::fs::Metadata) {
        self.files += 1;
        // In units of 512 bytes: stat(3type), st_blocks.
        let bytes = found.blocks().saturating_mul(512).max(SMALL);
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// The size of a file system that has room for this and little more, bytes.
    pub(super) fn fitting(&self, kind: Kind) -> u64 {
        // Inodes, bitmaps, indirect blocks and what is reserved take up to a fifth of the content.
        let size = self.bytes.saturating_add(self.bytes / 5 + 1).max(LEAST);
        match kind {
            Kind::Ext2 => size,
            Kind::Ext3 | Kind::Ext4 => size.saturating_add(JOURNAL),
        }
    }
}
