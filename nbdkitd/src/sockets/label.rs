//! `--selinux-label`: the label that the kernel gives to sockets that this thread makes.
//! setsockcreatecon(3).

#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// The attribute of this thread alone. proc_pid_attr(5).
const ATTRIBUTE: &str = "/proc/thread-self/attr/sockcreate";

/// The label is in force until [`reset`](Self::reset), at the latest until this is dropped.
#[must_use]
pub(super) struct SocketLabel(());

impl SocketLabel {
    /// Makes the sockets that follow carry `label`.
    ///
    /// # Errors
    /// SELinux is off, or does not know the label or permit it.
    pub(super) fn set(label: &OsStr) -> Result<SocketLabel, String> {
        let mut value = label.as_bytes().to_vec();
        value.push(0);
        std::fs::write(ATTRIBUTE, value).map_err(|error| {
            format!(
                "selinux-label: setsockcreatecon: {}: {}. The option needs a system with SELinux enabled.",
                label.to_string_lossy(),
                crate::errno_text(&error)
            )
        })?;
        Ok(SocketLabel(()))
    }

    /// Makes sockets as usual again.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn reset(self) -> Result<(), String> {
        std::fs::write(ATTRIBUTE, [0]).map_err(|error| {
            format!("selinux-label: setsockcreatecon: {}", crate::errno_text(&error))
        })
    }
}

impl Drop for SocketLabel {
    fn drop(&mut self) {
        // After another error, which is the one that is reported.
        let _ = std::fs::write(ATTRIBUTE, [0]);
    }
}
