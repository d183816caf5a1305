//! The grammar of the data format: text in, a list of [`Expr`] out. Nothing is opened, run or
//! expanded here.
//!
//! Runs in the template while it is configured. Nesting is bounded, so that neither this nor
//! the evaluation, which recurses the same way, can exhaust the stack.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::rc::Rc;

use nbdkit_api::{Error, Result, parse};

use super::base64;
use super::expr::{Expr, Move};
use super::token::{Cursor, Number, is_blank};

/// Deepest nesting of expressions: parentheses and operators together.
const MAX_DEPTH: u32 = 200;

/// Parses the value of `data=` or of a `$VARIABLE`.
///
/// # Errors
/// What is wrong and at which offset.
pub(super) fn parse(text: &[u8]) -> Result<Vec<Expr>> {
    Ok(Parser { cursor: Cursor::new(text), open: 0 }.list()?.0)
}

struct Parser<'a> {
    cursor: Cursor<'a>,
    /// Parentheses that are open.
    open: u32,
}

/// A list that is being parsed. Operators apply to the last expression, so only what precedes that
/// may be merged into longer runs of bytes.
#[derive(Default)]
struct List {
    done: Vec<Expr>,
    last: Option<Expr>,
    /// How deep the last expression is, and the deepest of those done.
    last_depth: u32,
    depth: u32,
}

impl List {
    fn push(&mut self, (expr, depth): (Expr, u32)) {
        self.settle();
        self.last_depth = depth;
        self.last = Some(expr);
    }

    fn settle(&mut self) {
        self.depth = self.depth.max(self.last_depth);
        match (self.last.take(), self.done.last_mut()) {
            (Some(Expr::Bytes(bytes)), Some(Expr::Bytes(run))) => {
                // The parser holds the only reference to what it is making.
                Rc::make_mut(run).extend_from_slice(&bytes);
            }
            (Some(expr), _) => self.done.push(expr),
            (None, _) => {}
        }
    }

    /// The list and its depth.
    fn finish(mut self) -> (Vec<Expr>, u32) {
        self.settle();
        (self.done, self.depth)
    }

    /// Replaces the last expression by `operator` applied to it.
    fn apply(&mut self, what: &str, operator: impl FnOnce(Box<Expr>) -> Expr) -> Result<()> {
        self.last_depth = deeper(self.last_depth)?;
        match self.last.take() {
            None => Err(Error::msg(format!("{what} must follow an expression"))),
            Some(Expr::Move(_) | Expr::Assign(..)) => {
                Err(Error::msg(format!("{what} cannot be applied to this type of expression")))
            }
            Some(expr) => {
                self.last = Some(operator(Box::new(expr)));
                Ok(())
            }
        }
    }
}

fn deeper(depth: u32) -> Result<u32> {
    if depth >= MAX_DEPTH {
        return Err(Error::msg(format!(
            "data parameter is nested more than {MAX_DEPTH} levels deep"
        )));
    }
    Ok(depth + 1)
}

fn is_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')
}

