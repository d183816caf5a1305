//! The handler of SIGSYS, which a filter raises when it refuses a system call: it reports the call
//! and ends the process.

#![expect(unsafe_code, reason = "a signal handler")]

use std::sync::OnceLock;

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// Reports the call and ends the process.
static REPORT: OnceLock<fn(u32) -> !> = OnceLock::new();

/// Has `report` called with the number of the system call when one is refused. Forks inherit the
/// handler. Later calls of this function do not change `report`.
///
/// # Errors
/// sigaction(2) has none for SIGSYS.
///
/// # Safety
/// `report` must be async-signal-safe: another thread may hold any lock, so it formats, allocates
/// and locks nothing.
pub unsafe fn on_refusal(report: fn(u32) -> !) -> nix::Result<()> {
    REPORT.get_or_init(|| report);
    let flags = SaFlags::SA_SIGINFO | SaFlags::SA_ONSTACK;
    let action = SigAction::new(SigHandler::SigAction(refused), flags, SigSet::all());
    // SAFETY: the handler reads its argument and a static that is set already, and calls `report`,
    // which by this function's contract is async-signal-safe.
    unsafe { sigaction(Signal::SIGSYS, &action) }.map(drop)
}

extern "C" fn refused(
    _signal: libc::c_int,
    info: *mut libc::siginfo_t,
    _context: *mut libc::c_void,
) {
    /// What the kernel puts into a siginfo_t for SIGSYS: sigaction(2), si_call_addr, si_syscall,
    /// si_arch.
    #[repr(C)]
    struct Refusal {
        signal: libc::c_int,
        errno: libc::c_int,
        code: libc::c_int,
        address: *mut libc::c_void,
        syscall: libc::c_int,
        machine: libc::c_uint,
    }
    const { assert!(size_of::<Refusal>() <= size_of::<libc::siginfo_t>()) };
    // SAFETY: the handler is installed with SA_SIGINFO, so the kernel passes a pointer to a
    // siginfo_t, which is as large (checked above) and aligned for a pointer; all fields are
    // numbers.
    let syscall = unsafe { (*info.cast::<Refusal>()).syscall };
    if let Some(report) = REPORT.get() {
        report(syscall.cast_unsigned());
    }
}
