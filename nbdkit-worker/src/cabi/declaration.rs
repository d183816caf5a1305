//! `nbdkitd_declaration`: what a module in a file says that it needs, `include/nbdkit-confine.h`.
//!
//! Runs in the template. Trusts the module as far as C must, that its structure is as long as it
//! says; what is in it is checked, and the first thing that cannot be used is an error of one line.

#![expect(unsafe_code, reason = "reads a structure that another language filled, and calls it")]

use std::ffi::{CStr, OsStr, c_char, c_int, c_uint, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use nbdkit_api::{Access, Endpoint, Error, Isolation, Needs, Network, Result, quoted};

use super::context;
use super::library::Module;
use super::plugin::{flush_streams, named};

/// `NBDKITD_DECLARATION_VERSION`.
const VERSION: u32 = 1;

/// The symbol.
const SYMBOL: &str = "nbdkitd_declaration";

bitflags::bitflags! {
    /// `NBDKITD_THREADS` and so on.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Flags: u64 {
        const THREADS = 1;
        const PROGRAMS = 2;
        const SHUTDOWN = 4;
        const NETWORK = 8;
        const TRUST_ROOTS = 16;
        const KEEPS_STATE = 32;
    }
}

type NeedsCallback = unsafe extern "C" fn(*const Functions, c_int) -> c_int;
type WarmUp = unsafe extern "C" fn() -> c_int;

/// `struct nbdkitd_declaration`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Table {
    version: u32,
    struct_size: u32,
    flags: u64,
    isolation: u32,
    reserved: u32,
    needs: Option<NeedsCallback>,
    warm_up: Option<WarmUp>,
}

#[cfg(target_pointer_width = "64")]
const _: () = assert!(size_of::<Table>() == 40 && std::mem::offset_of!(Table, needs) == 24);

/// `struct nbdkitd_needs`.
#[repr(C)]
struct Functions {
    struct_size: u64,
    path: unsafe extern "C" fn(*const Functions, *const c_char, c_int) -> c_int,
    unix_socket: unsafe extern "C" fn(*const Functions, *const c_char) -> c_int,
    tcp: unsafe extern "C" fn(*const Functions, *const c_char, c_uint) -> c_int,
}