impl Parser<'_> {
    /// Everything up to the end or the parenthesis that closes this list.
    fn list(&mut self) -> Result<(Vec<Expr>, u32)> {
        let mut list = List::default();
        loop {
            self.cursor.skip_blanks();
            let Some(next) = self.cursor.peek() else {
                if self.open > 0 {
                    return Err(Error::msg("unmatched '(' in data string"));
                }
                return Ok(list.finish());
            };
            match next {
                b')' if self.open > 0 => {
                    self.cursor.skip();
                    return Ok(list.finish());
                }
                b')' => return Err(Error::msg("unmatched ')' in data string")),
                b'#' => {
                    self.cursor.take_while(|b| b != b'\n');
                }
                b'*' => {
                    let count = self.repetition()?;
                    list.apply("*N", |expr| Expr::Repeat(expr, count))?;
                }
                b'[' => {
                    self.cursor.skip();
                    // What it applies to is complained about before what stands in it.
                    list.apply("[N:M]", |expr| Expr::Slice(expr, 0, None))?;
                    let bounds = self.slice()?;
                    if let Some(Expr::Slice(_, from, to)) = &mut list.last {
                        (*from, *to) = bounds;
                    }
                }
                b'-' => {
                    self.cursor.skip();
                    if !self.cursor.take(b">") {
                        return Err(self.cursor.unexpected());
                    }
                    self.cursor.skip_blanks();
                    list.apply("->", |expr| Expr::Assign(expr, String::new()))?;
                    if !self.cursor.take(b"\\") {
                        return Err(self.cursor.unexpected());
                    }
                    let target = self.cursor.name(is_name)?;
                    if let Some(Expr::Assign(_, name)) = &mut list.last {
                        *name = target;
                    }
                }
                _ => list.push(self.operand(next)?),
            }
        }
    }

    /// An expression without operators, and its depth; `next` is its first byte.
    fn operand(&mut self, next: u8) -> Result<(Expr, u32)> {
        if next == b'(' {
            self.cursor.skip();
            self.open = deeper(self.open)?;
            let (list, depth) = self.list()?;
            self.open -= 1;
            return Ok((Expr::Group(list), deeper(depth)?));
        }
        Ok((self.leaf(next)?, 1))
    }

    fn leaf(&mut self, next: u8) -> Result<Expr> {
        match next {
            b'0'..=b'9' => self.byte(),
            b'@' => {
                self.cursor.skip();
                self.offset().map(Expr::Move)
            }
            b'"' => {
                self.cursor.skip();
                let mut string = Vec::new();
                self.cursor.string(&mut string)?;
                Ok(Expr::Bytes(Rc::new(string)))
            }
            b'<' => {
                self.cursor.skip();
                self.source()
            }
            b'$' => {
                self.cursor.skip();
                self.cursor.name(|b| b.is_ascii_alphanumeric() || b == b'_').map(Expr::Variable)
            }
            b'\\' => {
                self.cursor.skip();
                self.cursor.name(is_name).map(Expr::Name)
            }
            b'l' | b'b' => self.word(),
            _ => Err(self.cursor.unexpected()),
        }
    }

    fn byte(&mut self) -> Result<Expr> {
        let number = self.cursor.number()?;
        let byte = number
            .and_then(|n| u8::try_from(n.magnitude).ok())
            .ok_or_else(|| Error::msg("data parameter BYTE must be in the range 0..255"))?;
        Ok(Expr::Bytes(Rc::new(vec![byte])))
    }

    /// `le16:` and its like, and `base64:`.
    fn word(&mut self) -> Result<Expr> {
        if self.cursor.take(b"base64:") {
            let digits = self
                .cursor
                .take_while(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'='));
            let bytes = base64::decode(digits)
                .ok_or_else(|| Error::msg("data: base64: Base64 decoding error."))?;
            return Ok(Expr::Bytes(Rc::new(bytes)));
        }
        let bytes = if self.cursor.take(b"le16:") {
            self.integer::<u16>()?.to_le_bytes().to_vec()
        } else if self.cursor.take(b"le32:") {
            self.integer::<u32>()?.to_le_bytes().to_vec()
        } else if self.cursor.take(b"le64:") {
            self.integer::<u64>()?.to_le_bytes().to_vec()
        } else if self.cursor.take(b"be16:") {
            self.integer::<u16>()?.to_be_bytes().to_vec()
        } else if self.cursor.take(b"be32:") {
            self.integer::<u32>()?.to_be_bytes().to_vec()
        } else if self.cursor.take(b"be64:") {
            self.integer::<u64>()?.to_be_bytes().to_vec()
        } else {
            return Err(self.cursor.expected("\"le16/32/64:\" or \"be16/32/64:\""));
        };
        Ok(Expr::Bytes(Rc::new(bytes)))
    }

    fn integer<T: parse::Bounded>(&mut self) -> Result<T> {
        let sign = if self.cursor.take(b"-") { "-" } else { "" };
        let digits = self.cursor.take_while(|b| b.is_ascii_alphanumeric());
        parse::integer("data", &format!("{sign}{}", digits.escape_ascii()))
    }

    /// What follows `@`.
    fn offset(&mut self) -> Result<Move> {
        let what = match self.cursor.peek() {
            Some(b'0'..=b'9') => "@OFFSET",
            Some(b'+') => "@+",
            Some(b'-') => "@-",
            Some(b'^') => "@^",
            _ => return Err(self.cursor.unexpected()),
        };
        if what != "@OFFSET" {
            self.cursor.skip();
        }
        let number = self.cursor.scaled_number()?.ok_or_else(|| self.cursor.unexpected())?;
        if number.negative {
            return Err(Error::msg(format!("data parameter after {what} must not be negative")));
        }
        let Number { magnitude: n, .. } = number;
        match what {
            "@+" => Ok(Move::Forward(n)),
            "@-" => Ok(Move::Back(n)),
            "@^" if n.is_power_of_two() => Ok(Move::Align(n)),
            "@^" => Err(Error::msg(format!("data parameter @^{n} must be a power of 2"))),
            _ => Ok(Move::To(n)),
        }
    }

    fn repetition(&mut self) -> Result<u64> {
        self.cursor.skip();
        match self.cursor.number()? {
            Some(Number { negative: false, magnitude, .. }) => Ok(magnitude),
            Some(_) => Err(Error::msg("data parameter *N must not be negative")),
            None => Err(Error::msg("*N not numeric")),
        }
    }

    /// The bounds of a slice, behind `[` up to and with `]`.
    fn slice(&mut self) -> Result<(u64, Option<u64>)> {
        let bad = || Error::msg("enclosed pattern (...)[N:M] not numeric");
        let bound = |cursor: &mut Cursor<'_>| match cursor.number()? {
            Some(number) if number.negative => Err(bad()),
            number => Ok(number.map(|n| n.magnitude)),
        };
        let from = bound(&mut self.cursor)?;
        self.cursor.skip_blanks();
        if !self.cursor.take(b":") {
            return Err(if from.is_some() { self.cursor.unexpected() } else { bad() });
        }
        let to = bound(&mut self.cursor)?;
        self.cursor.skip_blanks();
        if !self.cursor.take(b"]") {
            return Err(self.cursor.unexpected());
        }
        Ok((from.unwrap_or(0), to))
    }

    /// What follows `<`: a script in parentheses or a file name.
    fn source(&mut self) -> Result<Expr> {
        if self.cursor.take(b"(") {
            let script = self.cursor.script()?;
            return Ok(Expr::Script(OsStr::from_bytes(script).to_owned()));
        }
        let name = self.cursor.take_while(|b| !is_blank(b) && !matches!(b, b'*' | b'[' | b')'));
        if name.is_empty() {
            return Err(Error::msg("data parameter <FILE not a filename"));
        }
        Ok(Expr::File(OsStr::from_bytes(name).to_owned()))
    }
}
