//! Opening the shared library of a plugin or filter. It stays open until the process ends: there is
//! no telling what still points into it.

#![expect(unsafe_code, reason = "loads and calls code in another language")]

use std::ffi::{OsStr, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use nbdkit_api::{Error, Result, ResultExt, log};
use nbdkit_ipc::messages::DebugFlag;

/// An open library.
pub(super) struct Module {
    /// Absolute.
    pub(super) path: PathBuf,
    /// Never closed, see the module's text.
    library: std::mem::ManuallyDrop<Library>,
}

impl Module {
    /// Opens the file at `path` for what the command line calls `name`; `what` is `plugin` or
    /// `filter`.
    ///
    /// # Errors
    /// It is not there, is no library of this machine's, or needs what there is not.
    pub(super) fn open(what: &str, name: &OsStr, path: &Path) -> Result<Module> {
        // A name without a slash would be looked for where the system has its libraries.
        let path = std::path::absolute(path).or_error(|| format!("cannot open {what}"))?;
        // Everything is resolved now, so that nothing that is missing shows when a client comes;
        // and globally, because the libraries of languages look for their symbols again from
        // modules of their own. As nbdkit does.
        // SAFETY: runs what initialises the library, which is what the user asked for; it is not
        // closed again.
        let library = unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_GLOBAL) };
        let library = library.map_err(|error| {
            let cause = cause(&error);
            let hint = hint(what, name, &path);
            Error::msg(format!("cannot open {what} '{}': {cause}{hint}", quoted(name)))
        })?;
        Ok(Module { path, library: std::mem::ManuallyDrop::new(library) })
    }

    /// Calls the library's entry point, `plugin_init` or `filter_init`, for its table.
    ///
    /// # Errors
    /// There is no such function, or it returned nothing.
    pub(super) fn init(&self, entry: &str) -> Result<*const c_void> {
        type Init = unsafe extern "C" fn() -> *const c_void;
        let path = self.path.display();
        // SAFETY: a function of this name has this type, by the interface; nothing else could be
        // checked.
        let init = unsafe { self.library.get::<Init>(entry) }
            .map_err(|_| Error::msg(format!("{path}: undefined symbol: {entry}")))?;
        // SAFETY: takes nothing, and is called once, by the only thread.
        let table = unsafe { init() };
        if table.is_null() {
            return Err(Error::msg(format!("{path}: {entry} returned no table")));
        }
        Ok(table)
    }

    /// The address of an object of the library's; `None` if it has none of this name.
    pub(super) fn data(&self, symbol: &str) -> Option<*const c_void> {
        // SAFETY: the address of a symbol, whatever it is of; nothing is read here.
        unsafe { self.library.get::<*const c_void>(symbol) }
            .ok()
            .map(|object| object.into_raw().cast_const())
    }

    /// Whether this is the file that `make install` puts where people look for a built-in plugin or
    /// filter, `plugins/built-in`.
    pub(super) fn stands_for_built_in(&self) -> bool {
        self.data("nbdkitd_built_in").is_some()
    }

    /// What such a file stands for, by its name: `NAME` of `nbdkit-NAME-plugin.so`, with `load`,
    /// which knows those that there are.
    ///
    /// # Errors
    /// There is none of this name.
    pub(super) fn built_in<T>(&self, what: &str, load: impl Fn(&str) -> Option<T>) -> Result<T> {
        let name = self.path.file_name().and_then(OsStr::to_str).and_then(|name| {
            name.strip_prefix("nbdkit-")?.strip_suffix(".so")?.strip_suffix(what)?.strip_suffix('-')
        });
        name.and_then(load).ok_or_else(|| {
            let path = self.path.display();
            Error::msg(format!("{path}: no built-in {what} has this name (nbdkit-NAME-{what}.so)"))
        })
    }

    /// Sets the debug flags of the module `name`: global variables of the library.
    /// nbdkit-plugin(3), "Debug Flags".
    pub(super) fn set_debug_flags(&self, name: &str, flags: &[DebugFlag]) {
        for DebugFlag { flag, value, .. } in flags.iter().filter(|flag| flag.name == name) {
            let variable = debug_variable(name, flag);
            // SAFETY: a variable of this name is an int, by the interface.
            match unsafe { self.library.get::<*mut c_int>(variable.as_str()) } {
                // SAFETY: it is the address of an int that lives as long as the library. No other
                // thread exists yet, and a variable that the library may change is not in read-only
                // memory.
                Ok(address) => unsafe { address.write(*value) },
                Err(_) => log::warning(&crate::configure::unknown_flag(name, flag)),
            }
        }
    }
}

/// The C variable of a debug flag: what cannot be in a name there is an underscore.
pub(crate) fn debug_variable(name: &str, flag: &str) -> String {
    format!("{name}_debug_{flag}").replace(['.', '-'], "_")
}

fn quoted(name: &OsStr) -> impl std::fmt::Display {
    name.as_bytes().escape_ascii()
}

/// The loader's own words, which name the file.
fn cause(error: &libloading::Error) -> String {
    match error {
        libloading::Error::DlOpen { source } => source.to_string(),
        other => other.to_string(),
    }
}

/// A remedy for a short name that is nowhere: the nearest of those that there are, or all of them.
fn hint(what: &str, name: &OsStr, path: &Path) -> String {
    let is_plain =
        name.as_bytes().iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(byte));
    let Some(name) = name.to_str().filter(|_| is_plain && !path.exists()) else {
        return String::new();
    };
    let mut there = super::search::installed(what);
    if what == "plugin" {
        there.extend(crate::configure::built_in_names().map(str::to_owned));
    } else {
        there.extend(nbdkit_filters::names().map(str::to_owned));
    }
    there.sort_unstable();
    there.dedup();
    let near = there.iter().map(|it| (strsim::damerau_levenshtein(name, it), it)).min();
    // A letter or two, but not most of a short name.
    let near = near.filter(|(distance, _)| *distance <= 2 && distance * 2 < name.len());
    let near = near.map_or_else(
        || format!("the {what}s here are {}.", there.join(", ")),
        |(_, near)| format!("did you mean '{near}'?"),
    );
    let manual = match what {
        // nbdkit's own words after a plugin that is not there.
        "plugin" => " Use 'nbdkit --help' or read the nbdkit(1) manual page for documentation.",
        _ => "",
    };
    format!("; {near}{manual}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variable_of_a_flag_has_underscores_only() {
        assert_eq!(debug_variable("foo-bar", "a.b-c"), "foo_bar_debug_a_b_c");
    }

    #[test]
    fn a_file_that_is_no_library_is_an_error_that_names_it() {
        let open = |name: &str| match Module::open("plugin", OsStr::new(name), Path::new(name)) {
            Ok(_) => panic!("opened"),
            Err(error) => error.message().to_owned(),
        };
        let message = open("/dev/null");
        assert!(message.starts_with("cannot open plugin '/dev/null': "), "{message}");
        let message = open("./no\nsuch.so");
        assert!(message.starts_with("cannot open plugin './no\\nsuch.so': "), "{message}");
    }
}
