//! The calls of x32, a second set of numbers for the calls of x86-64, which are on no list.
//! seccomp(2), `__X32_SYSCALL_BIT`.

#![forbid(unsafe_code)]

use seccompiler::{SeccompAction, sock_filter};

use super::search::{JUMP_IF_NOT_LESS, NUMBER_IS_LOADED, RETURN};
use super::{Action, Program};

/// Numbers of x32 begin here; no others do.
const X32: u32 = 0x4000_0000;

/// Does `action` with every call of x32. `filter` is [`assemble`](super::search::assemble)'s.
pub(super) fn refuse(mut filter: Program, action: Action) -> Program {
    let action = u32::from(SeccompAction::from(action));
    let refused = [
        sock_filter { code: JUMP_IF_NOT_LESS, jt: 0, jf: 1, k: X32 },
        sock_filter { code: RETURN, jt: 0, jf: 0, k: action },
    ];
    // Jumps are relative, and none crosses this index: the one before it skips a single
    // instruction.
    let at = NUMBER_IS_LOADED.min(filter.len());
    filter.splice(at..at, refused);
    filter
}
