//! Parameters for the plugin and the filters: `KEY=VALUE`, bare values, and `@PATH` parameter
//! files.
//!
//! Used by the listener. Which key a bare value belongs to depends on the plugin's
//! `magic_config_key`, which only the process that loads the plugin knows, so bare values are
//! handed on as such, and a word with `@` that may be a value or name a file as both. Parameter
//! files are named by the caller and trusted as far as the command line is, but they are bounded.
//! nbdkit(1), "Plugin configuration".

#![forbid(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nbdkit_common::errno_text;
use nbdkit_ipc::messages::{Applies, Parameter};

use super::error::Fault;

/// The longest parameter file, in bytes.
pub(crate) const MAX_FILE: u64 = 1 << 20;

/// How deep parameter files may include one another; enough for people, and an end to a file that
/// includes itself.
const MAX_DEPTH: usize = 16;

/// How many parameter files may be read in all: files that include each other twice would otherwise
/// read 2^16.
const MAX_FILES: usize = 256;

/// Reads a whole file of at most [`MAX_FILE`] bytes.
pub(crate) type ReadFile<'a> = &'a dyn Fn(&Path) -> io::Result<Vec<u8>>;

/// Splits `KEY=VALUE`; anything that does not begin with a legal key and `=` is a bare value.
pub(crate) fn parameter(argument: &OsStr, applies: Applies) -> Parameter {
    let bytes = argument.as_bytes();
    let split = bytes.iter().position(|byte| *byte == b'=').map(|at| bytes.split_at(at));
    if let Some((key, [_, value @ ..])) = split
        && is_key(key)
        && let Ok(key) = str::from_utf8(key)
    {
        let value = OsStr::from_bytes(value).to_owned();
        return Parameter { key: Some(key.to_owned()), value, applies };
    }
    Parameter { key: None, value: argument.to_owned(), applies }
}

fn is_key(key: &[u8]) -> bool {
    key.first().is_some_and(u8::is_ascii_alphabetic)
        && key.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

/// Turns the operands after the plugin's name into parameters, with `@PATH` replaced by the
/// parameters in that file.
///
/// In a file each line is one parameter, taken as it is: no quoting, blanks count. Blank lines and
/// lines that begin with `#` are skipped. `@PATH` includes another file, relative to the directory
/// of the file that names it; on the command line it is relative to `directory`.
///
/// What follows the `@` may be meant for the plugin, as in `nbdkit data '@0x1fe 0x55 0xaa'`: where
/// it begins with a digit, `+`, `-` or `^`, or names no file, and the plugin has a magic key, the
/// whole word is a bare value.
///
/// # Errors
/// A file that cannot be read, is too long, or holds a NUL; files nested too deeply, or too many.
pub(crate) fn expand(
    operands: &[OsString],
    directory: &Path,
    read_file: ReadFile<'_>,
) -> Result<Vec<Parameter>, Fault> {
    let mut expansion = Expansion { read_file, files: 0, parameters: Vec::new() };
    for operand in operands {
        expansion.add(operand, directory, 0, Applies::Always)?;
    }
    Ok(expansion.parameters)
}

struct Expansion<'a> {
    read_file: ReadFile<'a>,
    files: usize,
    parameters: Vec<Parameter>,
}

impl Expansion<'_> {
    /// `applies` is `WithoutMagicKey` within a file that is one only for such plugins, else
    /// `Always`.
    fn add(
        &mut self,
        argument: &OsStr,
        directory: &Path,
        depth: usize,
        applies: Applies,
    ) -> Result<(), Fault> {
        let [b'@', name @ ..] = argument.as_bytes() else {
            self.parameters.push(parameter(argument, applies));
            return Ok(());
        };
        let path = directory.join(OsStr::from_bytes(name));
        self.files += 1;
        if depth >= MAX_DEPTH || self.files > MAX_FILES {
            return Err(refused(&path, "too many parameter files include one another"));
        }
        let resembles_value = matches!(name.first(), Some(b'+' | b'-' | b'^' | b'0'..=b'9'));
        let contents = (self.read_file)(&path);
        if let Err(error) = &contents
            && !resembles_value
            && !is_missing(error)
        {
            return Err(refused(&path, &errno_text(error)));
        }
        if applies == Applies::Always && (resembles_value || contents.is_err()) {
            self.parameters.push(parameter(argument, Applies::WithMagicKey));
        }
        let within = if resembles_value { Applies::WithoutMagicKey } else { applies };
        match contents {
            Ok(contents) => self.include(&path, &contents, depth + 1, within),
            Err(error) => {
                let text = refusal(&path, &errno_text(&error)).into();
                let applies = Applies::RefusedWithoutMagicKey;
                self.parameters.push(Parameter { key: None, value: text, applies });
                Ok(())
            }
        }
    }

    fn include(
        &mut self,
        path: &Path,
        contents: &[u8],
        depth: usize,
        applies: Applies,
    ) -> Result<(), Fault> {
        if contents.contains(&0) {
            return Err(refused(path, "it contains a NUL byte"));
        }
        let directory = path.parent().unwrap_or(Path::new("/"));
        for line in contents.split(|byte| *byte == b'\n') {
            if line.first() == Some(&b'#') || line.trim_ascii().is_empty() {
                continue;
            }
            self.add(OsStr::from_bytes(line), directory, depth, applies)?;
        }
        Ok(())
    }
}

