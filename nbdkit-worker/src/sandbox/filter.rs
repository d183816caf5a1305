//! Which system calls may be made: compiles the lists of [`policy`] and installs them. seccomp(2).
//!
//! A call that is on no list raises SIGSYS, which ends the process with a message that names it
//! ([`crate::process::report_refusals`]). Stacks that run programs are the exception: exec takes the handler away,
//! and programs try out what the kernel has, so to them a call that is on no list does not exist (ENOSYS).

#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use nbdkit_api::needs::Network;
use nbdkit_api::{Errno, Error, Needs, Result};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

use super::policy::{self, Line, Test};

/// A compiled filter.
pub(super) type Program = BpfProgram;

/// Whether this kernel has filters at all.
pub(super) fn are_supported() -> bool {
    // Since Linux 4.14; before that, filters were younger than what else we need.
    std::fs::exists("/proc/sys/kernel/seccomp/actions_avail").unwrap_or(false)
}

/// What the template installs for a stack with these needs, and all forks inherit.
///
/// # Errors
/// EINVAL: a list is wrong.
pub(super) fn template(needs: &Needs) -> Result<Vec<Program>> {
    let mut lists = vec![policy::BASE, policy::TEMPLATE];
    if needs.threads || needs.programs || needs.network > Network::None {
        lists.push(policy::THREADS);
    }
    if needs.network > Network::None {
        lists.push(policy::UNIX);
    }
    if needs.network == Network::Inet {
        lists.push(policy::INET);
    }
    if needs.programs {
        lists.push(policy::PROGRAMS);
    } else if !needs.paths.is_empty() {
        lists.push(policy::FILE);
    }
    let unknown = if needs.programs {
        SeccompAction::Errno(libc::ENOSYS as u32)
    } else {
        SeccompAction::Trap
    };
    let mut filters = vec![
        compile(&lists, unknown, SeccompAction::Allow)?,
        compile(
            &[policy::ABSENT],
            SeccompAction::Allow,
            SeccompAction::Errno(libc::ENOSYS as u32),
        )?,
    ];
    if needs.paths.is_empty() && !needs.programs && needs.network < Network::Inet {
        filters.push(compile(
            &[policy::OPENING],
            SeccompAction::Allow,
            SeccompAction::Errno(libc::EACCES as u32),
        )?);
    }
    Ok(filters)
}

/// What a worker gives up, once it is one.
///
/// # Errors
/// EINVAL: a list is wrong.
pub(super) fn worker() -> Result<Program> {
    let mut rules = rules(&[policy::GIVEN_UP])?;
    // abort(3) signals this process, and nothing signals another: workers share a user.
    let others = condition(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, std::process::id().into());
    rules.insert(libc::SYS_tgkill, vec![rule(vec![others?])?]);
    assemble(rules, SeccompAction::Allow, SeccompAction::Trap)
}

/// What even code that declares nothing has no business with.
///
/// # Errors
/// EINVAL: a list is wrong.
pub(super) fn compat() -> Result<Vec<Program>> {
    let refuse = SeccompAction::Errno(libc::EPERM as u32);
    Ok(vec![compile(&[policy::COMPAT], SeccompAction::Allow, refuse)?])
}

/// Installs a filter for good. There must be no new privileges any more.
///
/// # Errors
/// EPERM: the kernel does not let us.
pub(super) fn install(filter: &Program) -> Result<()> {
    seccompiler::apply_filter(filter).map_err(|error| broken(&error))
}

fn compile(lists: &[&[Line]], other: SeccompAction, listed: SeccompAction) -> Result<Program> {
    assemble(rules(lists)?, other, listed)
}

/// By system call: the rules of which one must match; none match always.
type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// The union: what one list allows without conditions is not restricted by another.
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

fn of_tests(tests: &[Test]) -> Result<SeccompRule> {
    let conditions = tests.iter().map(|test| match *test {
        Test::Is(argument, value) => {
            condition(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)
        }
        Test::Has(argument, bits) => {
            condition(argument, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(bits), bits)
        }
        Test::Lacks(argument, bits) => {
            condition(argument, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(bits), 0)
        }
    });
    rule(conditions.collect::<Result<_>>()?)
}

fn condition(
    argument: u8,
    length: SeccompCmpArgLen,
    operator: SeccompCmpOp,
    value: u64,
) -> Result<SeccompCondition> {
    SeccompCondition::new(argument, length, operator, value).map_err(|error| broken(&error))
}

fn rule(conditions: Vec<SeccompCondition>) -> Result<SeccompRule> {
    SeccompRule::new(conditions).map_err(|error| broken(&error))
}

fn assemble(rules: Rules, other: SeccompAction, listed: SeccompAction) -> Result<Program> {
    let machine = std::env::consts::ARCH.try_into().map_err(|error| broken(&error))?;
    SeccompFilter::new(rules, other, listed, machine)
        .and_then(TryInto::try_into)
        .map_err(|error| broken(&error))
}

fn broken(error: &dyn std::fmt::Display) -> Error {
    Error::new(Errno::EINVAL, format!("seccomp: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All that a stack can need, one by one and together.
    fn stacks() -> Vec<Needs> {
        let mut stacks = vec![Needs::nothing()];
        for network in [Network::Unix, Network::Inet] {
            stacks.push(Needs::nothing().network(network));
        }
        stacks.push(Needs::nothing().path("/", nbdkit_api::Access::Read));
        stacks.push(Needs::nothing().programs());
        stacks.push(Needs::nothing().threads());
        let all = stacks.iter().cloned().reduce(|mut all, needs| {
            all.merge(needs);
            all
        });
        stacks.extend(all);
        stacks
    }

    #[test]
    fn every_list_compiles_into_what_the_kernel_takes() {
        /// linux/bpf_common.h, BPF_MAXINSNS
        const MOST: usize = 4096;
        for needs in stacks() {
            for filter in template(&needs).unwrap() {
                assert!((1..MOST).contains(&filter.len()), "{needs:?}: {}", filter.len());
            }
        }
        assert!(worker().unwrap().len() < 200, "installed for every connection");
        assert_eq!(compat().unwrap().len(), 1);
    }

    #[test]
    fn what_is_given_up_was_there_and_what_is_absent_is_not_refused_otherwise() {
        let listed = |call: i64| {
            [policy::BASE, policy::TEMPLATE].into_iter().flatten().any(|line| line.call == call)
        };
        for line in [policy::GIVEN_UP, policy::ABSENT, policy::OPENING].into_iter().flatten() {
            assert!(listed(line.call), "{}", line.call);
        }
    }

    #[test]
    fn a_line_without_conditions_wins_over_one_with() {
        let prctl = |lists: &[&[Line]]| rules(lists).unwrap()[&libc::SYS_prctl].len();
        assert!(prctl(&[policy::BASE, policy::TEMPLATE]) > 1);
        assert_eq!(prctl(&[policy::BASE, policy::PROGRAMS]), 0);
        assert_eq!(prctl(&[policy::PROGRAMS, policy::BASE]), 0);
    }

    /// A filter holds for the thread that installs it, here one of the test's own.
    #[test]
    fn a_filter_refuses_what_is_listed_with_the_errno_of_its_list() {
        let errno = std::thread::spawn(|| {
            nix::sys::prctl::set_no_new_privs().unwrap();
            install(&compat().unwrap()[0]).unwrap();
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUTS).err()
        });
        assert_eq!(errno.join().unwrap(), Some(nix::Error::EPERM));
    }
}
