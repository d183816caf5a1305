//! `--selinux-label`: the label that the kernel gives to sockets that this thread makes.
//! setsockcreatecon(3).

#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;

use thiserror::Error;

use crate::system_error::SystemError;

/// The attribute of this thread alone. proc_pid_attr(5).
const ATTRIBUTE: &str = "/proc/thread-self/attr/sockcreate";

/// What libselinux calls it, after the option.
const CALL: &str = "selinux-label: setsockcreatecon";

/// Why the sockets do not get the label.
#[derive(Debug, Error)]
pub(crate) enum LabelError {
    /// SELinux is off, or does not know the label or permit it.
    #[error("{0}. The option needs a system with SELinux enabled.")]
    Set(SystemError),
    /// The label stays in force for what this thread makes.
    #[error(transparent)]
    Reset(SystemError),
}

/// The label is in force until [`reset`](Self::reset), at the latest until this is dropped.
#[must_use]
pub(super) struct SocketLabel(());

impl SocketLabel {
    /// Makes the sockets that follow carry `label`.
    ///
    /// # Errors
    /// SELinux is off, or does not know the label or permit it.
    pub(super) fn set(label: &OsStr) -> Result<SocketLabel, LabelError> {
        let mut value = label.as_bytes().to_vec();
        value.push(0);
        write(&value)
            .map_err(SystemError::on(CALL, label.to_string_lossy()))
            .map_err(LabelError::Set)?;
        Ok(SocketLabel(()))
    }

    /// Makes sockets as usual again.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn reset(self) -> Result<(), LabelError> {
        write(&[0]).map_err(SystemError::in_call(CALL)).map_err(LabelError::Reset)
    }
}

/// Opens the attribute without O_CREAT: with it, SELinux checks whether this process may create
/// files in its directory of /proc, and logs a denial.
fn write(value: &[u8]) -> std::io::Result<()> {
    OpenOptions::new().write(true).open(ATTRIBUTE)?.write_all(value)
}

impl Drop for SocketLabel {
    fn drop(&mut self) {
        // After another error, which is the one that is reported.
        let _ = write(&[0]);
    }
}
