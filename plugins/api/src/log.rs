//! Where plugins and filters send their messages: `nbdkit_error` and `nbdkit_debug`.
//!
//! A process-wide sink is installed once by the worker; it turns records into messages to the
//! listener, which alone writes the log. The name and connection number of a record come from
//! a thread-local set by the [`Backend`](crate::Backend) when a layer is entered.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{OnceLock, PoisonError, RwLock};

/// Severity of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// `nbdkit_error`: always logged.
    Error,
    /// Always logged: something is probably not what the user meant.
    Warning,
    /// For system log and log file; on standard error only with `-v`.
    Notice,
    /// `nbdkit_debug`: only with `-v`.
    Debug,
}

/// Who speaks: the layer and the connection it serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Speaker {
    /// Name of the plugin or filter; `None` for the server itself.
    pub layer: Option<&'static str>,
    /// Connection number, counted from 1; 0 outside of connections.
    pub connection: u64,
}

type Sink = Box<dyn Fn(Level, Speaker, &str) + Send + Sync>;

static SINK: OnceLock<Sink> = OnceLock::new();
static VERBOSE: AtomicBool = AtomicBool::new(false);
static DATAPATH: AtomicBool = AtomicBool::new(true);
static CONTROLPATH: AtomicBool = AtomicBool::new(true);
static FLAGS: RwLock<Vec<(String, String, i32)>> = RwLock::new(Vec::new());

/// Which calls of the data path leave debug lines on this thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trace {
    /// Those that carry out a request.
    Calls,
    /// Those that find out where in a file a request's bytes are.
    Ranges,
    /// None.
    Nothing,
}

thread_local! {
    static TRACE: Cell<Trace> = const { Cell::new(Trace::Calls) };
    static SPEAKER: Cell<Speaker> = const { Cell::new(Speaker { layer: None, connection: 0 }) };
}

/// Installs the process's sink and sets verbosity. Later calls change only the verbosity.
pub fn install(verbose: bool, sink: Sink) {
    VERBOSE.store(verbose, Ordering::Relaxed);
    let _ = SINK.set(sink);
}

/// True if debug messages are wanted (`-v`).
#[inline]
pub fn verbose() -> bool {
    VERBOSE.load(Ordering::Relaxed)
}

/// Sets a debug flag, `-D MODULE.FLAG=VALUE`. Modules ask for theirs with [`flag`].
pub fn set_flag(module: &str, name: &str, value: i32) {
    match (module, name) {
        ("nbdkit", "backend.datapath") => DATAPATH.store(value != 0, Ordering::Relaxed),
        ("nbdkit", "backend.controlpath") => CONTROLPATH.store(value != 0, Ordering::Relaxed),
        _ => {
            let mut flags = FLAGS.write().unwrap_or_else(PoisonError::into_inner);
            flags.retain(|(m, n, _)| (m.as_str(), n.as_str()) != (module, name));
            flags.push((module.to_owned(), name.to_owned(), value));
        }
    }
}

/// The value of a debug flag, 0 if it was not given.
pub fn flag(module: &str, name: &str) -> i32 {
    let flags = FLAGS.read().unwrap_or_else(PoisonError::into_inner);
    flags.iter().find(|(m, n, _)| m == module && n == name).map_or(0, |(_, _, value)| *value)
}

/// True if debug lines of calls other than data requests are wanted.
#[inline]
pub fn controlpath() -> bool {
    verbose() && CONTROLPATH.load(Ordering::Relaxed)
}

/// True if debug lines of single requests are wanted, from the calls that carry them out.
#[inline]
pub fn datapath() -> bool {
    verbose() && wants_datapath(Trace::Calls)
}

/// True if they are wanted from the calls that find out where a request's bytes are: see
/// [`trace_ranges`].
#[inline]
pub(crate) fn ranges() -> bool {
    verbose() && wants_datapath(Trace::Ranges)
}

fn wants_datapath(trace: Trace) -> bool {
    DATAPATH.load(Ordering::Relaxed) && TRACE.get() == trace
}

/// Runs `call`, which asks where in a file the bytes of a request are, and has the layers that it
/// passes log the request, since they are not called to carry it out.
pub(crate) fn trace_ranges<T>(call: impl FnOnce() -> T) -> T {
    with_trace(Trace::Ranges, call)
}

/// Runs `call`, a part of a request that has been logged as a whole, without debug lines of the
/// data path.
pub fn without_datapath<T>(call: impl FnOnce() -> T) -> T {
    with_trace(Trace::Nothing, call)
}

fn with_trace<T>(trace: Trace, call: impl FnOnce() -> T) -> T {
    struct Restore(Trace);
    impl Drop for Restore {
        fn drop(&mut self) {
            TRACE.set(self.0);
        }
    }
    let _restore = Restore(TRACE.replace(trace));
    call()
}

/// Logs an error in the name of the current speaker.
pub fn error(message: &str) {
    record(Level::Error, SPEAKER.get(), message);
}

/// Logs a warning in the name of the current speaker.
pub fn warning(message: &str) {
    record(Level::Warning, SPEAKER.get(), message);
}

/// Logs a notice in the name of the current speaker.
pub fn notice(message: &str) {
    record(Level::Notice, SPEAKER.get(), message);
}

/// Logs a debug message in the name of the current speaker, if wanted. Prefer
/// [`debug!`](crate::debug), which formats only then.
pub fn debug(message: &str) {
    if verbose() {
        record(Level::Debug, SPEAKER.get(), message);
    }
}

/// Logs in the name of `speaker`.
pub fn record(level: Level, speaker: Speaker, message: &str) {
    if let Some(sink) = SINK.get() {
        sink(level, speaker, message);
    }
}

/// The current thread's speaker.
pub fn speaker() -> Speaker {
    SPEAKER.get()
}

/// Makes `speaker` the current one until the guard is dropped.
#[must_use]
pub fn enter(speaker: Speaker) -> Entered {
    Entered(SPEAKER.replace(speaker))
}

/// Restores the previous speaker on drop.
#[derive(Debug)]
pub struct Entered(Speaker);

impl Drop for Entered {
    fn drop(&mut self) {
        SPEAKER.set(self.0);
    }
}

/// Formats and logs a debug message if `-v` was given.
#[macro_export]
macro_rules! debug {
    ($($arg:tt)*) => {
        if $crate::log::verbose() {
            $crate::log::debug(&format!($($arg)*));
        }
    };
}

/// As [`debug!`](crate::debug), for a layer's control calls, which `-D
/// nbdkit.backend.controlpath=0` silences.
#[macro_export]
macro_rules! debug_control {
    ($($arg:tt)*) => {
        if $crate::log::controlpath() {
            $crate::log::debug(&format!($($arg)*));
        }
    };
}

/// Formats and logs an error message that does not end the current callback.
#[macro_export]
macro_rules! error {
    ($($arg:tt)*) => { $crate::log::error(&format!($($arg)*)) };
}
