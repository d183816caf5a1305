//! Files that start-up has created. A start that fails removes them, unless another file has taken
//! their path.

#![forbid(unsafe_code)]

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A file that start-up has created.
#[derive(Debug)]
pub(crate) struct MadeFile {
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
}

impl MadeFile {
    /// The file that was just created at `path`; `None` if it was removed since.
    pub(crate) fn at(path: &Path) -> Option<MadeFile> {
        let identity = identity(&path.symlink_metadata().ok()?);
        Some(MadeFile { path: path.to_owned(), identity })
    }

    /// Removes the file, if `path` still names it.
    pub(crate) fn remove(self) {
        if self.path.symlink_metadata().is_ok_and(|found| identity(&found) == self.identity) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_file_that_was_made_is_removed() {
        let path = std::env::temp_dir().join(format!("nbdkitd-made-{}", std::process::id()));
        let other = path.with_extension("other");
        std::fs::write(&path, "ours").unwrap();
        let made = MadeFile::at(&path).unwrap();
        std::fs::write(&other, "another's").unwrap();
        std::fs::rename(&other, &path).unwrap();
        made.remove();
        assert_eq!(std::fs::read(&path).unwrap(), b"another's");
        MadeFile::at(&path).unwrap().remove();
        assert!(!path.exists() && MadeFile::at(&path).is_none());
    }
}
