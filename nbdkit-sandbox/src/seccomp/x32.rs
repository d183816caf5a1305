//! The calls of x32, a second set of numbers for the calls of x86-64, which are on no list.
//! seccomp(2), `__X32_SYSCALL_BIT`.

#![forbid(unsafe_code)]

use seccompiler::{SeccompAction, sock_filter};

use super::{Action, Program};

/// linux/bpf_common.h: BPF_JMP | BPF_JGE | BPF_K.
const JUMP_IF_NOT_LESS: u16 = 0x35;
/// BPF_RET | BPF_K.
const RETURN: u16 = 0x06;
/// Numbers of x32 begin here; no others do.
const X32: u32 = 0x4000_0000;
/// The index of the instruction before which the compiler has loaded the call's number: after
/// loading the machine, comparing it, and ending on another one.
const NUMBER_IS_LOADED: usize = 4;

/// Does `action` with every call of x32. `filter` comes from the compiler.
pub(super) fn refuse(mut filter: Program, action: Action) -> Program {
    let action = u32::from(SeccompAction::from(action));
    let refused = [
        sock_filter { code: JUMP_IF_NOT_LESS, jt: 0, jf: 1, k: X32 },
        sock_filter { code: RETURN, jt: 0, jf: 0, k: action },
    ];
    // Jumps of the compiler are relative, and none crosses this index: the one before it skips a
    // single instruction.
    let at = NUMBER_IS_LOADED.min(filter.len());
    filter.splice(at..at, refused);
    filter
}
