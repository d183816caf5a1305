//! Plugins that are scripts: `nbdkit-NAME-plugin` in the plugin directories, without `.so`, or a
//! path. Executed, such a file would start nbdkit with the language of its `#!` line and its own
//! path as first parameters; here that language's plugin is loaded at once and given the path.
//! nbdkit-plugin(3), "Writing plugins in other programming languages"; nbdkit(1), "Shebang
//! scripts".

#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use nbdkit_api::{Error, Result, ResultExt, shebang};
use nix::unistd::{AccessFlags, access};

/// Longest `#!` line that is looked at, bytes; the kernel's limit is 256.
const MAX_LINE: u64 = 4096;

/// A script, and which plugin it is for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ScriptPlugin {
    /// Absolute.
    pub(crate) path: PathBuf,
    /// Short name or path of the language's plugin.
    pub(crate) language: OsString,
}

impl ScriptPlugin {
    /// Reads the `#!` line of the file at `path`. `None` if there is no such file or it does not
    /// begin with `#!`: then it may be a library.
    ///
    /// # Errors
    /// It is a script that may not be executed, or one of no nbdkit plugin.
    pub(crate) fn open(path: &Path) -> Result<Option<ScriptPlugin>> {
        let mut line = Vec::new();
        let Ok(file) = File::open(path) else { return Ok(None) };
        if file.take(MAX_LINE).read_to_end(&mut line).is_err() {
            return Ok(None);
        }
        let Some(line) = shebang::line(&line) else { return Ok(None) };
        let wrong = |why: &str| {
            Error::msg(format!(
                "{}: {why}: the first line of a plugin that is a script is like \"#!/usr/sbin/nbdkit python\", but this one \
                 is \"#!{}\"",
                path.display(),
                line.escape_ascii()
            ))
        };
        let language = shebang::language(line).map_err(wrong)?;
        access(path, AccessFlags::X_OK)
            .or_error(|| format!("plugin script: {}", path.display()))?;
        let path = std::path::absolute(path).or_error(|| "plugin script")?;
        Ok(Some(ScriptPlugin { path, language: OsString::from_vec(language.to_vec()) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_script_must_be_executable_and_anything_else_is_no_script() {
        let dir = std::env::temp_dir().join(format!("script-plugin-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("nbdkit-x-plugin");
        assert_eq!(ScriptPlugin::open(&path).unwrap(), None);
        std::fs::write(&path, b"\x7fELF").unwrap();
        assert_eq!(ScriptPlugin::open(&path).unwrap(), None);
        std::fs::write(&path, "#!/usr/sbin/nbdkit sh\n").unwrap();
        assert!(ScriptPlugin::open(&path).unwrap_err().message().contains("Permission denied"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let language = "sh".into();
        let script = ScriptPlugin { path: path.clone(), language };
        assert_eq!(ScriptPlugin::open(&path).unwrap(), Some(script));
        std::fs::write(&path, "#!/bin/sh\u{1b}[2J\n").unwrap();
        let why = ScriptPlugin::open(&path).unwrap_err();
        assert!(why.message().contains("does not name nbdkit"), "{why}");
        assert!(!why.message().contains('\u{1b}'), "{why}");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
