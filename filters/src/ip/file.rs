//! A file of rules, which is read whenever a client is judged: whoever edits it need not restart
//! the server.

use std::os::unix::fs::FileExt;
use std::path::Path;

use nbdkit_api::paths::{self, Declared};
use nbdkit_api::{Error, Result, ResultExt};

use super::rule::Rule;

/// Most bytes of a file: some ten thousands of rules.
const MOST_BYTES: usize = 1 << 20;

/// A file of rules.
#[derive(Debug)]
pub(super) struct RuleFile {
    pub(super) declared: Declared,
}

impl RuleFile {
    /// `path` is absolute.
    pub(super) fn new(path: &Path) -> RuleFile {
        RuleFile { declared: Declared::file(path).read_only(true) }
    }

    /// The rules that are in the file now, for the parameter `key`.
    ///
    /// # Errors
    /// It cannot be read, is too long, or has a line that is no rule, which the message names.
    pub(super) fn read(&self, key: &str) -> Result<Vec<Rule>> {
        let opened = paths::open(&self.declared, None, true)?;
        let mut bytes = Vec::new();
        let mut chunk = [0; 4096];
        loop {
            let count = opened
                .file
                .read_at(&mut chunk, bytes.len() as u64)
                .or_error(|| format!("{key}: read: {}", opened.name))?;
            if count == 0 {
                break;
            }
            bytes.extend_from_slice(&chunk[..count]);
            if bytes.len() > MOST_BYTES {
                let name = &opened.name;
                return Err(Error::msg(format!("{key}: {name}: longer than {MOST_BYTES} bytes")));
            }
        }
        parse(key, &opened.name, &bytes)
    }
}

/// A rule on each line, or several as in the parameter; `#` begins a comment.
fn parse(key: &str, name: &str, bytes: &[u8]) -> Result<Vec<Rule>> {
    let mut rules = Vec::new();
    for (line, number) in bytes.split(|byte| *byte == b'\n').zip(1..) {
        let place = || format!("{key}: {name}:{number}");
        let text = str::from_utf8(line).map_err(|_| Error::msg(place() + ": not UTF-8"))?;
        let text = text.split('#').next().unwrap_or_default().trim();
        let parsed = Rule::parse_list(key, text);
        rules.extend(parsed.map_err(|error| error.context(place()))?);
    }
    Ok(rules)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_rules_and_comments() {
        let text = b"# who may\n\n10.0.0.0/8,,::2\n  ::1,anyunix # these\ndn:CN=a,O=b\n";
        let rules = parse("allow-file", "f", text).unwrap_err();
        assert_eq!(rules.message(), "allow-file: f:3: allow-file: empty entry in rule list");
        let text = b"# who may\n\n10.0.0.0/8\n  ::1,anyunix # these\ndn:CN=a,O=b\n";
        let rules = parse("allow-file", "f", text).unwrap();
        assert_eq!(rules.len(), 4);
        assert_eq!(rules[3], Rule::Dn("CN=a,O=b".into()));
        for (bad, line) in [(&b"x"[..], 1), (b"all\n1.2.3.4/33", 2), (b"\n\n\xff", 3)] {
            let message = parse("deny-file", "f", bad).unwrap_err().message().to_owned();
            assert!(message.starts_with(&format!("deny-file: f:{line}")), "{message}");
        }
    }
}
