//! Need: programs (sh, eval, scripts of filters) at `--sandbox=strict`. What ordinary programs call
//! without privileges; no sockets but Unix ones, no namespaces, nothing that administers the
//! machine. Another call does not exist for them (ENOSYS).

#![forbid(unsafe_code)]

use libc as c;
use nbdkit_sandbox::seccomp::Test::Is;
use nbdkit_sandbox::seccomp::{Line, any, with};

#[rustfmt::skip]
pub(in crate::sandbox) const PROGRAMS: &[Line] = &[
    // Processes.
    any(c::SYS_execve),           // the program
    #[cfg(target_arch = "x86_64")]
    any(c::SYS_fork),             // shells that are linked statically
    #[cfg(target_arch = "x86_64")]
    any(c::SYS_vfork),            // posix_spawn of C libraries other than glibc
    any(c::SYS_waitid),           // std; perl
    any(c::SYS_kill),             // sh plugin: a script that prints too much; kill(1). Landlock keeps it inside
    any(c::SYS_tkill),            // raise(3) of musl
    any(c::SYS_tgkill),           // raise(3) of glibc
    any(c::SYS_pidfd_open),       // std, python: handles on children
    any(c::SYS_pidfd_send_signal),// std, python: signals to children
    any(c::SYS_prctl),            // names of threads, PR_SET_PDEATHSIG: nothing that gives rights
    #[cfg(target_arch = "x86_64")]
    any(c::SYS_arch_prctl),       // dynamic linker: thread-local storage
    any(c::SYS_setpgid),          // bash -m: jobs
    any(c::SYS_getpgid),          // bash -m: jobs
    #[cfg(target_arch = "x86_64")]
    any(c::SYS_getpgrp),          // bash, dash: jobs
    any(c::SYS_setsid),           // setsid(1)
    any(c::SYS_getsid),           // ps(1)
    any(c::SYS_prlimit64),        // ulimit; never above what is left
    any(c::SYS_setrlimit),        // ulimit of programs that are linked statically
    any(c::SYS_getrusage),        // time of bash
    any(c::SYS_times),            // times of dash
    any(c::SYS_getpriority),      // nice(1)
    any(c::SYS_setpriority),      // nice(1), renice(1)
    any(c::SYS_sched_setaffinity),// taskset(1)
    any(c::SYS_sched_getparam),   // python os.sched_getparam; thread attributes
    any(c::SYS_sched_getscheduler), // chrt(1); thread attributes
    any(c::SYS_getgroups),        // id(1), test -r of bash
    any(c::SYS_getresuid),        // perl: whether it is set-user-id
    any(c::SYS_getresgid),        // perl: whether it is set-group-id
    any(c::SYS_capget),           // ls(1): colours of files with capabilities
    any(c::SYS_personality),      // setarch(8), gdb
    any(c::SYS_getcpu),           // jemalloc: an arena for each processor
    any(c::SYS_get_robust_list),  // gdb, checkpointing runtimes
    any(c::SYS_membarrier),       // Go and .NET runtimes

    // Code: programs are mapped.
    any(c::SYS_mmap),             // dynamic linker: libraries
    any(c::SYS_mprotect),         // dynamic linker: relocation
    any(c::SYS_mincore),          // Go runtime
    any(c::SYS_mlock2),           // libsodium, gpg: secrets stay in memory
    any(c::SYS_pkey_alloc),       // libraries that hide keys from the rest of the process
    any(c::SYS_pkey_free),        // the end of such a key
    any(c::SYS_pkey_mprotect),    // which memory is behind such a key

    // Signals and time.
    any(c::SYS_rt_sigsuspend),    // wait of dash; timeout(1)
    any(c::SYS_rt_sigtimedwait),  // sigwait(3): tail(1), python
    any(c::SYS_rt_sigpending),    // python signal.sigpending
    any(c::SYS_setitimer),        // alarm(3), ualarm(3)
    any(c::SYS_getitimer),        // python signal.getitimer
    any(c::SYS_timer_create),     // timeout(1)
    any(c::SYS_timer_settime),    // timeout(1): when it ends the program
    any(c::SYS_timer_gettime),    // programs that ask how long a timer has left
    any(c::SYS_timer_delete),     // the end of such a timer
    any(c::SYS_timerfd_gettime),  // libuv, systemd tools
    any(c::SYS_signalfd4),        // libuv, systemd tools
    any(c::SYS_pselect6),         // bash read -t; curl(1)
    any(c::SYS_epoll_pwait2),     // event loops with nanoseconds
    any(c::SYS_inotify_init1),    // tail -f
    any(c::SYS_inotify_add_watch),// tail -f: a file
    any(c::SYS_inotify_rm_watch), // tail -f: a file that was renamed

    // Files, as far as Landlock lets them.
    any(c::SYS_fcntl),            // shells: redirection; qemu-img(1): locks
    any(c::SYS_ioctl),            // shells: is it a terminal, how large
    any(c::SYS_dup),              // shells: redirection
    any(c::SYS_dup3),             // shells: redirection, where there is no dup2
    any(c::SYS_getdents64),       // ls(1), globs of shells
    any(c::SYS_getcwd),           // pwd(1), start of shells
    any(c::SYS_chdir),            // cd
    any(c::SYS_fchdir),           // find(1), rm -r
    any(c::SYS_readlinkat),       // readlink(1)
    any(c::SYS_openat2),          // tar(1) since 1.35, cp of newer coreutils
    any(c::SYS_mkdirat),          // mkdir(1)
    any(c::SYS_unlinkat),         // rm(1), rmdir(1)
    any(c::SYS_renameat),         // rename(3) where there is no rename
    any(c::SYS_renameat2),        // mv(1)
    any(c::SYS_linkat),           // ln(1)
    any(c::SYS_symlinkat),        // ln -s
    any(c::SYS_mknodat),          // mkfifo(1)
    any(c::SYS_fchmod),           // cp -p, install(1)
    any(c::SYS_fchmodat),         // chmod(1)
    any(c::SYS_fchmodat2),        // chmod(1) with glibc 2.39
    any(c::SYS_fchown),           // cp -p tries
    any(c::SYS_fchownat),         // chown(1), chgrp(1) to a group of the user's
    any(c::SYS_utimensat),        // touch(1), cp -p
    any(c::SYS_umask),            // umask
    any(c::SYS_truncate),         // python os.truncate, perl truncate
    any(c::SYS_statfs),           // df(1), stat -f
    any(c::SYS_fstatfs),          // rm(1), tail(1): kind of file system
    any(c::SYS_sync),             // sync(1)
    any(c::SYS_syncfs),           // sync -f
    any(c::SYS_readahead),        // programs that read ahead: sqlite, tar(1)
    any(c::SYS_sendfile),         // busybox cat, python shutil.copyfile
    any(c::SYS_tee),              // programs that duplicate a pipe's data
    any(c::SYS_vmsplice),         // pv(1)
    any(c::SYS_getxattr),         // ls(1), cp(1): labels, access lists
    any(c::SYS_lgetxattr),        // ls(1), cp(1): labels of links
    any(c::SYS_fgetxattr),        // cp -a
    any(c::SYS_listxattr),        // getfattr(1)
    any(c::SYS_llistxattr),       // ls(1) since coreutils 9.5: of links
    any(c::SYS_flistxattr),       // cp -a

    // Sockets that lead nowhere else: the system log, name services, between processes.
    with(c::SYS_socket, &[Is(0, c::AF_UNIX as u64)]),     // logger(1), NSS
    with(c::SYS_socketpair, &[Is(0, c::AF_UNIX as u64)]), // python multiprocessing, node
    any(c::SYS_connect),          // logger(1), NSS; Landlock keeps abstract names inside
    any(c::SYS_setsockopt),       // logger(1), python: deadlines, sizes of buffers
    any(c::SYS_bind),             // python multiprocessing, qemu-nbd(8): a socket in the script's directory
    any(c::SYS_listen),           // python multiprocessing, qemu-nbd(8)
    any(c::SYS_accept4),          // python multiprocessing, qemu-nbd(8)
    any(c::SYS_accept),           // perl, socat(1)
    any(c::SYS_sendmmsg),         // glibc res_send: parallel queries, which nothing answers
    any(c::SYS_recvmmsg),         // systemd tools: several datagrams at once
    with(c::SYS_socket, &[Is(0, c::AF_NETLINK as u64), Is(2, c::NETLINK_ROUTE as u64)]), // getaddrinfo, check_pf: no addresses

    // Older numbers, which glibc calls on this machine or programs that are linked statically.
    #[cfg(target_arch = "x86_64")] any(c::SYS_open),         // busybox, Go before 1.22: open(2)
    #[cfg(target_arch = "x86_64")] any(c::SYS_creat),        // creat(3)
    #[cfg(target_arch = "x86_64")] any(c::SYS_stat),         // musl and old glibc: test -e
    #[cfg(target_arch = "x86_64")] any(c::SYS_lstat),        // musl and old glibc: ls(1)
    #[cfg(target_arch = "x86_64")] any(c::SYS_access),       // dynamic linker: /etc/ld.so.preload
    #[cfg(target_arch = "x86_64")] any(c::SYS_readlink),     // readlink(1), realpath(3)
    #[cfg(target_arch = "x86_64")] any(c::SYS_getdents),     // programs linked with glibc before 2.28
    #[cfg(target_arch = "x86_64")] any(c::SYS_mkdir),        // mkdir(1)
    #[cfg(target_arch = "x86_64")] any(c::SYS_rmdir),        // rmdir(1)
    #[cfg(target_arch = "x86_64")] any(c::SYS_unlink),       // perl unlink, mktemp -u
    #[cfg(target_arch = "x86_64")] any(c::SYS_rename),       // perl rename, sed -i
    #[cfg(target_arch = "x86_64")] any(c::SYS_link),         // perl link
    #[cfg(target_arch = "x86_64")] any(c::SYS_symlink),      // perl symlink
    #[cfg(target_arch = "x86_64")] any(c::SYS_mknod),        // mknod(3) of musl: mkfifo(1)
    #[cfg(target_arch = "x86_64")] any(c::SYS_chmod),        // perl chmod
    #[cfg(target_arch = "x86_64")] any(c::SYS_chown),        // perl chown
    #[cfg(target_arch = "x86_64")] any(c::SYS_lchown),       // chown -h of busybox
    #[cfg(target_arch = "x86_64")] any(c::SYS_utime),        // utime(3)
    #[cfg(target_arch = "x86_64")] any(c::SYS_utimes),       // utimes(3) of busybox
    #[cfg(target_arch = "x86_64")] any(c::SYS_futimesat),    // futimesat(3)
    #[cfg(target_arch = "x86_64")] any(c::SYS_pipe),         // pipe(3) of musl and old glibc: shells
    #[cfg(target_arch = "x86_64")] any(c::SYS_dup2),         // shells: redirection
    #[cfg(target_arch = "x86_64")] any(c::SYS_select),       // perl select
    #[cfg(target_arch = "x86_64")] any(c::SYS_pause),        // pause(3)
    #[cfg(target_arch = "x86_64")] any(c::SYS_alarm),        // perl alarm
    #[cfg(target_arch = "x86_64")] any(c::SYS_time),         // time(2) without a vDSO
    #[cfg(target_arch = "x86_64")] any(c::SYS_epoll_create), // Go before 1.20, old libevent
    #[cfg(target_arch = "x86_64")] any(c::SYS_eventfd),      // eventfd(3) of programs linked with old glibc
    #[cfg(target_arch = "x86_64")] any(c::SYS_inotify_init), // tail -f of old coreutils
];
