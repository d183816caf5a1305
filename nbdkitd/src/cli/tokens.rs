//! Cuts the argument vector into options and operands, by the rules of GNU getopt_long.
//!
//! Options and operands may be mixed; `--` ends the options; `-fvU -` is a cluster whose last
//! letter takes an argument; long spellings may be shortened. lexopt does the cutting, this module
//! the looking-up and the messages. Used by the listener; the arguments are the caller's bytes and
//! need not be UTF-8. getopt_long(3).

#![forbid(unsafe_code)]

use std::ffi::OsString;

use super::error::Fault;
use super::options::{self, LongMatch, OptionId};

/// A token of the command line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Token {
    /// A switch, or an option that takes an argument, with that argument.
    Option(OptionId, OsString),
    /// Neither an option nor its argument: the plugin's name or a parameter.
    Operand(OsString),
}

/// The command line, cut lazily: what follows `--dump-config` is never looked at.
pub(crate) struct Tokens {
    parser: lexopt::Parser,
    posixly_correct: bool,
}

/// An option as it was spelt, before anything of it was looked up.
enum Spelling {
    Short(char),
    Long(String),
}

impl Tokens {
    /// `args` is without the name of the program. With `posixly_correct` the first operand ends the
    /// options.
    pub(crate) fn new(args: Vec<OsString>, posixly_correct: bool) -> Self {
        let mut parser = lexopt::Parser::from_args(args);
        // To getopt the argument of `-p=10` is `=10`.
        parser.set_short_equals(false);
        Self { parser, posixly_correct }
    }

    /// The next token, or `None` at the end.
    ///
    /// # Errors
    /// An unknown or ambiguous option, an argument that is missing or superfluous, with getopt's
    /// message.
    pub(crate) fn next(&mut self) -> Result<Option<Token>, Fault> {
        let spelling = match self.parser.next().map_err(|error| Fault::getopt(error.to_string()))? {
            None => return Ok(None),
            Some(lexopt::Arg::Value(operand)) => {
                if self.posixly_correct {
                    self.finish_options();
                }
                return Ok(Some(Token::Operand(operand)));
            }
            Some(lexopt::Arg::Short(letter)) => Spelling::Short(letter),
            Some(lexopt::Arg::Long(name)) => Spelling::Long(name.to_owned()),
        };
        match spelling {
            Spelling::Short(letter) => self.short(letter),
            Spelling::Long(name) => self.long(&name),
        }
        .map(Some)
    }

    fn short(&mut self, letter: char) -> Result<Token, Fault> {
        let option = options::by_short(letter)
            .ok_or_else(|| Fault::getopt(format!("invalid option -- '{letter}'")))?;
        if !option.argument.is_required() {
            return Ok(Token::Option(option.id, OsString::new()));
        }
        let argument = self
            .parser
            .value()
            .map_err(|_| Fault::getopt(format!("option requires an argument -- '{letter}'")))?;
        Ok(Token::Option(option.id, argument))
    }

    fn long(&mut self, name: &str) -> Result<Token, Fault> {
        let attached = self.parser.optional_value();
        let written = || match &attached {
            Some(argument) => format!("--{name}={}", argument.to_string_lossy()),
            None => format!("--{name}"),
        };
        let (option, full) = match options::by_long(name) {
            LongMatch::Option(option, full) => (option, full),
            LongMatch::Ambiguous(candidates) => {
                let candidates: String =
                    candidates.into_iter().map(|candidate| format!(" '--{candidate}'")).collect();
                return Err(Fault::getopt(format!(
                    "option '{}' is ambiguous; possibilities:{candidates}",
                    written()
                )));
            }
            LongMatch::Unknown => {
                return Err(Fault::getopt(format!("unrecognized option '{}'", written())));
            }
        };
        match (option.argument.is_required(), attached) {
            (true, Some(argument)) => Ok(Token::Option(option.id, argument)),
            (true, None) => {
                let argument = self.parser.value().map_err(|_| {
                    Fault::getopt(format!("option '--{full}' requires an argument"))
                })?;
                Ok(Token::Option(option.id, argument))
            }
            (false, None) => Ok(Token::Option(option.id, OsString::new())),
            (false, Some(_)) => {
                Err(Fault::getopt(format!("option '--{full}' doesn't allow an argument")))
            }
        }
    }

