//! `--dump-config`: the compile-time configuration, one `key=value` on each line, keys in
//! alphabetical order.
//!
//! Scripts and configure tests of other programs read it. Used by the listener. nbdkit-probing(1).

#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::path::Path;

use super::build_info::{self, Directories};

/// The whole text. `binary` is the path of the running program, which need not be UTF-8.
pub(crate) fn dump_config(binary: &Path, directories: &Directories) -> OsString {
    let (major, minor) = build_info::NBDKIT_VERSION_NUMBERS;
    let (major, minor) = (major.to_string(), minor.to_string());
    let lines = [
        ("bindir", directories.bindir.as_str()),
        ("exit_with_parent", "yes"),
        ("filterdir", &directories.filterdir),
        ("host_cpu", std::env::consts::ARCH),
        ("host_os", "linux-gnu"),
        ("libdir", &directories.libdir),
        ("listener_user", build_info::LISTENER_USER),
        ("mandir", &directories.mandir),
        ("max_api_version", "2"),
        ("name", "nbdkit"),
        ("plugindir", &directories.plugindir),
        ("root_tls_certificates_dir", &directories.root_tls_certificates_dir),
        ("run_default_socket", "Unix"),
        ("sbindir", &directories.sbindir),
        ("selinux", "yes"),
        ("soext", "so"),
        ("sysconfdir", &directories.sysconfdir),
        ("timeout_option", "yes"),
        ("tls", "yes"),
        ("version", build_info::NBDKIT_VERSION),
        ("version_extra", build_info::VERSION_EXTRA.unwrap_or_default()),
        ("version_major", &major),
        ("version_minor", &minor),
        ("vsock_option", "yes"),
        ("zstd", build_info::ZSTD),
    ];
    let mut text = OsString::from("binary=");
    text.push(binary);
    text.push("\n");
    for (key, value) in lines {
        if key == "version_extra" && value.is_empty() {
            continue;
        }
        text.push(format!("{key}={value}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_in_alphabetical_order_and_once() {
        let text = dump_config(Path::new("/bin/nbdkit"), &build_info::directories())
            .into_string()
            .unwrap();
        let keys: Vec<&str> = text.lines().map(|line| line.split_once('=').unwrap().0).collect();
        let mut sorted = keys.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(keys, sorted);
    }

    #[test]
    fn the_values_that_others_probe_are_there() {
        let text = dump_config(Path::new("/opt/x/nbdkit"), &build_info::directories())
            .into_string()
            .unwrap();
        for line in [
            "binary=/opt/x/nbdkit",
            "name=nbdkit",
            "version=1.46.0",
            "version_major=1",
            "version_minor=46",
            "run_default_socket=Unix",
            "max_api_version=2",
            "exit_with_parent=yes",
            "tls=yes",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}");
        }
    }
}
