//! Need: threads of a plugin's own, and how such threads usually wait.

#![forbid(unsafe_code)]

use libc as c;
use nbdkit_sandbox::seccomp::{Line, any};

#[rustfmt::skip]
pub(in crate::sandbox) const THREADS: &[Line] = &[
    any(c::SYS_epoll_create1),    // event loops of libraries
    any(c::SYS_epoll_ctl),        // event loops: a descriptor is added
    any(c::SYS_epoll_pwait),      // event loops wait: glibc on machines without epoll_wait
    #[cfg(target_arch = "x86_64")]
    any(c::SYS_epoll_wait),       // event loops wait
    any(c::SYS_eventfd2),         // one thread wakes another
    any(c::SYS_timerfd_create),   // event loops: timers
    any(c::SYS_timerfd_settime),  // event loops: when a timer fires
    any(c::SYS_membarrier),       // lock-free queues (liburcu)
];
