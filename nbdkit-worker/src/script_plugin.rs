//! Plugins that are scripts: `nbdkit-NAME-plugin` in the plugin directories, without `.so`, or a path. Executed, such a file
//! would start nbdkit with the language of its `#!` line and its own path as first parameters; here that language's plugin is
//! loaded at once and given the path. nbdkit-plugin(3), "Writing plugins in other programming languages"; nbdkit(1),
//! "Shebang scripts".

#![forbid(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nbdkit_api::{Error, Result, ResultExt};
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
    /// Reads the `#!` line of the file at `path`. `None` if there is no such file or it does not begin with `#!`: then it
    /// may be a library.
    ///
    /// # Errors
    /// It is a script that may not be executed, or one of no nbdkit plugin.
    pub(crate) fn open(path: &Path) -> Result<Option<ScriptPlugin>> {
        let mut line = Vec::new();
        let Ok(file) = File::open(path) else { return Ok(None) };
        if file.take(MAX_LINE).read_to_end(&mut line).is_err() {
            return Ok(None);
        }
        let Some(line) = line.strip_prefix(b"#!") else { return Ok(None) };
        let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let wrong = |why: &str| {
            Error::msg(format!(
                "{}: {why}: the first line of a plugin that is a script is like \"#!/usr/sbin/nbdkit python\", but this one \
                 is \"#!{}\"",
                path.display(),
                line.escape_ascii()
            ))
        };
        let language = language(line).map_err(wrong)?;
        access(path, AccessFlags::X_OK).or_error(|| format!("plugin script: {}", path.display()))?;
        let path = std::path::absolute(path).or_error(|| "plugin script")?;
        Ok(Some(ScriptPlugin { path, language: OsString::from_vec(language.to_vec()) }))
    }
}

/// The word after `nbdkit`, which is the interpreter or what env(1) is told to run.
fn language(line: &[u8]) -> std::result::Result<&[u8], &'static str> {
    let mut words =
        line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()).peekable();
    let is = |word: Option<&&[u8]>, name: &str| {
        let name_of = |word: &[u8]| Path::new(OsStr::from_bytes(word)).file_name().map(OsStr::to_owned);
        word.and_then(|word| name_of(word)).is_some_and(|file| file == name)
    };
    if is(words.peek(), "env") {
        words.next();
        words.next_if(|word| matches!(*word, b"-S" | b"--split-string"));
    }
    if !is(words.next().as_ref(), "nbdkit") {
        return Err("it does not name nbdkit as its interpreter");
    }
    match (words.next(), words.next()) {
        (None, _) => Err("it does not name the language of its plugin"),
        (Some(word), _) if word.starts_with(b"-") => Err("options are not supported there"),
        (Some(_), Some(_)) => Err("only the language may follow"),
        (Some(word), None) => Ok(word),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_language_is_the_word_after_nbdkit() {
        for (line, word) in [
            ("/usr/sbin/nbdkit python", "python"),
            ("/usr/bin/nbdkit  perl ", "perl"),
            (" /opt/nbdkit\tsh", "sh"),
            ("/usr/bin/env nbdkit sh", "sh"),
            ("/usr/bin/env -S nbdkit tcl", "tcl"),
            ("/usr/sbin/nbdkit /x/nbdkit-foo-plugin.so", "/x/nbdkit-foo-plugin.so"),
        ] {
            assert_eq!(language(line.as_bytes()), Ok(word.as_bytes()), "{line}");
        }
        for line in [
            "",
            "/bin/sh",
            "/usr/bin/env python3",
            "/usr/sbin/nbdkit",
            "/usr/sbin/nbdkit -r python",
            "/usr/sbin/nbdkit python extra",
            "/usr/bin/env",
            "/usr/bin/my-nbdkit sh",
        ] {
            assert!(language(line.as_bytes()).is_err(), "{line}");
        }
    }

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
