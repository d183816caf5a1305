//! The system calls that a process may make: lists as data, each line with what its arguments must
//! be, their compilation into filters, and the installation of filters. seccomp(2).
//!
//! The lists are with the programs that are confined by them; what several use is in
//! [`lists`](crate::lists).

mod kernel;
mod refused;
mod search;
mod x32;

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompRule,
};

use crate::{Error, Result};
pub use kernel::are_supported;
pub use refused::on_refusal;

/// Bits of clone(2) that make namespaces.
pub const NEW_NAMESPACES: u64 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u64;

/// A compiled filter.
pub type Program = BpfProgram;

/// One system call, and the tests that its arguments must pass, all of them. Another line of the
/// same call may have other tests: one of the lines must match.
#[derive(Debug, Clone, Copy)]
pub struct Line {
    /// The call's number on this machine.
    pub call: i64,
    /// The tests of its arguments; none matches always.
    pub tests: &'static [Test],
}

/// A test of one argument, counted from 0.
#[derive(Debug, Clone, Copy)]
pub enum Test {
    /// The argument is this number (32 bits).
    Is(u8, u64),
    /// The argument is not this number (32 bits).
    IsNot(u8, u64),
    /// The argument has all of these bits.
    Has(u8, u64),
    /// The argument has none of these bits.
    Lacks(u8, u64),
}

/// A call with any arguments.
pub const fn any(call: i64) -> Line {
    Line { call, tests: &[] }
}

/// A call with these arguments only.
pub const fn with(call: i64, tests: &'static [Test]) -> Line {
    Line { call, tests }
}

/// What the kernel does with a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The call is made.
    Allow,
    /// The call fails with this errno.
    Fail(i32),
    /// The call raises SIGSYS, see [`on_refusal`].
    Trap,
}

impl From<Action> for SeccompAction {
    fn from(action: Action) -> SeccompAction {
        match action {
            Action::Allow => SeccompAction::Allow,
            Action::Fail(errno) => SeccompAction::Errno(errno.cast_unsigned()),
            Action::Trap => SeccompAction::Trap,
        }
    }
}

/// Compiles the filter that does `listed` with the calls on these lists and `other` with all
/// others.
///
/// A line without tests matches whatever tests another line of that call has.
///
/// # Errors
/// A test is of an argument that no call has; the compiler does not know this machine.
pub fn compile(lists: &[&[Line]], other: Action, listed: Action) -> Result<Program> {
    assemble(rules(lists)?, other, listed)
}

/// Compiles with one more line, `own`, whose numbers are known at run time only; see [`compile`].
///
/// # Errors
/// Those of [`compile`].
pub fn compile_with(
    lists: &[&[Line]],
    own: (i64, &[Test]),
    other: Action,
    listed: Action,
) -> Result<Program> {
    let mut rules = rules(lists)?;
    rules.entry(own.0).or_default().push(of_tests(own.1)?);
    assemble(rules, other, listed)
}

/// A copy of a filter with `number` instead of `stand_in`, a number that occurs in it for nothing
/// else. A filter is compiled once, and each fork puts in what only the fork knows.
pub fn with_number(filter: &Program, stand_in: u32, number: u32) -> Program {
    let mut filter = filter.clone();
    for instruction in filter.iter_mut().filter(|it| it.k == stand_in) {
        instruction.k = number;
    }
    filter
}

/// Sets no_new_privs, and installs a filter for good, in this thread and what it starts.
///
/// # Errors
/// The kernel refuses it.
pub fn install(filter: &Program) -> Result<()> {
    seccompiler::apply_filter(filter).map_err(broken)
}

/// Installs a filter for good, and does not set no_new_privs, which takes CAP_SYS_ADMIN: executed
/// programs may still gain privileges.
///
/// # Errors
/// EACCES without the capability.
pub fn install_as_admin(filter: &Program) -> Result<()> {
    kernel::install_filter(filter).map_err(Error::os("seccomp"))
}

/// Sets no_new_privs, and installs a filter for good, in every thread of this process. seccomp(2),
/// SECCOMP_FILTER_FLAG_TSYNC.
///
/// # Errors
/// The kernel refuses it; a thread has a filter that this one does not have.
pub fn install_in_all_threads(filter: &Program) -> Result<()> {
    seccompiler::apply_filter_all_threads(filter).map_err(broken)
}

