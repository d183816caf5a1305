//! Evaluation of the data format: expressions to an [`Image`].
//!
//! Runs in the template. Files are opened and scripts run here; variables are looked up, parsed and
//! evaluated here, so their recursion is bounded here.

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::rc::Rc;

use nbdkit_api::{Error, Result};

use super::expr::{Expr, Move};
use super::image::{Content, Image, MAX_SIZE};
use super::parser;
use super::source::{self, File, Source};

/// Most expressions that are evaluated, counting again what stands in a variable for every use of
/// it.
const MAX_STEPS: u32 = 1 << 20;
/// Deepest nesting of expressions and variables. A variable that contains itself ends here.
const MAX_DEPTH: u32 = 400;

/// Evaluates `text`; `$NAME` is looked up in `parameters`, then in the environment.
///
/// # Errors
/// What is wrong with the text or with what it names.
pub(super) fn evaluate(text: &[u8], parameters: &HashMap<String, OsString>) -> Result<Image> {
    let list = parser::parse(text)?;
    let mut evaluator = Evaluator {
        parameters,
        variables: HashMap::new(),
        files: HashMap::new(),
        steps: 0,
        depth: 0,
    };
    evaluator.list(&list, None, None)
}

struct Evaluator<'a> {
    parameters: &'a HashMap<String, OsString>,
    /// Parsed variables.
    variables: HashMap<String, Rc<Vec<Expr>>>,
    /// Open regular files.
    files: HashMap<OsString, Rc<File>>,
    steps: u32,
    depth: u32,
}

/// What was assigned in a list, and where to look further.
struct Scope<'a> {
    outer: Option<&'a Scope<'a>>,
    /// A value that could not be had is an error only to who uses it.
    names: HashMap<&'a str, Result<Rc<Image>>>,
}

impl Scope<'_> {
    fn get(&self, name: &str) -> Result<Rc<Image>> {
        match (self.names.get(name), self.outer) {
            (Some(value), _) => value.clone(),
            (None, Some(outer)) => outer.get(name),
            (None, None) => Err(Error::msg(format!("\\{name} not defined"))),
        }
    }
}

