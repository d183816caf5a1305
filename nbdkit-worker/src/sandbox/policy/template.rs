//! Need: a template, which forks workers; and what each worker gives up of that.

#![forbid(unsafe_code)]

use libc as c;
use nbdkit_sandbox::seccomp::Test::{Is, Lacks};
use nbdkit_sandbox::seccomp::{Line, NEW_NAMESPACES, any, with};

use super::THREAD;

/// What the template calls beyond what its workers call.
#[rustfmt::skip]
pub(in crate::sandbox) const TEMPLATE: &[Line] = &[
    with(c::SYS_clone, &[Lacks(0, NEW_NAMESPACES)]),         // fork_worker
    any(c::SYS_pidfd_open),       // fork_worker: a handle on the worker, for the listener
    any(c::SYS_wait4),            // reap: how a worker ended
    any(c::SYS_signalfd4),        // reap: SIGCHLD
    with(c::SYS_kill, &[Is(1, c::SIGKILL as u64)]), // run_forking: workers, some time after the listener was killed
    any(c::SYS_mlockall),         // --swap, in each worker: locks are not inherited
    any(c::SYS_seccomp),          // Sandbox::close_worker: the filter of each worker
    with(c::SYS_prctl, &[Is(0, c::PR_SET_NO_NEW_PRIVS as u64)]), // seccompiler sets it before each filter
    with(c::SYS_fcntl, &[Is(1, c::F_SETOWN as u64)]),        // end_client_on_message: SIGIO goes to the worker
];

/// What a worker cannot do although its template can.
#[rustfmt::skip]
pub(in crate::sandbox) const GIVEN_UP: &[Line] = &[
    with(c::SYS_clone, &[Lacks(0, THREAD)]), // a process that outlives the client, or many of them
    any(c::SYS_pidfd_open),       // handles on processes of this user
    any(c::SYS_signalfd4),        // reap: a worker has no children
    any(c::SYS_mlockall),         // --swap has locked what there is; more would be the machine's memory
    any(c::SYS_seccomp),          // close_worker has installed the last filter
    with(c::SYS_prctl, &[Is(0, c::PR_SET_NO_NEW_PRIVS as u64)]), // seccompiler has set it for the last filter
    with(c::SYS_fcntl, &[Is(1, c::F_SETOWN as u64)]), // SIGIO to other workers
];

/// What a process gives up that serves one client; one that serves them all waits for its broker at
/// the end.
#[rustfmt::skip]
pub(in crate::sandbox) const CHILDREN: &[Line] = &[
    any(c::SYS_wait4),            // a worker has no children
];

/// What a worker gives up that runs no programs.
#[rustfmt::skip]
pub(in crate::sandbox) const KILLING: &[Line] = &[
    any(c::SYS_kill),             // other workers
];

/// What a worker gives up that makes no socket: the one that it may have been given, its client's,
/// could pass the descriptor of the disk to a local client. What sends no descriptor is send(2).
#[rustfmt::skip]
pub(in crate::sandbox) const PASSING: &[Line] = &[
    any(c::SYS_sendmsg),          // SCM_RIGHTS
];