fn broken(cause: impl std::fmt::Display) -> Error {
    Error::of("seccomp")(cause)
}

/// By system call: its rules, of which one must match. A call without rules matches always.
type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn rules(lists: &[&[Line]]) -> Result<Rules> {
    let mut rules = Rules::new();
    for line in lists.iter().copied().flatten() {
        match rules.get_mut(&line.call) {
            Some(existing) if existing.is_empty() || line.tests.is_empty() => existing.clear(),
            Some(existing) => existing.push(of_tests(line.tests)?),
            None if line.tests.is_empty() => drop(rules.insert(line.call, vec![])),
            None => drop(rules.insert(line.call, vec![of_tests(line.tests)?])),
        }
    }
    Ok(rules)
}

fn assemble(rules: Rules, other: Action, listed: Action) -> Result<Program> {
    let filter = search::assemble(rules, other, listed)?;
    // Where listed calls are denied, x32 has other numbers for them.
    Ok(if cfg!(target_arch = "x86_64") && other == Action::Allow {
        x32::refuse(filter, listed)
    } else {
        filter
    })
}

fn of_tests(tests: &[Test]) -> Result<SeccompRule> {
    use SeccompCmpArgLen::{Dword, Qword};
    let conditions = tests.iter().map(|test| {
        let (argument, length, operator, value) = match *test {
            Test::Is(argument, value) => (argument, Dword, SeccompCmpOp::Eq, value),
            Test::IsNot(argument, value) => (argument, Dword, SeccompCmpOp::Ne, value),
            Test::Has(argument, bits) => (argument, Qword, SeccompCmpOp::MaskedEq(bits), bits),
            Test::Lacks(argument, bits) => (argument, Qword, SeccompCmpOp::MaskedEq(bits), 0),
        };
        SeccompCondition::new(argument, length, operator, value).map_err(broken)
    });
    SeccompRule::new(conditions.collect::<Result<_>>()?).map_err(broken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_without_tests_matches_whatever_others_test() {
        const BOUNDED: &[Line] = &[with(libc::SYS_prctl, &[Test::Is(0, 1)])];
        const OTHER: &[Line] = &[with(libc::SYS_prctl, &[Test::Is(0, 2)])];
        const FREE: &[Line] = &[any(libc::SYS_prctl)];
        let count = |lists: &[&[Line]]| rules(lists).unwrap()[&libc::SYS_prctl].len();
        assert_eq!(count(&[BOUNDED, OTHER]), 2);
        assert_eq!(count(&[BOUNDED, FREE]), 0);
        assert_eq!(count(&[FREE, BOUNDED]), 0);
    }

    /// A filter holds for the thread that installs it, here one of the test's own.
    #[test]
    fn a_filter_tests_arguments_in_every_way() {
        const LIST: &[Line] = &[
            with(libc::SYS_getsid, &[Test::Is(0, 1 << 28)]),
            with(libc::SYS_getpgid, &[Test::IsNot(0, 0)]),
            with(libc::SYS_dup, &[Test::Has(0, 0x6000)]),
            with(libc::SYS_close, &[Test::Lacks(0, 0x7000)]),
        ];
        std::thread::spawn(|| {
            nix::sys::prctl::set_no_new_privs().unwrap();
            let filter = compile(&[LIST], Action::Allow, Action::Fail(libc::EDOM)).unwrap();
            install(&filter).unwrap();
            let refused = Some(nix::errno::Errno::EDOM);
            let badf = Some(nix::errno::Errno::EBADF);
            let other = Some(nix::unistd::Pid::from_raw(1 << 28));
            assert_eq!(
                (nix::unistd::getsid(None).err(), nix::unistd::getsid(other).err()),
                (None, refused)
            );
            let getpgid = |pid| nix::unistd::getpgid(Some(nix::unistd::Pid::from_raw(pid))).err();
            assert_eq!((getpgid(0), getpgid(1 << 28)), (None, refused));
            assert_eq!(
                (nix::unistd::close(0x6fff_f000).err(), nix::unistd::close(0x0fff_0fff).err()),
                (badf, refused)
            );
        })
        .join()
        .unwrap();
    }
}
