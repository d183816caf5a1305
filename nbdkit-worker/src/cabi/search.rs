//! Which file a short name stands for: `NAME` is `nbdkit-NAME-plugin.so`, or
//! `nbdkit-NAME-filter.so`, in the first of our own and the distribution's directories that has
//! one; a plugin may be a script there, `nbdkit-NAME-plugin`. nbdkit(1), "Plugin name";
//! nbdkit-plugin(3), "Writing plugins in other programming languages".

#![forbid(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

/// What Debian calls this machine's libraries. Empty where there is no such name.
const TRIPLET: &str = if cfg!(target_arch = "x86_64") {
    "x86_64-linux-gnu"
} else if cfg!(target_arch = "aarch64") {
    "aarch64-linux-gnu"
} else if cfg!(target_arch = "riscv64") {
    "riscv64-linux-gnu"
} else if cfg!(target_arch = "s390x") {
    "s390x-linux-gnu"
} else if cfg!(target_arch = "powerpc64") {
    "powerpc64le-linux-gnu"
} else {
    ""
};

/// The file of the plugin `name`, which is no path; the one that would be ours if there is none.
pub(crate) fn plugin(name: &OsStr) -> PathBuf {
    first("plugin", ".so", name, option_env!("NBDKIT_PLUGINDIR"))
}

/// The file of the plugin `name`, if it is a script, likewise.
pub(crate) fn script(name: &OsStr) -> PathBuf {
    first("plugin", "", name, option_env!("NBDKIT_PLUGINDIR"))
}

/// The file of the filter `name`, likewise.
pub(crate) fn filter(name: &OsStr) -> PathBuf {
    first("filter", ".so", name, option_env!("NBDKIT_FILTERDIR"))
}

/// The file that stands for a built-in module, `what` being `plugin` or `filter`, if it is where
/// "make install" puts it.
pub(crate) fn stand_in(what: &str, name: &str) -> Option<PathBuf> {
    let directory = directories(what, own(what)).next()?;
    Some(directory.join(format!("nbdkit-{name}-{what}.so"))).filter(|path| path.exists())
}

/// The names of what is installed, `what` being `plugin` or `filter`, in alphabetical order.
pub(crate) fn installed(what: &str) -> Vec<String> {
    let suffix = format!("-{what}");
    let mut names: Vec<String> = directories(what, own(what))
        .filter_map(|directory| std::fs::read_dir(directory).ok())
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        // A plugin may be a script, which has no extension.
        .filter_map(|file| {
            let name = file.strip_prefix("nbdkit-")?;
            let name = name.strip_suffix(".so").unwrap_or(name);
            Some(name.strip_suffix(&suffix)?.to_owned())
        })
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// Our own directory, if the build says where it is.
fn own(what: &str) -> Option<&'static str> {
    match what {
        "plugin" => option_env!("NBDKIT_PLUGINDIR"),
        _ => option_env!("NBDKIT_FILTERDIR"),
    }
}

/// Our own directory, then the distribution's.
fn directories(what: &str, own: Option<&str>) -> impl Iterator<Item = PathBuf> {
    let own = own.map_or_else(|| ours(what), PathBuf::from);
    [own].into_iter().chain(distribution(what))
}

fn first(what: &str, extension: &str, name: &OsStr, own: Option<&str>) -> PathBuf {
    let mut file = OsString::from("nbdkit-");
    file.push(name);
    file.push(format!("-{what}{extension}"));
    let mut all = directories(what, own).map(|directory| directory.join(&file));
    let ours = all.next().unwrap_or_default();
    std::iter::once(ours.clone()).chain(all).find(|path| path.exists()).unwrap_or(ours)
}

/// Where "make install" creates the directory by default.
fn ours(what: &str) -> PathBuf {
    let libdir = option_env!("NBDKIT_LIBDIR").unwrap_or("/usr/local/lib");
    Path::new(libdir).join(format!("nbdkit/{what}s"))
}

/// Where distributions install nbdkit's: Debian, the others, and those without 32-bit libraries.
fn distribution(what: &str) -> impl Iterator<Item = PathBuf> {
    let debian = (!TRIPLET.is_empty()).then(|| format!("/usr/lib/{TRIPLET}/nbdkit/{what}s"));
    let others = [format!("/usr/lib64/nbdkit/{what}s"), format!("/usr/lib/nbdkit/{what}s")];
    debian.into_iter().chain(others).map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_nowhere_would_be_ours() {
        let path = first("plugin", ".so", OsStr::new("no-such"), Some("/own/dir"));
        assert_eq!(path, Path::new("/own/dir/nbdkit-no-such-plugin.so"));
    }

    #[test]
    fn our_own_directory_comes_before_the_distributions() {
        let own = std::env::temp_dir().join(format!("nbdkit-search-{}", std::process::id()));
        std::fs::create_dir_all(&own).unwrap();
        let file = own.join("nbdkit-python-plugin.so");
        std::fs::write(&file, b"").unwrap();
        assert_eq!(first("plugin", ".so", OsStr::new("python"), own.to_str()), file);
        std::fs::remove_dir_all(&own).unwrap();
    }
}
