//! Which system calls may be made: composes the lists of [`policy`] by need. seccomp(2).
//!
//! A call that is on no list raises SIGSYS, which ends the process with a message that names the
//! call ([`crate::process::report_refusals`]). For stacks that run programs the call fails with
//! ENOSYS: execve(2) resets the handler, and programs probe which calls the kernel has.

#![forbid(unsafe_code)]

use nbdkit_api::needs::Network;
use nbdkit_api::{Access, Needs, Result};
use nbdkit_sandbox::lists;
use nbdkit_sandbox::seccomp::{
    Action, Line, Program, Test, compile, compile_with, install_in_all_threads, with_number,
};

use super::policy;
use crate::privileges::failed;

/// The filters of the template of a stack with these needs, which all forks inherit.
///
/// # Errors
/// EINVAL: a list is wrong.
pub(super) fn template(needs: &Needs) -> Result<Vec<Program>> {
    let mut lists = policy::EVERY_STACK.to_vec();
    lists.push(policy::TEMPLATE);
    if needs.in_file || needs.programs {
        lists.push(policy::IN_FILE);
    }
    if needs.threads || needs.programs || needs.network > Network::None {
        lists.push(policy::THREADS);
    }
    if needs.network > Network::None {
        lists.push(policy::UNIX);
    }
    if needs.network >= Network::Ports {
        lists.push(policy::INET);
    }
    if needs.programs {
        lists.push(policy::PROGRAMS);
    } else if needs.opens_itself() || opens_declared(needs) {
        lists.push(policy::FILE);
    } else if needs.paths_are_brokered() {
        lists.push(policy::BROKERED);
    }
    if needs.paths.iter().any(|(_, access)| *access == Access::Write) {
        lists.push(policy::TREE);
    }
    let unknown = if needs.programs { Action::Fail(libc::ENOSYS) } else { Action::Trap };
    let mut filters = vec![
        compile(&lists, unknown, Action::Allow).map_err(failed)?,
        deny(&[policy::ABSENT], libc::ENOSYS)?,
    ];
    // Testing arguments costs time in each call, so only stacks that have such sockets get this.
    let bound_to_ports = needs.network == Network::Ports;
    let bound_to_broker = needs.endpoints_are_brokered() && needs.network < Network::Ports;
    if bound_to_broker || bound_to_ports {
        filters.push(deny(&[policy::FAST_OPEN], libc::EOPNOTSUPP)?);
    }
    if bound_to_ports {
        filters.push(deny(&[policy::OTHER_TRANSPORTS], libc::EPROTONOSUPPORT)?);
    }
    if needs.programs {
        filters.push(deny(&[lists::TERMINAL], libc::EPERM)?);
        return Ok(filters);
    }
    let mut inaccessible = vec![policy::SHARED_MEMORY];
    if !needs.opens_itself() && !opens_declared(needs) && needs.network < Network::Ports {
        inaccessible.push(policy::OPENING);
    }
    filters.push(deny(&inaccessible, libc::EACCES)?);
    Ok(filters)
}

fn deny(lists: &[&[Line]], errno: i32) -> Result<Program> {
    compile(lists, Action::Allow, Action::Fail(errno)).map_err(failed)
}

/// Whether this process and its forks open the declared paths themselves, without a broker.
fn opens_declared(needs: &Needs) -> bool {
    !needs.declared.is_empty() && !needs.paths_are_brokered()
}

/// Stands for a worker's process id in a compiled filter. Higher than any process id.
const SOME_PROCESS: u32 = 0x7fff_fffe;

/// The filter of a worker of a stack with these needs, or with `shared` of a template that serves
/// all clients, for [`of_this_process`].
///
/// # Errors
/// EINVAL: a list is wrong.
pub(super) fn worker(needs: &Needs, shared: bool) -> Result<Program> {
    let mut lists = vec![policy::GIVEN_UP];
    if !shared {
        lists.push(policy::CHILDREN);
    }
    if !needs.programs {
        lists.push(policy::KILLING);
    }
    if needs.network == Network::None {
        lists.push(policy::PASSING);
    }
    // abort(3) signals this process. Workers have one user, and must not signal each other.
    let others = (libc::SYS_tgkill, &[Test::IsNot(0, SOME_PROCESS.into())][..]);
    compile_with(&lists, others, Action::Allow, Action::Trap).map_err(failed)
}

/// The filter of [`worker`] for the process that calls this.
pub(super) fn of_this_process(filter: &Program) -> Program {
    with_number(filter, SOME_PROCESS, std::process::id())
}

/// The filters of stacks that declare nothing, or run programs.
///
/// # Errors
/// EINVAL: a list is wrong.
pub(super) fn compat() -> Result<Vec<Program>> {
    // A call that several filters deny fails with the errno of the last one.
    Ok(vec![
        deny(&[policy::ABSENT], libc::ENOSYS)?,
        deny(&[policy::FAMILIES], libc::EAFNOSUPPORT)?,
        deny(&[lists::NEVER, policy::STARTING, lists::TERMINAL], libc::EPERM)?,
    ])
}

/// Installs a filter for good, in every thread. no_new_privs must be set.
///
/// # Errors
/// The kernel refuses it; a thread has a filter of its own.
pub(super) fn install(filter: &Program) -> Result<()> {
    install_in_all_threads(filter).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All that a stack can need, one by one and together.
    fn stacks() -> Vec<Needs> {
        let mut stacks = vec![Needs::nothing()];
        for network in [Network::Unix, Network::Ports, Network::Inet] {
            stacks.push(Needs::nothing().network(network));
        }
        stacks.push(Needs::nothing().path("/", Access::Read));
        stacks.push(Needs::nothing().declare(nbdkit_api::paths::Declared::file("/")));
        stacks.push(Needs::nothing().connect_to(nbdkit_api::Endpoint::unix("/").unwrap()));
        stacks.push(Needs::nothing().path("/", Access::Look));
        stacks.push(Needs::nothing().programs());
        stacks.push(Needs::nothing().threads());
        stacks.push(Needs::nothing().trust_roots());
        stacks.push(Needs { in_file: true, ..Needs::nothing() });
        stacks.push(Needs::nothing().path("/", Access::Write));
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
        assert!(
            worker(&Needs::nothing(), false).unwrap().len() < 200,
            "installed for every connection"
        );
        assert_eq!(compat().unwrap().len(), 3);
    }

    #[test]
    fn what_is_given_up_was_allowed_and_what_is_absent_is_not_denied_otherwise() {
        let listed = |call: i64| {
            policy::EVERY_STACK
                .into_iter()
                .chain([policy::TEMPLATE])
                .flatten()
                .any(|line| line.call == call)
        };
        for line in [
            policy::GIVEN_UP,
            policy::CHILDREN,
            policy::KILLING,
            policy::ABSENT,
            policy::OPENING,
            policy::SHARED_MEMORY,
        ]
        .into_iter()
        .flatten()
        {
            assert!(listed(line.call), "{}", line.call);
        }
    }

    /// A filter holds for the thread that installs it, here one of the test's own.
    #[test]
    fn a_filter_refuses_what_is_listed_with_the_errno_of_its_list() {
        let errno = std::thread::spawn(|| {
            nix::sys::prctl::set_no_new_privs().unwrap();
            nbdkit_sandbox::seccomp::install(compat().unwrap().last().unwrap()).unwrap();
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUTS).err()
        });
        assert_eq!(errno.join().unwrap(), Some(nix::Error::EPERM));
    }
}
