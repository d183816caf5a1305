//! The parsed form of the data format: nbdkit-data-plugin(1), "DATA FORMAT".

use std::ffi::OsString;
use std::rc::Rc;

/// One expression of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Expr {
    /// Literal bytes: a BYTE, a word, a string, base64, or a run of them.
    Bytes(Rc<Vec<u8>>),
    /// `@…`: moves the offset.
    Move(Move),
    /// `<FILE`, relative to the working directory.
    File(OsString),
    /// `<(SCRIPT)`, for /bin/sh.
    Script(OsString),
    /// `$NAME`: a parameter or environment variable in the same language.
    Variable(String),
    /// `\NAME`: what was assigned to it.
    Name(String),
    /// `( … )`, a scope of its own.
    Group(Vec<Expr>),
    /// `expression * N`.
    Repeat(Box<Expr>, u64),
    /// `expression [FROM:TO]`; `TO` is the end if it is missing.
    Slice(Box<Expr>, u64, Option<u64>),
    /// `expression -> \NAME`; puts nothing on the disk.
    Assign(Box<Expr>, String),
}

/// A change of the current offset, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Move {
    /// `@OFFSET`.
    To(u64),
    /// `@+N`.
    Forward(u64),
    /// `@-N`.
    Back(u64),
    /// `@^ALIGNMENT`, a power of two.
    Align(u64),
}
