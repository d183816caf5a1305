//! The `#!` line of a plugin that is a script: `#!/usr/sbin/nbdkit python`. nbdkit(1), "Shebang
//! scripts".

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// What follows `#!` in the first line of a file; `None` if it does not begin so.
pub fn line(file: &[u8]) -> Option<&[u8]> {
    let line = file.strip_prefix(b"#!")?;
    line.split(|byte| *byte == b'\n').next()
}

/// The language: the word after `nbdkit`, which is the interpreter or the argument of env(1).
///
/// # Errors
/// What is wrong with the line.
pub fn language(line: &[u8]) -> Result<&[u8], &'static str> {
    let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()).peekable();
    let is = |word: Option<&&[u8]>, name: &str| {
        let name_of =
            |word: &[u8]| Path::new(OsStr::from_bytes(word)).file_name().map(OsStr::to_owned);
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
    fn the_line_ends_with_its_newline() {
        assert_eq!(line(b"#!/bin/sh\nx"), Some(&b"/bin/sh"[..]));
        assert_eq!(line(b"#!"), Some(&b""[..]));
        assert_eq!(line(b"x"), None);
    }
}
