//! What becomes of a process whose filter refuses a system call with SIGSYS.

#![expect(unsafe_code, reason = "a signal handler")]

use std::sync::OnceLock;

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// What says so and ends the process.
static LAST_ACT: OnceLock<fn(u32) -> !> = OnceLock::new();

/// Has `last_act` called with the number of the system call when one is refused. Forks inherit it;
/// the first call counts.
///
/// # Errors
/// None that a kernel has for this.
///
/// # Safety
/// `last_act` must be async-signal-safe: another thread may hold any lock, so it formats, allocates
/// and locks nothing.
pub unsafe fn on_refusal(last_act: fn(u32) -> !) -> nix::Result<()> {
    LAST_ACT.get_or_init(|| last_act);
    let flags = SaFlags::SA_SIGINFO | SaFlags::SA_ONSTACK;
    let action = SigAction::new(SigHandler::SigAction(refused), flags, SigSet::all());
    // SAFETY: the handler reads its argument and a static that is set, and calls what the caller
    // vouches for.
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
    // SAFETY: the kernel passes a siginfo_t, which is larger and aligned alike; any bits are valid
    // numbers.
    let syscall = unsafe { (*info.cast::<Refusal>()).syscall };
    if let Some(last_act) = LAST_ACT.get() {
        last_act(syscall.cast_unsigned());
    }
}