impl Evaluator<'_> {
    /// Evaluates a list in a scope of its own. With `want`, only so many bytes of the result are
    /// needed: no more is read of an endless source.
    fn list(
        &mut self,
        list: &[Expr],
        outer: Option<&Scope<'_>>,
        want: Option<u64>,
    ) -> Result<Image> {
        let mut scope = Scope { outer, names: HashMap::new() };
        let mut image = Image::default();
        let mut at = 0u64;
        for expr in list {
            match expr {
                Expr::Move(step) => {
                    at = moved(at, *step)?;
                    image.extend_to(at);
                }
                Expr::Assign(value, name) => {
                    let value = self.value(value, &scope, None).map(Rc::new);
                    scope.names.insert(name, value);
                }
                expr => {
                    let want = if list.len() == 1 { want } else { None };
                    let value = Rc::new(self.value(expr, &scope, want)?);
                    let end = within(at.checked_add(value.size()))?;
                    image.put(at, &value, 0, value.size())?;
                    at = end;
                }
            }
        }
        Ok(image)
    }

    fn value(&mut self, expr: &Expr, scope: &Scope<'_>, want: Option<u64>) -> Result<Image> {
        self.steps += 1;
        if self.steps > MAX_STEPS {
            return Err(Error::msg(format!(
                "data parameter: more than {MAX_STEPS} expressions to evaluate"
            )));
        }
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(Error::msg(format!(
                "data parameter: variables are nested more than {MAX_DEPTH} levels deep"
            )));
        }
        let image = self.value_within_bounds(expr, scope, want);
        self.depth -= 1;
        image
    }

    fn value_within_bounds(
        &mut self,
        expr: &Expr,
        scope: &Scope<'_>,
        want: Option<u64>,
    ) -> Result<Image> {
        match expr {
            Expr::Bytes(bytes) => {
                Ok(Image::of(Content::Bytes(Rc::clone(bytes)), bytes.len() as u64))
            }
            Expr::File(name) => self.file(name, want),
            Expr::Script(script) => source::run(script, want).map(literal),
            Expr::Variable(name) => {
                let list = self.variable(name)?;
                self.list(&list, Some(scope), want)
            }
            Expr::Name(name) => {
                let image = scope.get(name)?;
                Image::slice(&image, 0, image.size())
            }
            Expr::Group(list) => self.list(list, Some(scope), want),
            // Nothing, as in nbdkit whatever of.
            Expr::Repeat(_, 0) => Ok(Image::default()),
            Expr::Slice(_, from, Some(to)) if from == to => Ok(Image::default()),
            Expr::Repeat(expr, count) => {
                let image = Rc::new(self.value(expr, scope, None)?);
                Image::repeat(&image, *count)
            }
            Expr::Slice(expr, from, to) => {
                let want = to.or_else(|| want.map(|want| want.saturating_add(*from)));
                let image = Rc::new(self.value(expr, scope, want)?);
                let size = image.size();
                let lenient = match **expr {
                    Expr::File(_) => true,
                    Expr::Script(_) => *from == 0,
                    _ => false,
                };
                let (from, to) = match (*from, to.unwrap_or(size.max(*from))) {
                    // As in nbdkit, a file or script may turn out shorter than its slice.
                    (from, to) if lenient && from <= to => (from.min(size), to.min(size)),
                    bounds => bounds,
                };
                if from > to || to > size {
                    return Err(Error::msg("[N:M] does not describe a valid slice"));
                }
                Image::slice(&image, from, to)
            }
            // Lists handle these, and the parser puts them nowhere else.
            Expr::Move(_) | Expr::Assign(..) => Ok(Image::default()),
        }
    }

    fn file(&mut self, name: &OsString, want: Option<u64>) -> Result<Image> {
        let file = match self.files.get(name) {
            Some(file) => Rc::clone(file),
            None => match source::open(name, want)? {
                Source::Stream(bytes) => return Ok(literal(bytes)),
                Source::Regular(file) => {
                    let file = Rc::new(file);
                    self.files.insert(name.clone(), Rc::clone(&file));
                    file
                }
            },
        };
        let size = file.size();
        Ok(Image::of(Content::File(file), size))
    }

    fn variable(&mut self, name: &str) -> Result<Rc<Vec<Expr>>> {
        if let Some(list) = self.variables.get(name) {
            return Ok(Rc::clone(list));
        }
        let text = match self.parameters.get(name) {
            Some(text) => text.clone(),
            None => std::env::var_os(name)
                .ok_or_else(|| Error::msg(format!("${name}: variable not found")))?,
        };
        let list = parser::parse(text.as_bytes()).map_err(|e| e.context(format!("${name}")))?;
        let list = Rc::new(list);
        self.variables.insert(name.to_owned(), Rc::clone(&list));
        Ok(list)
    }
}

fn literal(bytes: Vec<u8>) -> Image {
    let length = bytes.len() as u64;
    Image::of(Content::Bytes(Rc::new(bytes)), length)
}

fn within(offset: Option<u64>) -> Result<u64> {
    offset.filter(|&offset| offset <= MAX_SIZE).ok_or_else(|| {
        Error::msg(format!("data parameter: the disk would be larger than {MAX_SIZE} bytes"))
    })
}

/// The offset after `step`.
fn moved(at: u64, step: Move) -> Result<u64> {
    match step {
        Move::To(offset) => within(Some(offset)),
        Move::Forward(n) => within(at.checked_add(n)),
        Move::Back(n) => at.checked_sub(n).ok_or_else(|| {
            Error::msg(format!(
                "data parameter @-{n} must not be larger than the current offset {at}"
            ))
        }),
        Move::Align(n) => within(at.checked_next_multiple_of(n)),
    }
}
