//! What was fixed when the program was built: versions and directories.
//!
//! Each directory can be set by a variable of the same name as the `--dump-config` key, in capitals
//! and with `NBDKIT_` in front, when the program is compiled:
//! `NBDKIT_PLUGINDIR=/usr/lib/nbdkit/plugins cargo build`. So can `listener_user`. Used by the
//! listener.

#![forbid(unsafe_code)]

pub(crate) use nbdkit_common::NBDKIT_VERSION;

/// Its first two numbers, for `version_major` and `version_minor`.
pub(crate) const NBDKIT_VERSION_NUMBERS: (u32, u32) = (1, 46);

/// The version of this server.
pub(crate) const OWN_VERSION: &str = env!("CARGO_PKG_VERSION");

/// Distribution's addition to the version, if there is one.
pub(crate) const VERSION_EXTRA: Option<&str> = option_env!("NBDKIT_VERSION_EXTRA");

/// Whether the plugins and filters were built with zstd.
pub(crate) const ZSTD: &str = match option_env!("NBDKIT_ZSTD") {
    Some(setting) => setting,
    None => "yes",
};

/// The user that the listener of a server becomes that root has started, without `--listener-user`;
/// empty: none.
pub(crate) const LISTENER_USER: &str = match option_env!("NBDKIT_LISTENER_USER") {
    Some(user) => user,
    None => "nbdkit-listener",
};

/// The text of `--version`: nbdkit's line, which scripts match from its beginning, followed by the
/// version of this server.
pub(crate) fn version() -> String {
    format!("nbdkit {NBDKIT_VERSION} (nbdkitd {OWN_VERSION})\n")
}

/// Directories.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Directories {
    /// Programs for everybody.
    pub(crate) bindir: String,
    /// `nbdkit-NAME-filter.so`.
    pub(crate) filterdir: String,
    /// Libraries.
    pub(crate) libdir: String,
    /// Manual pages.
    pub(crate) mandir: String,
    /// `nbdkit-NAME-plugin.so`.
    pub(crate) plugindir: String,
    /// TLS certificates, when started as root without `--tls-certificates`.
    pub(crate) root_tls_certificates_dir: String,
    /// Programs for the administrator.
    pub(crate) sbindir: String,
    /// Configuration.
    pub(crate) sysconfdir: String,
}

/// The directories of this build. GNU coding standards, "Directory variables".
pub(crate) fn directories() -> Directories {
    let prefix = option_env!("NBDKIT_PREFIX").unwrap_or("/usr/local");
    let under = |setting: Option<&str>, parent: &str, name: &str| {
        setting.map_or_else(|| format!("{parent}/{name}"), str::to_owned)
    };
    let libdir = under(option_env!("NBDKIT_LIBDIR"), prefix, "lib");
    let sysconfdir = under(option_env!("NBDKIT_SYSCONFDIR"), prefix, "etc");
    Directories {
        bindir: under(option_env!("NBDKIT_BINDIR"), prefix, "bin"),
        filterdir: under(option_env!("NBDKIT_FILTERDIR"), &libdir, "nbdkit/filters"),
        mandir: under(option_env!("NBDKIT_MANDIR"), prefix, "share/man"),
        plugindir: under(option_env!("NBDKIT_PLUGINDIR"), &libdir, "nbdkit/plugins"),
        root_tls_certificates_dir: under(
            option_env!("NBDKIT_ROOT_TLS_CERTIFICATES_DIR"),
            &sysconfdir,
            "pki/nbdkit",
        ),
        sbindir: under(option_env!("NBDKIT_SBINDIR"), prefix, "sbin"),
        libdir,
        sysconfdir,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_line_begins_as_scripts_expect() {
        let version = version();
        let words: Vec<&str> = version.split_whitespace().collect();
        assert_eq!(words.first(), Some(&"nbdkit"));
        assert_eq!(words.get(1), Some(&NBDKIT_VERSION));
    }

    #[test]
    fn the_version_numbers_agree() {
        let (major, minor) = NBDKIT_VERSION_NUMBERS;
        assert!(NBDKIT_VERSION.starts_with(&format!("{major}.{minor}.")));
    }
}
