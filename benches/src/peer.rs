//! Further servers, each a command line of the user's: `--peer NAME=COMMAND`.
//!
//! COMMAND is split into words as a shell does, quotes and backslashes included, and nothing more:
//! no shell runs, so that the process that is measured is the server. Placeholders are replaced
//! within words, so that a path with blanks stays one word.
#![forbid(unsafe_code)]

use std::ffi::OsString;

/// What a placeholder stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Placeholder {
    /// The path of the Unix socket to listen on.
    Socket,
    /// The TCP port to listen on, on 127.0.0.1.
    Port,
    /// The path of the file to serve.
    File,
    /// Bytes of the export.
    Size,
    /// The directory of ca-cert.pem, server-cert.pem and server-key.pem.
    Certificates,
    /// The file of the pre-shared keys.
    Psk,
    /// All arguments that nbdkit gets; a word of its own.
    Arguments,
}

const PLACEHOLDERS: [(&str, Placeholder); 7] = [
    ("{socket}", Placeholder::Socket),
    ("{port}", Placeholder::Port),
    ("{file}", Placeholder::File),
    ("{size}", Placeholder::Size),
    ("{certificates}", Placeholder::Certificates),
    ("{psk}", Placeholder::Psk),
    ("{arguments}", Placeholder::Arguments),
];

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Part {
    Text(String),
    Value(Placeholder),
}

type Word = Vec<Part>;

/// One command line of a peer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Template(Vec<Word>);

/// A server of the user's.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Peer {
    pub(crate) name: String,
    templates: Vec<Template>,
}

/// What a row has for the placeholders.
#[derive(Clone, Debug)]
pub(crate) struct Values {
    /// One value for each placeholder that the command has to have, and for no other of these.
    pub(crate) needed: Vec<(Placeholder, OsString)>,
    /// What it may have.
    pub(crate) optional: Vec<(Placeholder, OsString)>,
    /// For [`Placeholder::Arguments`], which stands for all the others.
    pub(crate) arguments: Vec<OsString>,
}

impl Peer {
    /// Adds what one `--peer` says to the peers.
    pub(crate) fn add(peers: &mut Vec<Peer>, option: &str, taken: &[&str]) -> Result<(), String> {
        let (name, command) = option
            .split_once('=')
            .ok_or_else(|| format!("--peer {option}: NAME=COMMAND is needed"))?;
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "._+-".contains(c);
        if name.is_empty() || !name.chars().all(is_plain) {
            return Err(format!(
                "--peer: {name:?} is no name: letters, digits, \".\", \"_\", \"+\", \"-\""
            ));
        }
        if taken.contains(&name) {
            return Err(format!("--peer {name}: there is a server of that name"));
        }
        let template =
            Template::parse(command).map_err(|error| format!("--peer {name}: {error}"))?;
        match peers.iter_mut().find(|peer| peer.name == name) {
            Some(peer) => peer.templates.push(template),
            None => peers.push(Peer { name: name.to_owned(), templates: vec![template] }),
        }
        Ok(())
    }

    /// The words of the first command that suits the row; `None` if none does.
    pub(crate) fn command(&self, values: &Values) -> Option<Vec<OsString>> {
        self.templates.iter().find(|template| template.suits(values)).map(|one| one.fill(values))
    }

    /// The programs, which are the first words.
    pub(crate) fn programs(&self) -> impl Iterator<Item = OsString> {
        let none = Values { needed: Vec::new(), optional: Vec::new(), arguments: Vec::new() };
        self.templates.iter().filter_map(move |one| one.fill(&none).into_iter().next())
    }
}

impl Template {
    fn parse(command: &str) -> Result<Template, String> {
        let words =
            split(command)?.iter().map(|word| parts(word)).collect::<Result<Vec<_>, _>>()?;
        let template = Template(words);
        let Some(program) = template.0.first() else { return Err("no command".to_owned()) };
        if program.iter().any(|part| matches!(part, Part::Value(_))) {
            return Err("the program's name has a placeholder".to_owned());
        }
        let is_alone = |word: &Word| word.len() == 1 || !holds(word, Placeholder::Arguments);
        if !template.0.iter().all(is_alone) {
            return Err("{arguments} must be a word of its own".to_owned());
        }
        let listens = [Placeholder::Socket, Placeholder::Port, Placeholder::Arguments];
        if !listens.iter().any(|placeholder| template.has(*placeholder)) {
            return Err("the command has none of {socket}, {port} and {arguments}".to_owned());
        }
        Ok(template)
    }

    fn has(&self, placeholder: Placeholder) -> bool {
        self.0.iter().any(|word| holds(word, placeholder))
    }

    fn suits(&self, values: &Values) -> bool {
        if self.has(Placeholder::Arguments) {
            return true;
        }
        let known = |list: &[(Placeholder, OsString)], one| list.iter().any(|(p, _)| *p == one);
        PLACEHOLDERS.iter().all(|(_, placeholder)| {
            known(&values.optional, *placeholder)
                || self.has(*placeholder) == known(&values.needed, *placeholder)
        })
    }

    fn fill(&self, values: &Values) -> Vec<OsString> {
        let mut words = Vec::new();
        for word in &self.0 {
            if holds(word, Placeholder::Arguments) {
                words.extend(values.arguments.iter().cloned());
                continue;
            }
            let mut filled = OsString::new();
            for part in word {
                match part {
                    Part::Text(text) => filled.push(text),
                    Part::Value(placeholder) => {
                        let mut all = values.needed.iter().chain(&values.optional);
                        if let Some((_, value)) = all.find(|(one, _)| one == placeholder) {
                            filled.push(value);
                        }
                    }
                }
            }
            words.push(filled);
        }
        words
    }
}

