//! `nbdkitd_declaration`: what a module in a file says that it needs, `include/nbdkit-confine.h`.
//!
//! Runs in the template. Trusts the module as far as C must, that its structure is as long as it
//! says; what is in it is checked, and the first thing that cannot be used is an error of one line.

#![expect(unsafe_code, reason = "reads a structure that another language filled, and calls it")]

use std::ffi::{CStr, OsStr, c_char, c_int, c_uint, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::OnceLock;

use nbdkit_abi::declaration::{self as abi, Flags, Functions, NeedsCallback, WarmUp};
use nbdkit_api::{Access, Endpoint, Error, Isolation, Needs, Network, Result, quoted};

use super::calls::{flush_streams, named};
use super::context;
use super::library::Module;

/// The symbol.
const SYMBOL: &str = "nbdkitd_declaration";

/// A declaration that has been checked.
pub(super) struct Declaration {
    isolation: Isolation,
    flags: Flags,
    /// What `needs` has declared besides.
    configured: OnceLock<Flags>,
    needs: Option<NeedsCallback>,
    warm_up: Option<WarmUp>,
    /// For messages.
    path: PathBuf,
}

impl Declaration {
    /// What the module declares; `None` if it has no such symbol.
    ///
    /// # Errors
    /// The declaration is malformed, or of a version that is not known here.
    pub(super) fn of(module: &Module) -> Result<Option<Declaration>> {
        let Some(table) = module.data(SYMBOL) else { return Ok(None) };
        // SAFETY: a module's object of this name is the structure, by the interface.
        let table = unsafe { copy(table) };
        let declaration = table
            .and_then(check)
            .map_err(|why| Error::msg(format!("{}: {SYMBOL}: {why}", module.path.display())))?;
        Ok(Some(Declaration { path: module.path.clone(), ..declaration }))
    }

    /// How clients may be divided over processes, as far as that is known before
    /// [`checked_needs`](Self::checked_needs).
    pub(super) fn isolation(&self) -> Isolation {
        if self.has(Flags::ONE_PROCESS) { Isolation::Shared } else { self.isolation }
    }

    /// Whether what clients write is in the memory of the process.
    pub(super) fn keeps_state(&self) -> bool {
        self.has(Flags::KEEPS_STATE)
    }

    fn has(&self, flag: Flags) -> bool {
        let configured = self.configured.get().copied().unwrap_or(Flags::empty());
        (self.flags | configured).contains(flag)
    }

    /// What is known before the module is configured.
    pub(super) fn needs(&self) -> Needs {
        needs_of(self.flags)
    }

    /// What the configured module needs: asks it for paths and endpoints.
    ///
    /// # Errors
    /// The module's; what it declared cannot be used.
    pub(super) fn checked_needs(&self, readonly: bool) -> Result<Needs> {
        let Some(needs) = self.needs else { return Ok(self.needs()) };
        let mut gathered = Gathered::new(self.needs());
        let entered = context::enter(None);
        // SAFETY: the functions are the beginning of what they cast their argument back to, which
        // is the callback's alone until it returns.
        let result = unsafe { needs((&raw mut gathered).cast_const().cast(), readonly.into()) };
        let failure = (result != 0).then(|| named("needs", context::failure(None)));
        drop(entered);
        flush_streams()?;
        match (gathered.refused, failure) {
            (Some(why), _) => Err(Error::msg(format!("{}: {SYMBOL}: {why}", self.path.display()))),
            (None, Some(error)) => Err(error),
            (None, None) => {
                let _ = self.configured.set(gathered.flags);
                gathered.needs.merge(needs_of(gathered.flags));
                Ok(gathered.needs)
            }
        }
    }

    /// Calls `warm_up`.
    ///
    /// # Errors
    /// The module's.
    pub(super) fn warm_up(&self) -> Result<()> {
        let Some(warm_up) = self.warm_up else { return Ok(()) };
        let _entered = context::enter(None);
        // SAFETY: takes nothing; called when the interface says, by the only thread of ours.
        match unsafe { warm_up() } {
            0 => Ok(()),
            _ => Err(named("warm_up", context::failure(None))),
        }
    }
}

/// What the flags stand for.
fn needs_of(flags: Flags) -> Needs {
    let network = if flags.contains(Flags::NETWORK) {
        Network::Inet
    } else if flags.contains(Flags::UNIX_SOCKETS) {
        Network::Unix
    } else {
        Network::None
    };
    Needs {
        in_file: true,
        threads: flags.contains(Flags::THREADS),
        programs: flags.contains(Flags::PROGRAMS),
        shutdown: flags.contains(Flags::SHUTDOWN),
        trust_roots: flags.contains(Flags::TRUST_ROOTS),
        network,
        ..Needs::nothing()
    }
}

/// Flags, if all are known here.
///
/// # Errors
/// The others.
fn known(flags: u64) -> Result<Flags, String> {
    let unknown = flags & !Flags::all().bits();
    Flags::from_bits(flags)
        .ok_or_else(|| format!("flags {unknown:#x} are not known to this server"))
}

/// Copies as much of the structure as there is; what an older module does not have is zero.
///
/// # Errors
/// The size cannot be that of such a structure; a member that is not known here is not zero.
///
/// # Safety
/// `table` points to a `struct nbdkitd_declaration`: its first two members, and as many bytes
/// as the second says.
unsafe fn copy(table: *const c_void) -> Result<abi::Declaration, String> {
    /// Up to the first callback: a structure without any.
    const LEAST: usize = std::mem::offset_of!(abi::Declaration, needs);
    /// More than there will ever be.
    const MOST: usize = 4096;
    // SAFETY: the first two members are there, as the caller promises; neither need be aligned
    // for this.
    let [version, size] = unsafe { table.cast::<[u32; 2]>().read_unaligned() };
    if version != abi::VERSION {
        return Err(format!(
            "version {version} is not known to this server, which knows {}",
            abi::VERSION
        ));
    }
    let size = size as usize;
    if !(LEAST..=MOST).contains(&size) {
        return Err(format!("a size of {size} bytes is not that of a declaration"));
    }
    // SAFETY: so many bytes are there, as the caller promises, and nobody changes them.
    let bytes = unsafe { std::slice::from_raw_parts(table.cast::<u8>(), size) };
    let known = size.min(size_of::<abi::Declaration>());
    if bytes[known..].iter().any(|byte| *byte != 0) {
        return Err(format!(
            "it is newer than this server, and a member beyond {known} bytes is set"
        ));
    }
    let mut copy = std::mem::MaybeUninit::<abi::Declaration>::zeroed();
    // SAFETY: `known` bytes are within both, and the copy is elsewhere. All bits zero are a
    // valid value of every member, and so is what the module put there.
    unsafe {
        copy.as_mut_ptr().cast::<u8>().copy_from_nonoverlapping(bytes.as_ptr(), known);
        Ok(copy.assume_init())
    }
}

/// Checks what the members say.
///
/// # Errors
/// A flag or a kind of isolation that is not known here.
fn check(table: abi::Declaration) -> Result<Declaration, String> {
    let flags = known(table.flags)?;
    let isolation = match table.isolation {
        abi::ISOLATION_SHARED => Isolation::Shared,
        abi::ISOLATION_CONNECTION => Isolation::Connection,
        other => return Err(format!("isolation {other} is not known to this server")),
    };
    if table.reserved != 0 {
        return Err("reserved is not 0".to_owned());
    }
    let abi::Declaration { needs, warm_up, .. } = table;
    Ok(Declaration {
        isolation,
        flags,
        configured: OnceLock::new(),
        needs,
        warm_up,
        path: PathBuf::new(),
    })
}

/// What the callback has declared so far.
#[repr(C)]
struct Gathered {
    /// What the module sees.
    functions: Functions,
    needs: Needs,
    flags: Flags,
    count: usize,
    /// The first thing that cannot be used.
    refused: Option<String>,
}

impl Gathered {
    fn new(needs: Needs) -> Gathered {
        let struct_size = size_of::<Functions>() as u64;
        let functions = Functions { struct_size, path, unix_socket, tcp, flags };
        Gathered { functions, needs, flags: Flags::empty(), count: 0, refused: None }
    }

    /// Adds what `declare` makes of the needs so far. Returns what C gets.
    fn add(&mut self, declare: impl FnOnce(Needs) -> Result<Needs, String>) -> c_int {
        /// Each path is a rule and an open descriptor while the rules are made.
        const MOST: usize = 512;
        self.count = self.count.saturating_add(1);
        let declared = match self.count {
            0..=MOST => declare(self.needs.clone()),
            _ => Err(format!("more than {MOST} paths and endpoints are declared")),
        };
        match declared {
            Ok(needs) => {
                self.needs = needs;
                0
            }
            Err(why) => {
                self.refused.get_or_insert(why);
                -1
            }
        }
    }
}

/// What a callback declares into, by the pointer that it was given; `None` if that is null.
///
/// # Safety
/// `needs` is null, or what the callback that runs now was given, and nothing else uses it.
unsafe fn gathered<'a>(needs: *const Functions) -> Option<&'a mut Gathered> {
    // SAFETY: what the callback was given is the beginning of a Gathered, and was made of a pointer
    // by which it may be written.
    unsafe { needs.cast_mut().cast::<Gathered>().as_mut() }
}

/// A string that a module passed, which may not be null or empty. `what`: what it names.
///
/// # Errors
/// It is.
///
/// # Safety
/// `string` is null, or ends with a null byte and stays as it is for `'a`.
unsafe fn given<'a>(string: *const c_char, what: &str) -> Result<&'a CStr, String> {
    // SAFETY: null or a string that stays, as the caller promises.
    let string = unsafe { super::functions::text(string) };
    string.filter(|text| !text.is_empty()).ok_or_else(|| format!("a {what} has no name"))
}

/// `nbdkitd_needs.path`.
///
/// # Safety
/// `needs` is null, or what the callback that runs now was given, and nothing else uses it; `path`
/// is null or ends with a null byte.
unsafe extern "C" fn path(needs: *const Functions, path: *const c_char, access: c_int) -> c_int {
    // SAFETY: what the module was given, as it promises.
    let Some(gathered) = (unsafe { gathered(needs) }) else { return -1 };
    // SAFETY: null or a string, as the module promises.
    let path = unsafe { given(path, "path") };
    gathered.add(|needs| {
        let path = PathBuf::from(OsStr::from_bytes(path?.to_bytes()));
        let shown = quoted(path.as_os_str().as_bytes());
        if !path.is_absolute() {
            return Err(format!("the path {shown} is not absolute"));
        }
        if path.as_os_str().len() >= libc::PATH_MAX as usize {
            return Err(format!("a path of {} bytes is too long", path.as_os_str().len()));
        }
        match access {
            abi::READ => Ok(needs.path(path, Access::Read)),
            abi::WRITE => Ok(needs.path(path, Access::Write)),
            other => Err(format!("access {other} to {shown} is not known to this server")),
        }
    })
}

/// `nbdkitd_needs.unix_socket`.
///
/// # Safety
/// As [`path`].
unsafe extern "C" fn unix_socket(needs: *const Functions, path: *const c_char) -> c_int {
    // SAFETY: what the module was given, as it promises.
    let Some(gathered) = (unsafe { gathered(needs) }) else { return -1 };
    // SAFETY: null or a string, as the module promises.
    let path = unsafe { given(path, "socket") };
    gathered.add(|needs| {
        let path = OsStr::from_bytes(path?.to_bytes());
        Endpoint::unix(path).map_err(|error| error.message().to_owned())?;
        Ok(needs.network(Network::Unix))
    })
}

/// `nbdkitd_needs.tcp`.
///
/// # Safety
/// As [`path`], and so is `host`.
unsafe extern "C" fn tcp(needs: *const Functions, host: *const c_char, port: c_uint) -> c_int {
    // SAFETY: what the module was given, as it promises.
    let Some(gathered) = (unsafe { gathered(needs) }) else { return -1 };
    // SAFETY: null or a string, as the module promises.
    let host = unsafe { given(host, "host") };
    gathered.add(|needs| {
        let host = quoted(host?.to_bytes());
        match u16::try_from(port) {
            Ok(port) if port != 0 => {
                nbdkit_api::debug!("declared: tcp:{host}:{port}");
                Ok(needs.tcp_port(port))
            }
            _ => Err(format!("there is no TCP port {port} of {host}")),
        }
    })
}

/// `nbdkitd_needs.flags`.
///
/// # Safety
/// As [`path`], without a string.
unsafe extern "C" fn flags(needs: *const Functions, flags: u64) -> c_int {
    // SAFETY: what the module was given, as it promises.
    let Some(gathered) = (unsafe { gathered(needs) }) else { return -1 };
    let mut more = Flags::empty();
    let result = gathered.add(|needs| {
        more = known(flags)?;
        Ok(needs)
    });
    gathered.flags |= more;
    result
}
