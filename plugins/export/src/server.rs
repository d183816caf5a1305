//! The functions of the server that has loaded this file, and what they are for this side.
//!
//! Those that nbdkit 1.32 has are symbols that the loader resolves; those that came later are
//! looked for when they are needed.

#![expect(unsafe_code, reason = "calls the server's functions, which are C")]

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::mem::{offset_of, size_of};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6};
use std::time::Duration;

use nbdkit_api::client::{Peer, PeerAddress, TlsPeer};
use nbdkit_api::host::Host;
use nbdkit_api::log::Level;
use nbdkit_api::{Errno, Error, ExtentKind, Result};

use crate::c_string;

// nbdkit-plugin(3); those that are safe take nothing that could be wrong.
unsafe extern "C" {
    fn nbdkit_error(format: *const c_char, ...);
    fn nbdkit_debug(format: *const c_char, ...);
    safe fn nbdkit_set_error(errno: c_int);
    safe fn nbdkit_stdio_safe() -> c_int;
    safe fn nbdkit_shutdown();
    safe fn nbdkit_nanosleep(seconds: c_uint, nanoseconds: c_uint) -> c_int;
    safe fn nbdkit_is_tls() -> c_int;
    safe fn nbdkit_export_name() -> *const c_char;
    safe fn nbdkit_peer_pid() -> i64;
    safe fn nbdkit_peer_uid() -> i64;
    safe fn nbdkit_peer_gid() -> i64;
    fn nbdkit_peer_name(address: *mut libc::sockaddr, length: *mut libc::socklen_t) -> c_int;
    fn nbdkit_strdup_intern(text: *const c_char) -> *const c_char;
    fn nbdkit_add_export(
        list: *mut c_void,
        name: *const c_char,
        description: *const c_char,
    ) -> c_int;
    fn nbdkit_use_default_export(list: *mut c_void) -> c_int;
    fn nbdkit_add_extent(list: *mut c_void, offset: u64, length: u64, kind: u32) -> c_int;
}

/// The server, for the plugin.
pub(crate) const HOST: Host = Host {
    log,
    stdio_safe: || nbdkit_stdio_safe() == 1,
    shutdown: || nbdkit_shutdown(),
    disconnect,
    sleep,
    peer,
    tls,
};

fn log(level: Level, message: &str) {
    let message = c_string(message.as_bytes());
    // SAFETY: a format and the one string that it asks for, which live until the call returns.
    unsafe {
        match level {
            Level::Error | Level::Warning => nbdkit_error(c"%s".as_ptr(), message.as_ptr()),
            Level::Notice | Level::Debug => nbdkit_debug(c"%s".as_ptr(), message.as_ptr()),
        }
    }
}

/// Reports the failure of a callback: its line, unless it has been logged, and its errno.
pub(crate) fn fail(mut error: Error) {
    if error.take_for_log() {
        log(Level::Error, error.message());
    }
    nbdkit_set_error(error.errno() as c_int);
    error.errno().set();
}

/// A function of the server that nbdkit 1.32 does not have.
fn later(name: &CStr) -> Option<*mut c_void> {
    // SAFETY: looks a name up in what is loaded, the server first.
    let symbol = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    (!symbol.is_null()).then_some(symbol)
}

fn disconnect(force: bool) {
    type Disconnect = extern "C" fn(c_int);
    let Some(symbol) = later(c"nbdkit_disconnect") else { return };
    // SAFETY: a function of this name has this type, by the interface.
    let disconnect = unsafe { std::mem::transmute::<*mut c_void, Disconnect>(symbol) };
    disconnect(force.into());
}

fn sleep(duration: Duration) -> Result<()> {
    // More than a lifetime, and less than C's int.
    let seconds = c_uint::try_from(duration.as_secs()).unwrap_or(c_uint::MAX).min(1 << 30);
    match nbdkit_nanosleep(seconds, duration.subsec_nanos()) {
        0 => Ok(()),
        // The server has logged why.
        _ => Err(Error::silent(Errno::last())),
    }
}

fn peer() -> Peer {
    let address = address().unwrap_or(PeerAddress::Unknown);
    // Asking about the peer of another socket is an error, which is logged.
    let is_local = address == PeerAddress::Unix;
    let credentials = is_local.then(|| {
        let id = |id: i64| u32::try_from(id).ok();
        let pid = i32::try_from(nbdkit_peer_pid()).ok().filter(|pid| *pid >= 0);
        Some((pid?, id(nbdkit_peer_uid())?, id(nbdkit_peer_gid())?))
    });
    let security_context = allocated(c"nbdkit_peer_security_context");
    Peer { address, credentials: credentials.flatten(), security_context }
}