fn holds(word: &Word, placeholder: Placeholder) -> bool {
    word.contains(&Part::Value(placeholder))
}

/// Splits at blanks, as POSIX's "Shell Command Language", "Quoting", says.
fn split(command: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut characters = command.chars();
    while let Some(character) = characters.next() {
        if character.is_ascii_whitespace() {
            words.extend(word.take());
            continue;
        }
        let word = word.get_or_insert_default();
        match character {
            '\'' | '"' => loop {
                match characters.next() {
                    None => return Err(format!("no closing {character}")),
                    Some(end) if end == character => break,
                    Some('\\') if character == '"' => {
                        let escaped = characters.next().ok_or("no closing \"")?;
                        if !"\"\\$`".contains(escaped) {
                            word.push('\\');
                        }
                        word.push(escaped);
                    }
                    Some(other) => word.push(other),
                }
            },
            '\\' => word.push(characters.next().ok_or("a backslash at the end")?),
            other => word.push(other),
        }
    }
    words.extend(word);
    Ok(words)
}

/// Takes a word apart. What looks like a placeholder and is none is an error, and no text.
fn parts(word: &str) -> Result<Word, String> {
    let mut parts = Vec::new();
    let mut text = String::new();
    let mut rest = word;
    while let Some(character) = rest.chars().next() {
        if let Some((name, placeholder)) =
            PLACEHOLDERS.iter().find(|(name, _)| rest.starts_with(name))
        {
            if !text.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut text)));
            }
            parts.push(Part::Value(*placeholder));
            rest = &rest[name.len()..];
            continue;
        }
        if let Some((name, _)) = rest.strip_prefix('{').and_then(|rest| rest.split_once('}'))
            && !name.is_empty()
            && name.chars().all(|c| c.is_ascii_lowercase())
        {
            let known = PLACEHOLDERS.map(|(name, _)| name).join(", ");
            return Err(format!("{{{name}}} is none of {known}"));
        }
        text.push(character);
        rest = &rest[character.len_utf8()..];
    }
    if !text.is_empty() || parts.is_empty() {
        parts.push(Part::Text(text));
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peers(options: &[&str]) -> Result<Vec<Peer>, String> {
        let mut peers = Vec::new();
        for option in options {
            Peer::add(&mut peers, option, &["ours", "floor"])?;
        }
        Ok(peers)
    }

    fn on_unix(file: &str) -> Values {
        Values {
            needed: vec![
                (Placeholder::Socket, "/tmp/a socket".into()),
                (Placeholder::File, file.into()),
            ],
            optional: vec![(Placeholder::Size, "4096".into())],
            arguments: vec!["-f".into(), "file".into(), file.into()],
        }
    }

    #[test]
    fn words_are_those_of_a_shell_and_a_value_with_blanks_is_one_word() {
        let peers = peers(&[r#"a=x 'one two' "a\"b" -U{socket} '' \' s={size} {file}"#]).unwrap();
        let words = peers[0].command(&on_unix("/the disk")).unwrap();
        let right = ["x", "one two", "a\"b", "-U/tmp/a socket", "", "'", "s=4096", "/the disk"];
        assert_eq!(words, right);
    }

    #[test]
    fn a_row_gets_the_first_command_that_has_what_it_needs_and_no_more() {
        let options = ["a=x -p {port} {file}", "a=x --tls {certificates} {socket} {file}"];
        assert_eq!(peers(&options).unwrap()[0].command(&on_unix("f")), None);
        let two = peers(&[options[0], "a=x {socket} {file}", "a=y {socket} {file}"]).unwrap();
        assert_eq!(two.len(), 1);
        assert_eq!(two[0].command(&on_unix("f")).unwrap(), ["x", "/tmp/a socket", "f"]);
        assert_eq!(peers(&["a=x {socket} {size}"]).unwrap()[0].command(&on_unix("f")), None);
    }

    #[test]
    fn all_arguments_of_nbdkit_suit_every_row() {
        let peers = peers(&["new=/opt/nbdkit -v {arguments}"]).unwrap();
        let words = peers[0].command(&on_unix("f")).unwrap();
        assert_eq!(words, ["/opt/nbdkit", "-v", "-f", "file", "f"]);
    }

    #[test]
    fn what_is_wrong_is_said_in_one_line() {
        for (option, message) in [
            ("x", "--peer x: NAME=COMMAND is needed"),
            ("floor=x {socket}", "--peer floor: there is a server of that name"),
            ("a b=x {socket}", "--peer: \"a b\" is no name"),
            ("a=", "--peer a: no command"),
            ("a=x 'y {socket}", "--peer a: no closing '"),
            ("a=x {file}", "--peer a: the command has none of {socket}, {port} and {arguments}"),
            ("a=x {sock} {socket}", "--peer a: {sock} is none of {socket}, {port}, {file},"),
            ("a=x a{arguments}", "--peer a: {arguments} must be a word of its own"),
            ("a={socket}", "--peer a: the program's name has a placeholder"),
        ] {
            let error = peers(&[option]).unwrap_err();
            assert!(error.starts_with(message) && !error.contains('\n'), "{option}: {error}");
        }
        assert!(peers(&[r#"a=x json:{"a":1} {socket}"#]).is_ok());
    }
}
