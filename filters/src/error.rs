//! nbdkit-error-filter(1): makes requests fail at random. In messages it is `error-inject`, so
//! that its name is not taken for the word error.

use std::path::PathBuf;

use nbdkit_api::{
    Access, DataPath, Direction, Errno, Error, Extents, Filter, Flags, Needs, Next, NextConfig,
    Open, OpenLayer, Result, Slot, Value,
};

use crate::random::Random;

/// The operations that can be made to fail, as parameters and messages call them.
const OPERATIONS: [&str; 6] = ["pread", "pwrite", "trim", "zero", "extents", "cache"];
const PREAD: usize = 0;
const PWRITE: usize = 1;
const TRIM: usize = 2;
const ZERO: usize = 3;
const EXTENTS: usize = 4;
const CACHE: usize = 5;

const ERRORS: [(&str, Errno); 6] = [
    ("EPERM", Errno::EPERM),
    ("EIO", Errno::EIO),
    ("ENOMEM", Errno::ENOMEM),
    ("EINVAL", Errno::EINVAL),
    ("ENOSPC", Errno::ENOSPC),
    ("ESHUTDOWN", Errno::ESHUTDOWN),
];

/// How one operation fails.
#[derive(Debug, Clone)]
struct Setting {
    name: &'static str,
    errno: Errno,
    /// Probability, 0 to 1.
    rate: f64,
    /// If given, only while this exists.
    trigger: Option<PathBuf>,
}

/// The filter: how each of the operations fails.
#[derive(Debug, Clone)]
pub struct Inject {
    settings: [Setting; 6],
}

impl Default for Inject {
    fn default() -> Inject {
        let io = Setting { name: "EIO", errno: Errno::EIO, rate: 0.0, trigger: None };
        Inject { settings: std::array::from_fn(|_| io.clone()) }
    }
}

impl Filter for Inject {
    fn name(&self) -> &str {
        "error-inject"
    }

    fn longname(&self) -> Option<&str> {
        Some("nbdkit error injection filter")
    }

    fn config_help(&self) -> Option<&str> {
        Some(
            "error=EPERM|EIO|ENOMEM|EINVAL|ENOSPC|ESHUTDOWN\n\
             \x20                              The error indication to return.\n\
             error-rate=0%..100%|0..1|N:M   Rate of errors to generate.\n\
             error-file=TRIGGER             Set trigger filename.\n\
             error-pread*, error-pwrite*, error-trim*, error-zero*, error-extents*, error-cache*\n\
             \x20                              Apply settings only to read/write/etc",
        )
    }

    fn config(&mut self, next: NextConfig<'_>, key: &str, value: Value<'_>) -> Result<()> {
        let Some((settings, what)) = self.select(key) else { return next.config(key, value) };
        match what {
            What::Error => {
                let text = value.str()?;
                let (name, errno) = *ERRORS
                    .iter()
                    .find(|(name, _)| *name == text)
                    .ok_or_else(|| Error::msg(format!("{key}: unknown error name '{text}'")))?;
                settings.iter_mut().for_each(|s| (s.name, s.errno) = (name, errno));
            }
            What::Rate => {
                let rate = value.probability(key)?;
                if rate > 1.0 {
                    let text = value.str()?;
                    return Err(Error::msg(format!(
                        "{key}: rate out of range: '{text}' parsed as {rate}"
                    )));
                }
                settings.iter_mut().for_each(|s| s.rate = rate);
            }
            What::File => {
                let path = value.absolute_path()?;
                settings.iter_mut().for_each(|s| s.trigger = Some(path.clone()));
            }
        }
        Ok(())
    }

    /// Trigger files need not exist yet; only that is asked of them.
    fn needs(&self, below: Needs) -> Needs {
        self.settings
            .iter()
            .filter_map(|setting| setting.trigger.clone())
            .fold(below, |needs, path| needs.path(path, Access::Look))
    }

    fn open(&self, below: &mut Slot<'_>, open: &Open<'_>) -> Result<Box<dyn OpenLayer>> {
        below.open(open)?;
        let connection = open.client.map_or(0, |client| client.number());
        Ok(Box::new(Handle {
            settings: self.settings.clone(),
            random: Random::seeded_for(connection),
        }))
    }
}

enum What {
    Error,
    Rate,
    File,
}

impl Inject {
    /// What `error`, `error-OP`, `error[-OP]-rate` and `error[-OP]-file` set, and for which
    /// operations.
    fn select(&mut self, key: &str) -> Option<(&mut [Setting], What)> {
        let rest = key.strip_prefix("error")?;
        let (rest, what) = if let Some(rest) = rest.strip_suffix("-rate") {
            (rest, What::Rate)
        } else if let Some(rest) = rest.strip_suffix("-file") {
            (rest, What::File)
        } else {
            (rest, What::Error)
        };
        if rest.is_empty() {
            return Some((&mut self.settings, what));
        }
        let operation = rest.strip_prefix('-')?;
        let at = OPERATIONS.iter().position(|name| *name == operation)?;
        Some((std::slice::from_mut(&mut self.settings[at]), what))
    }
}

struct Handle {
    settings: [Setting; 6],
    random: Random,
}

impl Handle {
    fn perhaps_fail(&self, operation: usize) -> Result<()> {
        self.fail_if(operation, |rate| self.random.unit() < rate)
    }

    /// Fails if the operation may, and, at rates below 1, `is_due`.
    fn fail_if(&self, operation: usize, is_due: impl FnOnce(f64) -> bool) -> Result<()> {
        let setting = &self.settings[operation];
        if setting.rate <= 0.0
            || setting.trigger.as_ref().is_some_and(|path| !path.exists())
            || (setting.rate < 1.0 && !is_due(setting.rate))
        {
            return Ok(());
        }
        let (name, operation) = (setting.name, OPERATIONS[operation]);
        Err(Error::new(setting.errno, format!("injecting {name} error into {operation}")))
    }

