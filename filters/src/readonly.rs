//! nbdkit-readonly-filter(1): the disk cannot be written, at all or while a file exists.

use std::path::PathBuf;

use nbdkit_api::{
    Access, DataPath, Direction, Errno, Error, Filter, Flags, Needs, Next, NextConfig, Open,
    OpenLayer, Result, Slot, Value,
};

/// The filter: the file that makes the disk read-only while it exists.
#[derive(Debug, Default)]
pub struct ReadOnly {
    file: Option<PathBuf>,
}

impl Filter for ReadOnly {
    fn name(&self) -> &str {
        "readonly"
    }

    fn longname(&self) -> Option<&str> {
        Some("nbdkit readonly filter")
    }

    fn config_help(&self) -> Option<&str> {
        Some("readonly-file=<PATH>  Requests that write fail while this file exists.")
    }

    fn config(&mut self, next: NextConfig<'_>, key: &str, value: Value<'_>) -> Result<()> {
        match key {
            "readonly-file" if self.file.is_some() => {
                return Err(Error::msg("readonly-file parameter set more than once"));
            }
            "readonly-file" => self.file = Some(value.absolute_path()?),
            _ => return next.config(key, value),
        }
        Ok(())
    }

    /// Without a file, nothing is opened for writing. The file need not exist yet.
    fn needs(&self, below: Needs) -> Needs {
        match &self.file {
            None => below.read_only(),
            Some(path) => below.path(path, Access::Look),
        }
    }

    fn open(&self, below: &mut Slot<'_>, open: &Open<'_>) -> Result<Box<dyn OpenLayer>> {
        let readonly = open.readonly || self.file.is_none();
        below.open(&open.readonly(readonly))?;
        Ok(Box::new(Handle { file: self.file.clone() }))
    }
}

struct Handle {
    file: Option<PathBuf>,
}

impl Handle {
    /// # Errors
    /// EROFS: the disk is read-only now.
    fn check(&self) -> Result<()> {
        if self.file.as_ref().is_none_or(|file| file.exists()) {
            return Err(Error::silent(Errno::EROFS));
        }
        Ok(())
    }
}

impl OpenLayer for Handle {
    /// With a file it is asked for each request.
    fn can_write(&self, next: &Next) -> Result<bool> {
        Ok(self.file.is_some() && next.can_write()?)
    }

    fn pwrite(&self, next: &Next, buf: &[u8], offset: u64, flags: Flags) -> Result<()> {
        self.check()?;
        next.pwrite(buf, offset, flags)
    }

    fn trim(&self, next: &Next, count: u64, offset: u64, flags: Flags) -> Result<()> {
        self.check()?;
        next.trim(count, offset, flags)
    }

    fn zero(&self, next: &Next, count: u64, offset: u64, flags: Flags) -> Result<()> {
        self.check()?;
        next.zero(count, offset, flags)
    }

    fn data_path(&self, direction: Direction) -> DataPath {
        match direction {
            Direction::Read => DataPath::Transparent,
            Direction::Write => DataPath::PerRequest,
        }
    }

    fn passes(&self, _: &Next, _: Direction, _: u64, _: u64) -> bool {
        self.check().is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, Disk};
    use std::sync::Arc;

    #[test]
    fn without_a_file_the_layer_below_is_opened_read_only() {
        let disk = Arc::new(Disk::pattern(512));
        let filter = testing::backend(&disk, &["readonly"], &[]);
        assert!(disk.take_calls()[0].ends_with(" readonly=true"));
        assert!(!filter.can_write().unwrap());
        assert_eq!(filter.pwrite(&[1], 0, Flags::empty()).unwrap_err().errno(), Errno::EROFS);
        assert_eq!(testing::read(&filter, 2, 1), [1, 2]);
    }

    #[test]
    fn while_the_file_exists_requests_that_write_fail() {
        let dir = std::env::temp_dir().join(format!("readonly-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let file = dir.join("switch");
        let disk = Arc::new(Disk::new(512));
        let path = file.to_str().unwrap();
        let filter = testing::backend(&disk, &["readonly"], &[("readonly-file", path)]);
        assert!(filter.can_write().unwrap());
        let requests: [&dyn Fn() -> Result<()>; 3] = [
            &|| filter.pwrite(&[1], 0, Flags::empty()),
            &|| filter.trim(1, 0, Flags::empty()),
            &|| filter.zero(1, 0, Flags::empty()),
        ];
        for exists in [false, true, false] {
            if exists {
                std::fs::write(&file, "").unwrap();
            } else {
                let _ = std::fs::remove_file(&file);
            }
            for request in requests {
                let errno = request().err().map(|error| error.errno());
                assert_eq!(errno, exists.then_some(Errno::EROFS));
            }
            filter.flush().unwrap();
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn the_file_is_given_once() {
        let twice = [("readonly-file", "/a"), ("readonly-file", "/b")];
        let error = testing::config_error("readonly", &twice);
        assert_eq!(error, "readonly-file parameter set more than once");
    }
}