fn address() -> Option<PeerAddress> {
    // SAFETY: all bits zero are a valid address.
    let mut storage: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
    let mut length = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    let pointer = &raw mut storage;
    // SAFETY: both are there, and the length is that of the storage.
    if unsafe { nbdkit_peer_name(pointer.cast(), &raw mut length) } != 0 {
        return None;
    }
    // SAFETY: storage is as large as the address of any family, aligned for it, and all its bytes
    // are set: any bits are a valid value of these structures.
    unsafe {
        match c_int::from(storage.ss_family) {
            libc::AF_INET => {
                let v4 = pointer.cast::<libc::sockaddr_in>().read();
                let address = Ipv4Addr::from(v4.sin_addr.s_addr.to_ne_bytes());
                let port = u16::from_be(v4.sin_port);
                Some(PeerAddress::Inet(SocketAddrV4::new(address, port).into()))
            }
            libc::AF_INET6 => {
                let v6 = pointer.cast::<libc::sockaddr_in6>().read();
                let address = Ipv6Addr::from(v6.sin6_addr.s6_addr);
                let (port, flow) = (u16::from_be(v6.sin6_port), v6.sin6_flowinfo);
                let address = SocketAddrV6::new(address, port, flow, v6.sin6_scope_id);
                Some(PeerAddress::Inet(address.into()))
            }
            libc::AF_UNIX => Some(PeerAddress::Unix),
            libc::AF_VSOCK => {
                let vm = pointer.cast::<libc::sockaddr_vm>().read();
                Some(PeerAddress::Vsock { cid: vm.svm_cid, port: vm.svm_port })
            }
            _ => None,
        }
    }
}

const _: () = assert!(offset_of!(libc::sockaddr_storage, ss_family) == 0);

fn tls() -> TlsPeer {
    let text = |name| allocated(name).unwrap_or_default();
    TlsPeer { dn: text(c"nbdkit_peer_tls_dn"), issuer_dn: text(c"nbdkit_peer_tls_issuer_dn") }
}

/// Whether the client of this callback has negotiated TLS; only once an export is opened.
pub(crate) fn is_tls() -> bool {
    nbdkit_is_tls() == 1
}

/// What a function returns that nbdkit 1.32 does not have, which takes nothing and allocates a
/// string.
fn allocated(function: &CStr) -> Option<String> {
    type About = extern "C" fn() -> *mut c_char;
    let symbol = later(function)?;
    // SAFETY: functions of these names have this type, by the interface.
    let about = unsafe { std::mem::transmute::<*mut c_void, About>(symbol) };
    let text = about();
    if text.is_null() {
        return None;
    }
    // SAFETY: not null, so it ends with a null byte and was allocated for us; it is freed once.
    unsafe {
        let copy = CStr::from_ptr(text).to_string_lossy().into_owned();
        libc::free(text.cast());
        Some(copy)
    }
}

/// The export that the client of this callback has picked.
///
/// # Errors
/// It is not UTF-8, as the protocol demands.
pub(crate) fn export_name() -> Result<String> {
    let name = nbdkit_export_name();
    if name.is_null() {
        return Ok(String::new());
    }
    // SAFETY: not null, so it ends with a null byte and lives as long as the connection.
    let name = unsafe { CStr::from_ptr(name) };
    let why = |_| Error::msg("the export name is not UTF-8");
    name.to_str().map(str::to_owned).map_err(why)
}

/// A copy that lives as long as the connection of this callback; null after an error.
pub(crate) fn intern(text: &str) -> *const c_char {
    let text = c_string(text.as_bytes());
    // SAFETY: a string, which is copied.
    unsafe { nbdkit_strdup_intern(text.as_ptr()) }
}

/// What a function of the server returned that has logged why it failed.
fn done(result: c_int) -> Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(Error::silent(Errno::last())),
    }
}

/// Adds an export to the server's list.
///
/// # Errors
/// The server does not take it.
///
/// # Safety
/// `list` is what the callback that runs now was given.
pub(crate) unsafe fn add_export(
    list: *mut c_void,
    name: &str,
    description: Option<&str>,
) -> Result<()> {
    let name = c_string(name.as_bytes());
    let description: Option<CString> = description.map(|text| c_string(text.as_bytes()));
    let description = description.as_ref().map_or(std::ptr::null(), |text| text.as_ptr());
    // SAFETY: the list is the server's, as the caller promises; the strings are copied.
    done(unsafe { nbdkit_add_export(list, name.as_ptr(), description) })
}

/// Asks for the default export in the server's list.
///
/// # Errors
/// The server does not take it.
///
/// # Safety
/// As [`add_export`].
pub(crate) unsafe fn use_default_export(list: *mut c_void) -> Result<()> {
    // SAFETY: the list is the server's, as the caller promises.
    done(unsafe { nbdkit_use_default_export(list) })
}

/// Adds an extent to the server's list.
///
/// # Errors
/// The server does not take it.
///
/// # Safety
/// As [`add_export`], for a list of extents.
pub(crate) unsafe fn add_extent(
    list: *mut c_void,
    offset: u64,
    length: u64,
    kind: ExtentKind,
) -> Result<()> {
    // SAFETY: the list is the server's, as the caller promises.
    done(unsafe { nbdkit_add_extent(list, offset, length, kind.bits()) })
}

/// Writes out what C has printed, before what is printed past C's buffers.
pub(crate) fn flush_streams() {
    // SAFETY: null stands for all streams.
    unsafe { libc::fflush(std::ptr::null_mut()) };
}