    /// Whether there is anything to be done about an operation.
    fn may_fail(&self, operation: usize) -> bool {
        self.settings[operation].rate > 0.0
    }
}

impl OpenLayer for Handle {
    fn pread(&self, next: &Next, buf: &mut [u8], offset: u64) -> Result<()> {
        self.perhaps_fail(PREAD)?;
        next.pread(buf, offset)
    }

    fn pwrite(&self, next: &Next, buf: &[u8], offset: u64, flags: Flags) -> Result<()> {
        self.perhaps_fail(PWRITE)?;
        next.pwrite(buf, offset, flags)
    }

    fn trim(&self, next: &Next, count: u64, offset: u64, flags: Flags) -> Result<()> {
        self.perhaps_fail(TRIM)?;
        next.trim(count, offset, flags)
    }

    fn zero(&self, next: &Next, count: u64, offset: u64, flags: Flags) -> Result<()> {
        self.perhaps_fail(ZERO)?;
        next.zero(count, offset, flags)
    }

    fn extents(
        &self,
        next: &Next,
        count: u64,
        offset: u64,
        flags: Flags,
        extents: &mut Extents,
    ) -> Result<()> {
        self.perhaps_fail(EXTENTS)?;
        next.extents(count, offset, flags, extents)
    }

    fn cache(&self, next: &Next, count: u64, offset: u64) -> Result<()> {
        self.perhaps_fail(CACHE)?;
        next.cache(count, offset)
    }

    fn data_path(&self, direction: Direction) -> DataPath {
        let operation = match direction {
            Direction::Read => PREAD,
            Direction::Write => PWRITE,
        };
        if self.may_fail(operation) { DataPath::Opaque } else { DataPath::Transparent }
    }

    /// The number is drawn when it is known that the read is over, else `pread` draws it.
    fn try_pread(&self, next: &Next, buf: &mut [u8], offset: u64) -> Option<Result<()>> {
        let result = match self.fail_if(PREAD, |rate| self.random.next_unit() < rate) {
            Ok(()) => next.try_pread(buf, offset)?,
            Err(error) => Err(error),
        };
        self.random.word();
        Some(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, Disk};
    use std::sync::Arc;

    #[test]
    fn the_chosen_operations_fail_with_the_chosen_errors() {
        let disk = Arc::new(Disk::new(4096));
        let none = Flags::empty();
        let backend = testing::backend(
            &disk,
            &["error"],
            &[
                ("error", "ENOSPC"),
                ("error-rate", "100%"),
                ("error-pread-rate", "0"),
                ("error-trim", "EPERM"),
            ],
        );
        backend.pread(&mut [0], 0).unwrap();
        let error = backend.pwrite(b"x", 0, none).unwrap_err();
        assert_eq!(error.errno(), Errno::ENOSPC);
        assert_eq!(error.message(), "injecting ENOSPC error into pwrite");
        assert_eq!(backend.trim(1, 0, none).unwrap_err().errno(), Errno::EPERM);
        assert_eq!(backend.zero(1, 0, none).unwrap_err().errno(), Errno::ENOSPC);
        assert_eq!(backend.cache(1, 0).unwrap_err().errno(), Errno::ENOSPC);
        let mut extents = Extents::new(0, 4096);
        assert!(backend.extents(1, 0, none, &mut extents).is_err());
        backend.flush().unwrap();
    }

    #[test]
    fn the_rate_is_about_kept() {
        let disk = Arc::new(Disk::new(4096));
        let backend = testing::backend(&disk, &["error"], &[("error-rate", "1:4")]);
        let failed = (0..4000).filter(|_| backend.pread(&mut [0], 0).is_err()).count();
        // Six standard deviations around 1000.
        assert!((836..1164).contains(&failed), "{failed}");
        let failed = (0..4000).filter(|_| backend.try_pread(&mut [0], 0).unwrap().is_err()).count();
        assert!((836..1164).contains(&failed), "{failed}");
    }

    #[test]
    fn nothing_fails_before_the_trigger_exists() {
        let dir = std::env::temp_dir().join(format!("error-filter-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let trigger = dir.join("inject");
        let disk = Arc::new(Disk::new(4096));
        let params = [("error-rate", "1"), ("error-file", trigger.to_str().unwrap())];
        let backend = testing::backend(&disk, &["error"], &params);
        backend.pread(&mut [0], 0).unwrap();
        std::fs::write(&trigger, b"").unwrap();
        assert!(backend.pread(&mut [0], 0).is_err());
        std::fs::remove_file(&trigger).unwrap();
        backend.pread(&mut [0], 0).unwrap();
        std::fs::remove_dir(&dir).unwrap();
    }

    #[test]
    fn bad_parameters_are_refused() {
        for (key, value, why) in [
            ("error", "eio", "error: unknown error name 'eio'"),
            ("error-zero", "EFOO", "error-zero: unknown error name 'EFOO'"),
            ("error-pread-rate", "2", "error-pread-rate: rate out of range: '2' parsed as 2"),
            ("error-open", "EIO", "unknown parameter 'error-open'"),
            ("error-flush-rate", "1", "unknown parameter 'error-flush-rate'"),
        ] {
            assert_eq!(testing::config_error("error", &[(key, value)]), why);
        }
        testing::config_error("error", &[("error-rate", "50%x")]);
        testing::config_error("error", &[("error-file", "")]);
    }
}