/// A declaration that has been checked.
pub(super) struct Declaration {
    isolation: Isolation,
    flags: Flags,
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
        let table = unsafe { Table::copy(table) };
        let declaration = table
            .and_then(Table::check)
            .map_err(|why| Error::msg(format!("{}: {SYMBOL}: {why}", module.path.display())))?;
        Ok(Some(Declaration { path: module.path.clone(), ..declaration }))
    }

    /// How clients may be divided over processes.
    pub(super) fn isolation(&self) -> Isolation {
        self.isolation
    }

    /// Whether what clients write is in the memory of the process.
    pub(super) fn keeps_state(&self) -> bool {
        self.flags.contains(Flags::KEEPS_STATE)
    }

    /// What is known before the module is configured.
    pub(super) fn needs(&self) -> Needs {
        let any = self.flags.contains(Flags::NETWORK);
        Needs {
            in_file: true,
            threads: self.flags.contains(Flags::THREADS),
            programs: self.flags.contains(Flags::PROGRAMS),
            shutdown: self.flags.contains(Flags::SHUTDOWN),
            trust_roots: self.flags.contains(Flags::TRUST_ROOTS),
            network: if any { Network::Inet } else { Network::None },
            ..Needs::nothing()
        }
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
            (None, None) => Ok(gathered.needs),
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

impl Table {
    /// Copies as much of the structure as there is; what an older module does not have is zero.
    ///
    /// # Errors
    /// The size cannot be that of such a structure; a member that is not known here is not zero.
    ///
    /// # Safety
    /// `table` points to a `struct nbdkitd_declaration`: its first two members, and as many bytes
    /// as the second says.
    unsafe fn copy(table: *const c_void) -> Result<Table, String> {
        /// Up to the first callback: a structure without any.
        const LEAST: usize = std::mem::offset_of!(Table, needs);
        /// More than there will ever be.
        const MOST: usize = 4096;
        // SAFETY: the first two members are there, as the caller promises; neither need be aligned
        // for this.
        let [version, size] = unsafe { table.cast::<[u32; 2]>().read_unaligned() };
        if version != VERSION {
            return Err(format!(
                "version {version} is not known to this server, which knows {VERSION}"
            ));
        }
        let size = size as usize;
        if !(LEAST..=MOST).contains(&size) {
            return Err(format!("a size of {size} bytes is not that of a declaration"));
        }
        // SAFETY: so many bytes are there, as the caller promises, and nobody changes them.
        let bytes = unsafe { std::slice::from_raw_parts(table.cast::<u8>(), size) };
        let known = size.min(size_of::<Table>());
        if bytes[known..].iter().any(|byte| *byte != 0) {
            return Err("it asks for something that this server does not know".to_owned());
        }
        let mut copy = std::mem::MaybeUninit::<Table>::zeroed();
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
    fn check(self) -> Result<Declaration, String> {
        let Some(flags) = Flags::from_bits(self.flags) else {
            let unknown = self.flags & !Flags::all().bits();
            return Err(format!("flags {unknown:#x} are not known to this server"));
        };
        let isolation = match self.isolation {
            1 => Isolation::Shared,
            2 => Isolation::Connection,
            other => return Err(format!("isolation {other} is not known to this server")),
        };
        if self.reserved != 0 {
            return Err("it asks for something that this server does not know".to_owned());
        }
        let Table { needs, warm_up, .. } = self;
        Ok(Declaration { isolation, flags, needs, warm_up, path: PathBuf::new() })
    }
}

/// What the callback has declared so far.
#[repr(C)]
struct Gathered {
    /// What the module sees.
    functions: Functions,
    needs: Needs,
    count: usize,
    /// The first thing that cannot be used.
    refused: Option<String>,
}

impl Gathered {
    fn new(needs: Needs) -> Gathered {
        let functions =
            Functions { struct_size: size_of::<Functions>() as u64, path, unix_socket, tcp };
        Gathered { functions, needs, count: 0, refused: None }
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

/// A string that a module passed, which may not be null or empty. `what`: what it names.
///
/// # Errors
/// It is.
///
/// # Safety
/// `string` is null, or ends with a null byte and stays as it is for `'a`.
unsafe fn given<'a>(string: *const c_char, what: &str) -> Result<&'a CStr, String> {
    // SAFETY: as promised to us.
    let string = unsafe { super::functions::text(string) };
    string.filter(|text| !text.is_empty()).ok_or_else(|| format!("a {what} has no name"))
}

/// `nbdkitd_needs.path`.
///
/// # Safety
/// `needs` is what the callback that runs now was given, and nothing else uses it; `path` is null
/// or ends with a null byte.
unsafe extern "C" fn path(needs: *const Functions, path: *const c_char, access: c_int) -> c_int {
    // SAFETY: what the callback was given is the beginning of a Gathered that may be written.
    let Some(gathered) = (unsafe { needs.cast_mut().cast::<Gathered>().as_mut() }) else {
        return -1;
    };
    // SAFETY: as promised to us.
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
            1 => Ok(needs.path(path, Access::Read)),
            2 => Ok(needs.path(path, Access::Write)),
            other => Err(format!("access {other} to {shown} is not known to this server")),
        }
    })
}

/// `nbdkitd_needs.unix_socket`.
///
/// # Safety
/// As [`path`].
unsafe extern "C" fn unix_socket(needs: *const Functions, path: *const c_char) -> c_int {
    // SAFETY: what the callback was given is the beginning of a Gathered that may be written.
    let Some(gathered) = (unsafe { needs.cast_mut().cast::<Gathered>().as_mut() }) else {
        return -1;
    };
    // SAFETY: as promised to us.
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
    // SAFETY: what the callback was given is the beginning of a Gathered that may be written.
    let Some(gathered) = (unsafe { needs.cast_mut().cast::<Gathered>().as_mut() }) else {
        return -1;
    };
    // SAFETY: as promised to us.
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
