//! The check that every thread is confined as this one is, as /proc shows it. proc_pid_status(5).

#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use nbdkit_common::errno_text;
use nix::unistd::gettid;

use super::{all, is_alone};
use crate::{Error, Result};

/// The status of every thread in /proc: opened before the sandbox closes, which may deny that, and
/// read afterwards.
pub struct Statuses(Vec<File>);

/// The fields that all threads must agree in.
const SAME: [&str; 11] = [
    "Uid",
    "Gid",
    "Groups",
    "CapInh",
    "CapPrm",
    "CapEff",
    "CapBnd",
    "CapAmb",
    "NoNewPrivs",
    "Seccomp",
    "Seccomp_filters",
];

impl Statuses {
    /// Opens the status of every thread, of this one first; none if it is the only one.
    ///
    /// # Errors
    /// There are other threads, and /proc is not there.
    pub fn open() -> Result<Statuses> {
        if is_alone() == Some(true) {
            return Ok(Statuses(Vec::new()));
        }
        let ours = gettid().as_raw();
        let failed = |error: io::Error| {
            Error::of("threads cannot be checked: /proc/self/task")(errno_text(&error))
        };
        let others = all().map_err(failed)?.into_iter().filter(|it| *it != ours);
        let open = |thread| match File::open(format!("/proc/self/task/{thread}/status")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            opened => opened.map_err(failed).map(Some),
        };
        let files = std::iter::once(ours).chain(others).map(open);
        files.filter_map(Result::transpose).collect::<Result<_>>().map(Statuses)
    }

    /// Checks that every thread is confined as this one is, and with `filters` that it has seccomp
    /// filters.
    ///
    /// # Errors
    /// A thread is not; names the fields that differ.
    pub fn check(&self, filters: bool) -> Result<()> {
        let mut ours = None;
        for file in &self.0 {
            let mut text = vec![0; 16 << 10];
            let length = match file.read_at(&mut text, 0) {
                // It has ended.
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => continue,
                length => length
                    .map_err(|error| Error::of("/proc/self/task: status")(errno_text(&error)))?,
            };
            text.truncate(length);
            let fields = fields(&String::from_utf8_lossy(&text));
            let ours = ours.get_or_insert_with(|| fields.clone());
            let filtered = |fields: &[Option<String>]| {
                let of =
                    |name| SAME.iter().position(|it| *it == name).and_then(|n| fields[n].clone());
                of("NoNewPrivs").as_deref() == Some("1") && of("Seccomp").as_deref() == Some("2")
            };
            if *ours != fields || (filters && !filtered(&fields)) {
                let different = SAME.iter().zip(ours.iter().zip(&fields));
                let names: Vec<&str> =
                    different.filter(|(_, (a, b))| a != b).map(|(name, _)| *name).collect();
                return Err(Error::new(format!(
                    "a thread of the plugin or of a filter is not confined as the server is: {}",
                    names.join(", ")
                )));
            }
        }
        Ok(())
    }
}

/// The values of [`SAME`] in a status.
fn fields(status: &str) -> Vec<Option<String>> {
    let value = |name: &str| {
        let lines = status.lines().filter_map(|line| line.split_once(':'));
        let mut values = lines.filter(|(its, _)| *its == name).map(|(_, value)| value.trim());
        values.next().map(str::to_owned)
    };
    SAME.into_iter().map(value).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::prctl;
    use std::sync::mpsc;

    /// The test's thread is restricted, and the one that it waits for is not.
    #[test]
    fn a_thread_that_is_less_confined_is_noticed() {
        std::thread::spawn(|| {
            let (end, ended) = mpsc::channel::<()>();
            let other = std::thread::spawn(move || ended.recv().is_ok());
            prctl::set_no_new_privs().unwrap();
            let error = Statuses::open().unwrap().check(false).unwrap_err().to_string();
            assert!(error.ends_with("NoNewPrivs"), "{error}");
            drop(end);
            other.join().unwrap();
        })
        .join()
        .unwrap();
    }

    #[test]
    fn only_the_named_fields_of_a_status_are_compared() {
        let status = "Name:\tx\nUid:\t1\t1\t1\t1\nNoNewPrivs:\t1\nSeccomp:\t2\n";
        let fields = fields(status);
        assert_eq!(fields[0].as_deref(), Some("1\t1\t1\t1"));
        assert_eq!(fields[1], None);
        assert_eq!(fields[8..10], [Some("1".to_owned()), Some("2".to_owned())]);
    }
}