    /// Makes operands of everything that is left.
    fn finish_options(&mut self) {
        let mut rest: Vec<OsString> = vec!["--".into()];
        // raw_args fails only in the middle of an option, and an operand has just been read.
        if let Ok(args) = self.parser.raw_args() {
            rest.extend(args);
        }
        *self = Self::new(rest, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStringExt;

    fn cut(args: &[&str], posixly_correct: bool) -> Result<Vec<Token>, String> {
        let args = args.iter().map(OsString::from).collect();
        let mut tokens = Tokens::new(args, posixly_correct);
        let mut all = Vec::new();
        loop {
            match tokens.next() {
                Ok(Some(token)) => all.push(token),
                Ok(None) => return Ok(all),
                Err(fault) => return Err(fault.named("nbdkit", "nbdkit").to_string()),
            }
        }
    }

    fn option(id: OptionId, argument: &str) -> Token {
        Token::Option(id, argument.into())
    }

    fn operand(text: &str) -> Token {
        Token::Operand(text.into())
    }

    #[test]
    fn options_and_operands_may_be_mixed() {
        assert_eq!(
            cut(&["memory", "1G", "-U", "-", "--run", "-x"], false).unwrap(),
            [
                operand("memory"),
                operand("1G"),
                option(OptionId::Unix, "-"),
                option(OptionId::Run, "-x")
            ]
        );
    }

    #[test]
    fn a_cluster_ends_with_an_argument() {
        assert_eq!(
            cut(&["-fvU", "-", "-t1", "-U-", "-p=10"], false).unwrap(),
            [
                option(OptionId::Foreground, ""),
                option(OptionId::Verbose, ""),
                option(OptionId::Unix, "-"),
                option(OptionId::Threads, "1"),
                option(OptionId::Unix, "-"),
                option(OptionId::Port, "=10"),
            ]
        );
    }

    #[test]
    fn long_arguments_are_attached_or_follow() {
        assert_eq!(
            cut(
                &["--port=1", "--port", "2", "--exp=a=b", "--export", "--", "--filter=", "-"],
                false
            )
            .unwrap(),
            [
                option(OptionId::Port, "1"),
                option(OptionId::Port, "2"),
                option(OptionId::ExportName, "a=b"),
                option(OptionId::ExportName, "--"),
                option(OptionId::Filter, ""),
                operand("-"),
            ]
        );
    }

    #[test]
    fn two_dashes_end_the_options() {
        assert_eq!(
            cut(&["--", "null", "-f", "--"], false).unwrap(),
            [operand("null"), operand("-f"), operand("--")]
        );
    }

    #[test]
    fn posixly_correct_ends_the_options_at_the_first_operand() {
        assert_eq!(
            cut(&["-f", "null", "-U", "-"], true).unwrap(),
            [option(OptionId::Foreground, ""), operand("null"), operand("-U"), operand("-")]
        );
    }

    #[test]
    fn errors_are_those_of_getopt() {
        for (args, message) in [
            (&["--nosuch"][..], "unrecognized option '--nosuch'"),
            (&["--nosuch=1"], "unrecognized option '--nosuch=1'"),
            (&["-Z"], "invalid option -- 'Z'"),
            (&["-f sh"], "invalid option -- ' '"),
            (&["-p"], "option requires an argument -- 'p'"),
            (&["--po"], "option '--port' requires an argument"),
            (&["--verb=1"], "option '--verbose' doesn't allow an argument"),
            (&["--r"], "option '--r' is ambiguous; possibilities: '--read-only' '--run'"),
            (&["--f=1"], "option '--f=1' is ambiguous; possibilities: '--filter' '--foreground'"),
        ] {
            assert_eq!(cut(args, false).unwrap_err(), format!("nbdkit: {message}"));
        }
    }

    #[test]
    fn arguments_need_not_be_utf8() {
        let path = OsString::from_vec(b"/tmp/\xff".to_vec());
        let mut attached = OsString::from("--unix=");
        attached.push(&path);
        let mut tokens =
            Tokens::new(vec![attached, "-U".into(), path.clone(), path.clone()], false);
        assert_eq!(tokens.next(), Ok(Some(Token::Option(OptionId::Unix, path.clone()))));
        assert_eq!(tokens.next(), Ok(Some(Token::Option(OptionId::Unix, path.clone()))));
        assert_eq!(tokens.next(), Ok(Some(Token::Operand(path))));
        assert!(Tokens::new(vec![OsString::from_vec(b"-\xff".to_vec())], false).next().is_err());
        assert!(Tokens::new(vec![OsString::from_vec(b"--\xff".to_vec())], false).next().is_err());
    }
}
