//! `struct nbdkitd_declaration` and `struct nbdkitd_needs`, `include/nbdkit-confine.h`.

use std::ffi::{c_char, c_int, c_uint};

/// `NBDKITD_DECLARATION_VERSION`.
pub const VERSION: u32 = 1;
/// `NBDKITD_ISOLATION_SHARED`.
pub const ISOLATION_SHARED: u32 = 1;
/// `NBDKITD_ISOLATION_CONNECTION`.
pub const ISOLATION_CONNECTION: u32 = 2;
/// `NBDKITD_READ`.
pub const READ: c_int = 1;
/// `NBDKITD_WRITE`.
pub const WRITE: c_int = 2;

bitflags::bitflags! {
    /// `NBDKITD_THREADS` and so on.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Flags: u64 {
        /// Starts threads.
        const THREADS = 1;
        /// Runs programs.
        const PROGRAMS = 2;
        /// Calls `nbdkit_shutdown`.
        const SHUTDOWN = 4;
        /// Connects to whatever it likes.
        const NETWORK = 8;
        /// Reads certificates of authorities.
        const TRUST_ROOTS = 16;
        /// What clients write is in memory.
        const KEEPS_STATE = 32;
        /// Connects to sockets of the Unix domain wherever they are.
        const UNIX_SOCKETS = 64;
        /// One process for all clients, whatever `isolation` says.
        const ONE_PROCESS = 128;
    }
}

/// `needs`: declares paths and endpoints by the functions; whether no client may write.
pub type NeedsCallback = unsafe extern "C" fn(*const Functions, c_int) -> c_int;
/// `warm_up`.
pub type WarmUp = unsafe extern "C" fn() -> c_int;

/// `struct nbdkitd_declaration`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Declaration {
    /// [`VERSION`].
    pub version: u32,
    /// Size of this structure, bytes.
    pub struct_size: u32,
    /// [`Flags`].
    pub flags: u64,
    /// [`ISOLATION_SHARED`] or [`ISOLATION_CONNECTION`].
    pub isolation: u32,
    /// 0.
    pub reserved: u32,
    /// May be absent.
    pub needs: Option<NeedsCallback>,
    /// May be absent.
    pub warm_up: Option<WarmUp>,
}

#[cfg(target_pointer_width = "64")]
const _: () = {
    assert!(size_of::<Declaration>() == 40);
    assert!(std::mem::offset_of!(Declaration, needs) == 24);
    assert!(size_of::<Functions>() == 40);
};

/// `struct nbdkitd_needs`. Each function returns 0 or -1, and takes this structure first.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Functions {
    /// Size of this structure, bytes.
    pub struct_size: u64,
    /// A path, and [`READ`] or [`WRITE`].
    pub path: unsafe extern "C" fn(*const Functions, *const c_char, c_int) -> c_int,
    /// The path of a socket.
    pub unix_socket: unsafe extern "C" fn(*const Functions, *const c_char) -> c_int,
    /// A host and a port.
    pub tcp: unsafe extern "C" fn(*const Functions, *const c_char, c_uint) -> c_int,
    /// Further [`Flags`].
    pub flags: unsafe extern "C" fn(*const Functions, u64) -> c_int,
}