/// Whether there is no such file: then the argument may be a bare value.
fn is_missing(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || matches!(error.raw_os_error(), Some(libc::ENOTDIR | libc::ENAMETOOLONG))
}

fn refusal(path: &Path, cause: &str) -> String {
    format!("cannot read parameter file {}: {cause}", path.display())
}

fn refused(path: &Path, cause: &str) -> Fault {
    Fault::error(refusal(path, cause))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;
    use std::os::unix::ffi::OsStringExt;
    use std::path::PathBuf;

    fn keyed(key: &str, value: &str) -> Parameter {
        Parameter { key: Some(key.into()), value: value.into(), applies: Applies::Always }
    }

    fn bare(value: &str) -> Parameter {
        Parameter { key: None, value: value.into(), applies: Applies::Always }
    }

    fn expand_in(files: &[(&str, &str)], operands: &[&str]) -> Result<Vec<Parameter>, String> {
        let files: HashMap<PathBuf, Vec<u8>> = files
            .iter()
            .map(|(path, text)| (PathBuf::from(path), text.as_bytes().to_vec()))
            .collect();
        let read = |path: &Path| {
            files.get(path).cloned().ok_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))
        };
        let operands: Vec<OsString> = operands.iter().map(OsString::from).collect();
        expand(&operands, Path::new("/here"), &read)
            .map_err(|fault| fault.named("nbdkit", "nbdkit").to_string())
    }

    #[test]
    fn a_legal_key_makes_a_pair() {
        for (argument, key, value) in [
            ("size=1M", "size", "1M"),
            ("a_b-c.d9=1", "a_b-c.d9", "1"),
            ("k2=v=w", "k2", "v=w"),
            ("X=", "X", ""),
        ] {
            assert_eq!(parameter(argument.as_ref(), Applies::Always), keyed(key, value));
        }
    }

    #[test]
    fn anything_else_is_a_bare_value() {
        for argument in [
            "1M", "", "=1M", "1size=5", "si,ze=5", "_size=5", "si ze=5", "a+b=1", "-x=1", "é=1",
            "./a=b",
        ] {
            assert_eq!(parameter(argument.as_ref(), Applies::Always), bare(argument));
        }
    }

    #[test]
    fn values_need_not_be_utf8() {
        let parameter = parameter(OsStr::from_bytes(b"file=/tmp/\xff"), Applies::Always);
        assert_eq!(parameter.key.as_deref(), Some("file"));
        assert_eq!(parameter.value, OsString::from_vec(b"/tmp/\xff".to_vec()));
    }

    #[test]
    fn files_are_expanded_in_place() {
        let files = [
            ("/here/p", "# comment\n\n   \nsize=1G\n two words\n@sub/q\nlast=1"),
            ("/here/sub/q", "@r\n"),
            ("/here/sub/r", "r=1\n#@nowhere\n"),
        ];
        assert_eq!(
            expand_in(&files, &["a=b", "@p", "z=1"]).unwrap(),
            [
                keyed("a", "b"),
                keyed("size", "1G"),
                bare(" two words"),
                keyed("r", "1"),
                keyed("last", "1"),
                keyed("z", "1")
            ]
        );
        assert_eq!(expand_in(&files, &["@/here/sub/q"]).unwrap(), [keyed("r", "1")]);
    }

    #[test]
    fn a_file_that_includes_itself_is_refused() {
        let error = expand_in(&[("/here/p", "@p\n")], &["@p"]).unwrap_err();
        assert_eq!(
            error,
            "nbdkit: error: cannot read parameter file /here/p: too many parameter files include one another"
        );
        assert!(expand_in(&[("/here/p", "@q\n@q\n"), ("/here/q", "@p\n@p\n")], &["@p"]).is_err());
    }

    #[test]
    fn files_that_double_at_each_level_are_refused() {
        let names: Vec<(String, String)> =
            (0..15).map(|i| (format!("/here/f{i}"), format!("@f{0}\n@f{0}\n", i + 1))).collect();
        let mut files: Vec<(&str, &str)> =
            names.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
        files.push(("/here/f15", "x=1\n"));
        assert!(expand_in(&files, &["@f0"]).unwrap_err().contains("too many"));
        assert_eq!(expand_in(&files, &["@f10"]).unwrap().len(), 32);
    }

    #[test]
    fn a_word_that_may_be_a_value_is_one_for_plugins_with_a_magic_key() {
        let value = |text: &str| Parameter { applies: Applies::WithMagicKey, ..bare(text) };
        let without =
            |parameter: Parameter| Parameter { applies: Applies::WithoutMagicKey, ..parameter };
        let missing = |name: &str| Parameter {
            applies: Applies::RefusedWithoutMagicKey,
            ..bare(&format!("cannot read parameter file /here/{name}: No such file or directory"))
        };
        for name in ["0x1fe 0x55", "+10", "-1", "^512", "none"] {
            let word = format!("@{name}");
            assert_eq!(expand_in(&[], &[&word]).unwrap(), [value(&word), missing(name)]);
        }
        let files = [("/here/1", "a=b\n@p\n@none\n"), ("/here/p", "c\n")];
        assert_eq!(
            expand_in(&files, &["@1"]).unwrap(),
            [value("@1"), without(keyed("a", "b")), without(bare("c")), missing("none")]
        );
    }

    #[test]
    fn a_file_that_is_binary_is_refused() {
        assert!(expand_in(&[("/here/p", "a=\0\n")], &["@p"]).unwrap_err().contains("NUL"));
    }
}
