//! Need of every stack: what Rust's std and the C library call for memory, the pool's threads,
//! signals, time and the end.

#![forbid(unsafe_code)]

use libc as c;
use nbdkit_sandbox::seccomp::Test::{Has, Is, Lacks};
use nbdkit_sandbox::seccomp::{Line, NEW_NAMESPACES, any, with};

use super::{EXEC, THREAD};

#[rustfmt::skip]
pub(super) const RUNTIME: &[Line] = &[
    // Memory: never code. What is shared and without a file is made before: no limit counts it
    // (RLIMIT_DATA).
    with(c::SYS_mmap, &[Lacks(2, EXEC), Lacks(3, c::MAP_SHARED as u64)]),    // malloc: large blocks; stacks of threads
    with(c::SYS_mmap, &[Lacks(2, EXEC), Lacks(3, c::MAP_ANONYMOUS as u64)]), // SharedWords: tables in shared files
    with(c::SYS_mprotect, &[Lacks(2, EXEC)]), // guard pages of stacks; malloc: arenas of threads
    any(c::SYS_munmap),           // malloc and SharedWords give back
    any(c::SYS_mremap),           // realloc of large blocks
    any(c::SYS_madvise),          // malloc_trim, release_stack; stacks of ended threads
    any(c::SYS_brk),              // malloc: small blocks

    // Threads of the pool.
    with(c::SYS_clone, &[Has(0, THREAD), Lacks(0, NEW_NAMESPACES)]), // pthread_create
    any(c::SYS_clone3),           // pthread_create tries it first; see ABSENT
    any(c::SYS_futex),            // std locks; SharedMutex, between processes
    any(c::SYS_set_robust_list),  // glibc start_thread
    any(c::SYS_rseq),             // glibc start_thread
    any(c::SYS_sched_getaffinity),// pthread_getattr_np: std looks where a stack is; available_parallelism
    any(c::SYS_gettid),           // abort; release_stack: whether it is the first thread
    any(c::SYS_exit),             // the end of a thread
    with(c::SYS_prctl, &[Is(0, c::PR_SET_NAME as u64)]),       // std names its threads
    with(c::SYS_prlimit64, &[Is(0, 0), Lacks(2, u64::MAX)]),   // pthread_getattr_np: its stack's limit. This process, no new limit (a pointer)
    with(c::SYS_getrusage, &[Is(0, c::RUSAGE_THREAD as u64)]), // pool: whether writes wait for the disk

    // Signals: abort(3) sends the only one; see also GIVEN_UP.
    any(c::SYS_rt_sigaction),     // abort resets SIGABRT; end_client: SIGALRM
    any(c::SYS_rt_sigprocmask),   // pthread_create and fork block signals
    any(c::SYS_rt_sigreturn),     // the kernel's return from SIGIO, SIGXFSZ
    any(c::SYS_sigaltstack),      // std: guard against overflow of the stack
    with(c::SYS_tgkill, &[Is(2, c::SIGABRT as u64)]),          // abort
    any(c::SYS_exit_group),       // exit_now, abort
    any(c::SYS_restart_syscall),  // the kernel continues an interrupted wait

    // Time and chance.
    any(c::SYS_clock_gettime),    // deadlines, rates, logs, where the vDSO has no clock
    any(c::SYS_clock_nanosleep),  // std sleep: delay and rate filters
    any(c::SYS_getrandom),        // std hash tables; keys of TLS
];

/// To fail with ENOSYS: what has another way that can be checked.
#[rustfmt::skip]
pub(in crate::sandbox) const ABSENT: &[Line] = &[
    any(c::SYS_clone3),           // its flags are in memory, unseen by filters; libraries fall back to clone
];
