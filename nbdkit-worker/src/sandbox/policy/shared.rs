//! Need of every stack: state that workers share, in files and memory that were made before the
//! first fork. See `plugins/api/src/shared`.

#![forbid(unsafe_code)]

use libc as c;
use nbdkit_sandbox::seccomp::Test::Is;
use nbdkit_sandbox::seccomp::{Line, any, with};

#[rustfmt::skip]
pub(super) const SHARED: &[Line] = &[
    with(c::SYS_fcntl, &[Is(1, c::F_SETLK as u64)]),     // Presence: a record lock that ends with its process (limit, exitlast)
    with(c::SYS_fcntl, &[Is(1, c::F_GETLK as u64)]),     // SharedMutex: whether the holder lives
    with(c::SYS_fcntl, &[Is(1, c::F_ADD_SEALS as u64)]), // SharedFile: what is mapped must not shrink
    any(c::SYS_memfd_create),     // programs: scratch memory; see SHARED_MEMORY
    any(c::SYS_mlock),            // allocator=malloc,mlock=true
    any(c::SYS_sched_yield),      // spinning on a lock of malloc or std; reader: polls for requests
    any(c::SYS_getpid),           // Presence: whose record lock it is; abort(3); TempDir: who made it
];

/// To fail with EACCES where no programs are run: memory in files, which no limit counts. What
/// workers share is made before the sandbox closes.
#[rustfmt::skip]
pub(in crate::sandbox) const SHARED_MEMORY: &[Line] = &[
    any(c::SYS_memfd_create),     // memory past RLIMIT_DATA; libraries that try it go on without
];
