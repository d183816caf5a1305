//! `nbdkitd_declaration` of an exported plugin: isolation from the start, and everything else from
//! [`Plugin::checked_needs`](nbdkit_api::Plugin::checked_needs) when the server asks.

#![expect(unsafe_code, reason = "calls the functions that C passes")]

use std::ffi::{CString, c_int};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use nbdkit_abi::declaration::{self as abi, Flags, Functions, NeedsCallback, WarmUp};
use nbdkit_api::{Access, Endpoint, Errno, Error, Isolation, Needs, Network, Result};

use crate::{guard, with};

/// `struct nbdkitd_declaration`, of which one member is set when the plugin is made, before the
/// server reads it.
#[repr(C)]
#[derive(Debug)]
pub struct Declaration {
    version: u32,
    struct_size: u32,
    flags: u64,
    isolation: AtomicU32,
    reserved: u32,
    needs: NeedsCallback,
    warm_up: WarmUp,
}

const _: () = {
    assert!(size_of::<Declaration>() == size_of::<abi::Declaration>());
    let (ours, theirs) = (
        std::mem::offset_of!(Declaration, isolation),
        std::mem::offset_of!(abi::Declaration, isolation),
    );
    assert!(ours == theirs);
};

impl Declaration {
    /// Of the plugin of this file.
    #[expect(clippy::new_without_default, reason = "a constant")]
    pub const fn new() -> Declaration {
        Declaration {
            version: abi::VERSION,
            struct_size: size_of::<abi::Declaration>() as u32,
            flags: 0,
            isolation: AtomicU32::new(abi::ISOLATION_SHARED),
            reserved: 0,
            needs,
            warm_up,
        }
    }

    pub(crate) fn set_isolation(&self, isolation: Isolation) {
        let number = match isolation {
            Isolation::Shared => abi::ISOLATION_SHARED,
            Isolation::Connection => abi::ISOLATION_CONNECTION,
        };
        self.isolation.store(number, Ordering::Relaxed);
    }
}

unsafe extern "C" fn warm_up() -> c_int {
    guard(-1, || with(|plugin| plugin.warm_up().map(|()| 0)))
}

/// # Safety
/// `functions` is the server's structure, as long as its first member says.
unsafe extern "C" fn needs(functions: *const Functions, readonly: c_int) -> c_int {
    guard(-1, || {
        let (needs, keeps_state) =
            with(|plugin| Ok((plugin.checked_needs(readonly != 0)?, plugin.keeps_state())))?;
        // SAFETY: the first member is there, as the server promises.
        let size = unsafe { functions.cast::<u64>().read() };
        if size < size_of::<Functions>() as u64 {
            return Err(Error::msg("the server is older than this plugin"));
        }
        // SAFETY: as long as what this file was compiled with, as was just checked.
        let server = Server { functions, table: unsafe { functions.read() } };
        server.declare(&needs, keeps_state).map(|()| 0)
    })
}

/// The server's functions, with their argument.
struct Server {
    functions: *const Functions,
    table: Functions,
}

impl Server {
    fn declare(&self, needs: &Needs, keeps_state: bool) -> Result<()> {
        if needs.undeclared {
            return Err(Error::msg("an exported plugin must declare what it needs"));
        }
        let mut flags = Flags::empty();
        flags.set(Flags::THREADS, needs.threads);
        flags.set(Flags::PROGRAMS, needs.programs);
        flags.set(Flags::SHUTDOWN, needs.shutdown);
        flags.set(Flags::NETWORK, needs.network == Network::Inet);
        flags.set(Flags::UNIX_SOCKETS, needs.network == Network::Unix);
        flags.set(Flags::TRUST_ROOTS, needs.trust_roots);
        flags.set(Flags::KEEPS_STATE, keeps_state);
        // SAFETY: the server's function with its own argument, within the callback.
        done(unsafe { (self.table.flags)(self.functions, flags.bits()) })?;
        for declared in &needs.declared {
            let access = if declared.writable { abi::WRITE } else { abi::READ };
            self.path(&declared.path, access)?;
        }
        for (path, access) in &needs.paths {
            match access {
                // Looking is not restricted.
                Access::Look => {}
                Access::Read => self.path(path, abi::READ)?,
                Access::Write | Access::RemoveDirs => self.path(path, abi::WRITE)?,
            }
        }
        needs.endpoints.iter().try_for_each(|endpoint| self.endpoint(endpoint))?;
        needs.tcp_ports.iter().try_for_each(|port| self.tcp("*", *port))
    }

    fn path(&self, path: &Path, access: c_int) -> Result<()> {
        let path = string(path.as_os_str().as_bytes())?;
        // SAFETY: the server's function with its own argument and a string, within the callback.
        done(unsafe { (self.table.path)(self.functions, path.as_ptr(), access) })
    }

    fn endpoint(&self, endpoint: &Endpoint) -> Result<()> {
        match endpoint {
            Endpoint::Tcp { host, port } => self.tcp(host, *port),
            Endpoint::Unix(path) => {
                let path = string(path.as_os_str().as_bytes())?;
                // SAFETY: the server's function with its own argument and a string, within the
                // callback.
                done(unsafe { (self.table.unix_socket)(self.functions, path.as_ptr()) })
            }
            Endpoint::Vsock { .. } => {
                Err(Error::msg(format!("{endpoint}: a plugin in a file cannot connect there")))
            }
        }
    }

    fn tcp(&self, host: &str, port: u16) -> Result<()> {
        let host = string(host.as_bytes())?;
        // SAFETY: the server's function with its own argument and a string, within the callback.
        done(unsafe { (self.table.tcp)(self.functions, host.as_ptr(), port.into()) })
    }
}

fn string(bytes: &[u8]) -> Result<CString> {
    CString::new(bytes).map_err(|_| Error::msg("what is declared has a null byte"))
}

/// What a function of the server returned, which says itself why it does not take something.
fn done(result: c_int) -> Result<()> {
    if result == 0 { Ok(()) } else { Err(Error::silent(Errno::EINVAL)) }
}
